//! The krunner binary: a thin wrapper around the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    krunner::main()
}
