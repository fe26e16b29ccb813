//! The helper program of the OOM suites. Each scenario creates processes that the OOM killer kills, or
//! processes that only look like victims.
//!
//! It prints one line for the role of each process (`ROLE PID`) and one for the end of each process that it started
//! (`killed PID`, `exited PID`). Monitors are scored against this ground truth. PIDs are those of the mounted `/proc`,
//! so a process in a nested PID namespace prints its PID in the outer one. The program does not depend on
//! krunner and never sends SIGKILL.

#![deny(unsafe_code)]

mod eat;
mod fill;
mod grow;
mod raw;
mod scenarios;
mod started;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// Has the arguments of a process without a command line, one per line.
const ARGS_VARIABLE: &str = "VICTIM_ARGS";

/// Processes alive at a time in a burst. More would only compete for page cache and slow down the kills.
const BURST_AT_ONCE: usize = 16;

const USAGE: &str = "\
victim eat MIB [--after-ms N] [--wait] [--hold [--then MIB]] [--adj N] [--name NAME] [--role ROLE]
    [--unless-child-of PID] [-- ...]
victim thread-eat MIB | leader-gone MIB | clone-vm MIB | orphan MIB
victim group ROLE=MIB[:ADJ]...          all but the last hold their memory; the last allocates more
victim bystanders COUNT MIB [AGE_MS]    COUNT processes exit while one allocates
victim nested-pidns MIB | nested-init MIB
victim row COUNT MIB PROCS_FILE | burst COUNT MIB PROCS_FILE | pid-reuse MIB PROCS_FILE
victim bare empty|wiped MIB             allocates without a command line
victim grow MIB:SECONDS...              grows to each size in the given time, one after the other
victim file-then-eat PATH FILE_MIB MIB | memfd-then-eat SHARED_MIB MIB | pipes-then-eat PIPES_MIB MIB
victim no-bpf PROGRAM ARGUMENTS...      runs a program for which bpf(2) fails
victim no-auxv PROGRAM ARGUMENTS...     runs a program for which prctl(PR_GET_AUXV) fails
victim no-capability NUMBER PROGRAM ARGUMENTS...";

fn main() -> ExitCode {
    reset_oom_score_adj();
    let args: Vec<OsString> = match env::var(ARGS_VARIABLE) {
        Ok(text) => text.lines().map(OsString::from).collect(),
        Err(_) => env::args_os().skip(1).collect(),
    };
    let Some((scenario, args)) = args.split_first() else { return usage() };
    match scenario.to_str() {
        Some("eat") => eat::run(args),
        Some("thread-eat") => scenarios::thread_eat(mib(args, 0)),
        Some("leader-gone") => scenarios::leader_gone(mib(args, 0)),
        Some("kill-zombie") => scenarios::kill_zombie(number(args, 0)),
        Some("clone-vm") => scenarios::clone_vm(mib(args, 0)),
        Some("orphan") => scenarios::orphan(mib(args, 0)),
        Some("middle") => scenarios::middle(mib(args, 0)),
        Some("group") => scenarios::group(args),
        Some("bystanders") => scenarios::bystanders(number(args, 0), mib(args, 1), age(args.get(2))),
        Some("nested-pidns") => scenarios::nested_pidns(mib(args, 0)),
        Some("nested-init") => scenarios::nested_init(mib(args, 0)),
        Some("pid-reuse") => scenarios::pid_reuse(mib(args, 0), &args[1]),
        Some("row") => scenarios::many(number(args, 0), 1, mib(args, 1), &args[2]),
        Some("burst") => scenarios::many(number(args, 0), BURST_AT_ONCE, mib(args, 1), &args[2]),
        Some("bare") => scenarios::bare(&args[0], mib(args, 1)),
        Some("grow") => grow::run(args),
        Some("file-then-eat") => fill::file_then_eat(args),
        Some("memfd-then-eat") => fill::memfd_then_eat(args),
        Some("pipes-then-eat") => fill::pipes_then_eat(args),
        Some("no-bpf") => scenarios::no_bpf(args),
        Some("no-auxv") => scenarios::no_auxv(args),
        Some("no-capability") => scenarios::no_capability(number(args, 0), &args[1..]),
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

/// The parent may have a negative `oom_score_adj`, which children inherit (`copy_signal` in kernel/fork.c).
fn reset_oom_score_adj() {
    let score = "/proc/self/oom_score_adj";
    if fs::read_to_string(score).is_ok_and(|adjusted| adjusted.starts_with('-')) {
        fs::write(score, "0").expect("oom_score_adj");
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn mib(args: &[OsString], index: usize) -> usize {
    number(args, index)
}

fn age(arg: Option<&OsString>) -> Duration {
    let millis = arg.map_or(0, |arg| arg.to_str().and_then(|text| text.parse().ok()).expect("AGE_MS"));
    Duration::from_millis(millis)
}

fn number(args: &[OsString], index: usize) -> usize {
    let text = args.get(index).and_then(|arg| arg.to_str()).unwrap_or_else(|| panic!("a number missing\n{USAGE}"));
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}
