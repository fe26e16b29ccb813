//! The krunner binary; everything is in the library.

fn main() -> std::process::ExitCode {
    krunner::cli::main()
}
