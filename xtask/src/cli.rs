//! The command line: which task, with which arguments. What a task does is in the task's own file.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{battery, bench, build_ebpf, dist, newcomer, test, tidy, vm};

const EXAMPLES: &str = "\
Examples:
  cargo xtask test                all suites that can run here; skips are listed last
  cargo xtask test --all          installs what is missing; a skip is a failure (as in CI)
  cargo xtask test interrupt      only the tests with `interrupt` in their names
  cargo xtask newcomer            the tests in a fresh clone, with nothing but Rust, Python and a C compiler
  cargo xtask tidy                the rules that no compiler checks
  cargo xtask battery             how many kills for memory are told of rightly, with BPF and without
  cargo xtask vm --kernel 5.10    the same on another kernel, in a virtual machine
  cargo xtask bench --quick       krunner beside the Python runner, in about a minute
  cargo xtask dist                what is handed out, in target/dist
  cargo xtask build-ebpf --check  is the eBPF object in the repository what its sources give?

Exit codes: 0 all is well, 1 a check or a target failed or the task could not run, 2 wrong usage.";

/// Development tasks of the krunner workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds krunner and runs tidy, the unit tests and the integration suites
    Test(test::Args),
    /// Runs the tests in a fresh clone as on a fresh machine: Rust, python3 and a C compiler, and no more
    Newcomer(newcomer::Args),
    /// Checks the rules that no compiler checks: layering, file heads, lengths, who may be unsafe
    Tidy(tidy::Args),
    /// Measures krunner beside the Python runner, and fails when a target is missed
    Bench(bench::Args),
    /// Plays every kind of kill for memory and scores what krunner tells of it, with BPF and without
    Battery(battery::Args),
    /// Boots other kernels in virtual machines and runs the battery there
    Vm(vm::Args),
    /// Makes what is handed out: static binaries, the package for the agent, manual pages, sums
    Dist(dist::Args),
    /// Builds the eBPF object that krunner embeds, and writes it beside its sources
    BuildEbpf(build_ebpf::Args),
    /// One of the bench's yardsticks: a bare pipe -> PUSH copy loop behind the runner's protocol
    #[command(hide = true)]
    BenchPeer(bench::peer::Args),
}

/// Runs the task that the command line names.
pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Newcomer(args) => newcomer::run_task(&args),
        Task::Tidy(args) => tidy::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Battery(args) => battery::run(&args),
        Task::Vm(args) => vm::run(&args),
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
    fn every_task_has_examples_that_parse_and_its_exit_codes() {
        let mut tasks: Vec<_> = Cli::command().get_subcommands().filter(|task| !task.is_hide_set()).cloned().collect();
        tasks.push(Cli::command());
        for mut task in tasks {
            let help = task.render_long_help().to_string();
            assert!(help.contains("\nExamples:\n") && help.contains("\nExit codes: 0 "), "{help}");
            let examples = help.lines().filter_map(|line| line.strip_prefix("  cargo xtask "));
            for example in examples {
                // What it does stands beside it.
                let line = example.split("  ").next().unwrap_or_default();
                let parsed = Cli::try_parse_from(["cargo xtask"].into_iter().chain(line.split(' ')));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }
}
