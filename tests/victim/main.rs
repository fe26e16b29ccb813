//! The helper program of the out-of-memory suites: processes that are killed for memory, in every way that a process
//! can be made, and those that look like it.
//!
//! It tells on stdout, a line each, who is who (`ROLE PID`) and how the processes that it started have ended
//! (`killed PID`, `exited PID`): that is the truth that a monitor is measured by. Pids are those of the mounted `/proc`,
//! so a process in a nested pid namespace tells the pid that the outer one knows it by. It must not know anything of
//! krunner, and never kills.

mod eat;
mod raw;
mod scenes;
mod started;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// Where a program without arguments finds them, one a line.
const ARGS_VARIABLE: &str = "VICTIM_ARGS";

/// So many are alive at a time in a storm. More only fight for page cache, and are killed the slower.
const STORM_AT_ONCE: usize = 16;

const USAGE: &str = "\
victim eat MIB [--after-ms N] [--wait] [--hold [--then MIB]] [--adj N] [--name NAME] [--role ROLE]
    [--unless-child-of PID] [-- ...]
victim thread-eat MIB | leader-gone MIB | clone-vm MIB | orphan MIB
victim crowd ROLE=MIB[:ADJ]...          all but the last hold what they have; the last asks for more
victim bystanders COUNT MIB [AGE_MS]    so many that end while one eats
victim nested-pidns MIB | nested-init MIB | pid-reuse MIB
victim row COUNT MIB PROCS_FILE | storm COUNT MIB PROCS_FILE
victim bare empty|wiped MIB             without a command line
victim no-bpf PROGRAM ARGUMENTS...      runs a program for which bpf(2) is forbidden
victim no-capability NUMBER PROGRAM ARGUMENTS...";

fn main() -> ExitCode {
    be_mortal();
    let args: Vec<OsString> = match env::var(ARGS_VARIABLE) {
        Ok(text) => text.lines().map(OsString::from).collect(),
        Err(_) => env::args_os().skip(1).collect(),
    };
    let Some((scene, args)) = args.split_first() else { return usage() };
    match scene.to_str() {
        Some("eat") => eat::run(args),
        Some("thread-eat") => scenes::thread_eat(mib(args, 0)),
        Some("leader-gone") => scenes::leader_gone(mib(args, 0)),
        Some("clone-vm") => scenes::clone_vm(mib(args, 0)),
        Some("orphan") => scenes::orphan(mib(args, 0)),
        Some("middle") => scenes::middle(mib(args, 0)),
        Some("crowd") => scenes::crowd(args),
        Some("bystanders") => scenes::bystanders(number(args, 0), mib(args, 1), age(args.get(2))),
        Some("nested-pidns") => scenes::nested_pidns(mib(args, 0)),
        Some("nested-init") => scenes::nested_init(mib(args, 0)),
        Some("pid-reuse") => scenes::pid_reuse(mib(args, 0)),
        Some("row") => scenes::many(number(args, 0), 1, mib(args, 1), &args[2]),
        Some("storm") => scenes::many(number(args, 0), STORM_AT_ONCE, mib(args, 1), &args[2]),
        Some("bare") => scenes::bare(&args[0], mib(args, 1)),
        Some("no-bpf") => scenes::no_bpf(args),
        Some("no-capability") => scenes::no_capability(number(args, 0), &args[1..]),
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

/// Whoever started this may be spared by the kernel; its children inherit that (`copy_signal` in kernel/fork.c).
fn be_mortal() {
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
