//! What the eBPF programs themselves log: rare events, under `--debug` only.

use std::process::Command;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Runner, Setup, proc, require, wait};
use nix::sys::signal::Signal;

use crate::app;
use crate::limited_session::{Limited, Plan, Tracer};
use crate::oom::LIMIT_MIB;

/// How a line that a program wrote begins in the runner's log.
const FROM_PROGRAM: &str = "app-kernel: eBPF: ";

/// The ring buffers of records: kills, and all others.
const RECORDS_BYTES: [u64; 2] = [256 * 1024; 2];

/// One page, the smallest that there is.
const LOG_BYTES: u64 = 4096;

/// A session in a cgroup of its own.
struct TestEnv {
    runner: Runner,
    scratch: Cgroup,
}

impl TestEnv {
    fn start(setup: Setup) -> Result<Self, String> {
        let scratch = Cgroup::scratch()?;
        let launch = LaunchMethod::direct().cgroup(&scratch);
        let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
        let runner = setup.prefix(&links).start();
        runner.settle();
        wait::until_true("BPF is attached", || proc::has_bpf(runner.pid()));
        Ok(Self { runner, scratch })
    }

    /// More execs than the ring buffer of processes holds, while the runner does not read it.
    fn overflow(&self) {
        // An exec takes some 300 bytes of the ring buffer's 256 KiB.
        const EXECS: u64 = 2000;
        proc::signal(self.runner.pid(), Signal::SIGSTOP);
        let line = format!("i=0; while [ $i -lt {EXECS} ]; do /bin/true; i=$((i+1)); done");
        let status = LaunchMethod::direct().cgroup(&self.scratch).command("sh").args(["-c", &line]).status();
        proc::signal(self.runner.pid(), Signal::SIGCONT);
        assert!(status.expect("sh starts").success());
        // The count comes by another way than the line, and after it.
        self.runner.wait_for_log(&["records of the OOM tracer were dropped"]);
    }
}

#[test]
fn debug_shows_what_programs_log() {
    let env = require!(TestEnv::start(app().debug()));
    assert_eq!(proc::ring_buffers(env.runner.pid()), [[LOG_BYTES].as_slice(), &RECORDS_BYTES].concat());

    env.overflow();

    let line = env.runner.wait_for_log(&[FROM_PROGRAM, "dropped the record of", "ring buffer PROCESSES is full"]);
    assert!(line.contains("the record of a fork") || line.contains("the record of an exec"), "{line}");
    let text = env.runner.stderr();
    // One, and one more for each second in which this machine let no process start.
    let lines = text.lines().filter(|line| line.starts_with(FROM_PROGRAM)).count();
    assert!((1..10).contains(&lines), "{text}");
}

#[test]
fn without_debug_programs_log_nothing() {
    let env = require!(TestEnv::start(app()));
    assert_eq!(proc::ring_buffers(env.runner.pid()), RECORDS_BYTES);

    env.overflow();

    let text = env.runner.stderr();
    assert!(!text.contains(FROM_PROGRAM), "{text}");
}

/// The level of the session's pid namespace is learnt from the first of its own processes that does anything.
#[test]
fn task_outside_of_our_pid_namespace_teaches_nothing() {
    let plan = Plan::new(Tracer::Bpf, Limited::Below, LIMIT_MIB).setup(Setup::debug);
    let session = require!(plan.start());

    assert!(Command::new("true").status().expect("it starts").success());

    let line = session.runner.wait_for_log(&[FROM_PROGRAM, "is not ours"]);
    assert!(line.contains("a task at PID namespace level "), "{line}");
}
