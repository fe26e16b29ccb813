//! Development tasks of the workspace; `cargo xtask --help` lists them.

mod audit;
mod bench;
mod build_ebpf;
mod cli;
mod dist;
mod fuzz;
mod host;
mod musl;
mod newcomer;
mod oom_matrix;
mod pip;
mod soak;
mod summary;
mod test;
mod tidy;
mod venv;
mod vm;
mod workspace;

fn main() -> std::process::ExitCode {
    cli::main()
}
