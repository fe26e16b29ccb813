//! The command line of `cargo xtask`. Each task has a module of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{bench, build_ebpf, dist, fuzz, newcomer, oom_matrix, soak, test, tidy, vm};

const EXAMPLES: &str = "\
Examples:
  cargo xtask test                run every test that can run on this machine; list the skipped tests
  cargo xtask test --all          install missing dependencies first; a skipped test is a failure (as in CI)
  cargo xtask test interrupt      run only tests whose name contains `interrupt`
  cargo xtask newcomer            run the tests in a fresh clone with only Rust, Python and a C compiler
  cargo xtask tidy                check repository rules that the compiler does not check
  cargo xtask oom-matrix          score OOM kill reports, with and without BPF
  cargo xtask vm --kernel 5.10    do the same on another kernel, in a virtual machine
  cargo xtask soak --minutes 10   keep one session busy and check that nothing it holds grows
  cargo xtask fuzz --time 60      run every fuzz target for a minute
  cargo xtask bench --quick       compare krunner with the Python runner in about a minute
  cargo xtask dist                build the release artifacts in target/dist
  cargo xtask build-ebpf --check  check that the committed eBPF objects match their sources

Exit codes: 0 success, 1 a check failed, a target was missed or the task could not run, 2 wrong usage.";

/// Development tasks of the krunner workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build krunner, then run tidy, the unit tests and the integration suites
    Test(test::Args),
    /// Run the tests in a fresh clone, as on a machine with only Rust, python3 and a C compiler
    Newcomer(newcomer::Args),
    /// Check repository rules that the compiler does not check: layering, file headers, lengths, use of unsafe
    Tidy(tidy::Args),
    /// Compare krunner with the Python runner; fail when a performance target is missed
    Bench(bench::Args),
    /// Cause every kind of OOM kill and score krunner's reports, with and without BPF
    #[command(alias = "battery")]
    OomMatrix(oom_matrix::Args),
    /// Keep one session busy with everything it does; fail when memory or descriptors grow or a reply is lost
    Soak(soak::Args),
    /// Boot other kernels in virtual machines and run the OOM matrix there
    Vm(vm::Args),
    /// Build the fuzz targets with coverage counters and run each for a limited time
    Fuzz(fuzz::Args),
    /// Build the release artifacts: static binaries, the agent's package, manual pages, checksums
    Dist(dist::Args),
    /// Build the eBPF objects that krunner embeds and write them next to their sources
    BuildEbpf(build_ebpf::Args),
    /// A baseline of the bench: a bare pipe-to-PUSH copy loop behind the runner's protocol
    #[command(hide = true)]
    BenchPeer(bench::peer::Args),
}

/// Parses the command line and runs the task.
pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Newcomer(args) => newcomer::run_task(&args),
        Task::Tidy(args) => tidy::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::OomMatrix(args) => oom_matrix::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run_task(&args),
        Task::BenchPeer(args) => bench::peer::run(&args).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn battery_is_an_alias_of_oom_matrix() {
        let cli = Cli::try_parse_from(["cargo xtask", "battery", "--list"]).unwrap();
        assert!(matches!(cli.task, Task::OomMatrix(_)));
    }

    #[test]
    fn every_task_has_examples_that_parse_and_its_exit_codes() {
        let mut tasks: Vec<_> = Cli::command().get_subcommands().filter(|task| !task.is_hide_set()).cloned().collect();
        tasks.push(Cli::command());
        for mut task in tasks {
            let help = task.render_long_help().to_string();
            assert!(help.contains("\nExamples:\n") && help.contains("\nExit codes: 0 "), "{help}");
            let examples = help.lines().filter_map(|line| line.strip_prefix("  cargo xtask "));
            for example in examples {
                // Two spaces separate an example from its description.
                let line = example.split("  ").next().unwrap_or_default();
                let parsed = Cli::try_parse_from(["cargo xtask"].into_iter().chain(line.split(' ')));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }
}
