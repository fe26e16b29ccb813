//! Development tasks of the workspace; `cargo xtask --help` lists them.

mod battery;
mod bench;
mod build_ebpf;
mod cli;
mod dist;
mod host;
mod musl;
mod newcomer;
mod pip;
mod supply;
mod tally;
mod test;
mod tidy;
mod venv;
mod vm;
mod workspace;

fn main() -> std::process::ExitCode {
    cli::main()
}
