//! The krunner binary: a thin wrapper around the library.

fn main() -> std::process::ExitCode {
    krunner::main()
}
