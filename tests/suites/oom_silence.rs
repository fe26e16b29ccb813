//! Events that only look like OOM kills, and OOM kills elsewhere, are not reported. `cargo xtask oom-matrix` has more of them.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use krunner_tests::cgroup::Freezer;
use krunner_tests::flaky::Retry;
use krunner_tests::{LaunchMethod, Scenario, ScenarioOutput, host, proc, require};
use nix::sys::signal::Signal;

use crate::oom::{OWN_MIB, TOO_MUCH, TestEnv, VICTIM};

#[track_caller]
fn eat_beside(launch: &LaunchMethod) -> ScenarioOutput {
    let mut command = launch.command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let told = Scenario::start(command).end();
    assert_eq!(told.status.signal(), Some(Signal::SIGKILL as i32), "{told:?}");
    told
}

#[test]
fn exit_137_by_itself() {
    let env = require!(TestEnv::new());
    let status = env.launch().command("sh").args(["-c", "exit 137"]).status().expect("sh starts");
    assert_eq!(status.code(), Some(137));
    env.finish(&[]);
}

#[test]
fn hard_limit_of_cpu_time_is_a_kill_by_the_kernel_but_not_for_memory() {
    let env = require!(TestEnv::new());
    let mut command: Command = env.launch().command("sh");
    // Soft and hard: the kernel itself sends SIGKILL after one second.
    let status = command.args(["-c", "ulimit -t 1; while :; do :; done"]).status().expect("sh starts");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    env.finish(&[]);
}

#[test]
fn pid_namespace_that_ends() {
    require!(host::util_linux());
    let env = require!(TestEnv::new());
    let script = "sleep 600 & sleep 600 & exit 3";
    let status = env.launch().command("unshare").args(["--pid", "--fork", "sh", "-c", script]).status();
    assert_eq!(status.expect("unshare starts").code(), Some(3));
    env.finish(&[]);
}

#[test]
fn mark_without_a_kill() {
    // Whom the kernel looks at first is its own affair; as a rule the one that is as good as dead.
    const ATTEMPTS: usize = 8;
    for attempt in 1..=ATTEMPTS {
        let env = require!(TestEnv::new());
        let freezer = require!(Freezer::scratch(&env.limited));
        let big = env.start(&["eat", "20", "--hold", "--role", "big"]);
        let pid = big.until("ready");
        freezer.freeze(pid);
        // It is as good as dead, and has its memory still: the kernel marks it, and sends nothing.
        proc::signal(pid, Signal::SIGKILL);

        let small = env.start(&["eat", "16", "--role", "small"]).end();

        assert_eq!(big.end().status.signal(), Some(Signal::SIGKILL as i32));
        if small.status.code() == Some(0) {
            assert_eq!(env.limited.oom_kills(), 0, "the kernel counts it as no kill");
            env.finish(&[]);
            return;
        }
        Retry::of_test(&format!("the small one ended with {}", small.status), attempt, ATTEMPTS).record();
    }
    panic!("in {ATTEMPTS} attempts the small one never got the memory of the marked one");
}

#[test]
fn kill_in_a_sibling_cgroup() {
    let mut env = require!(TestEnv::new());
    // The monitor answers for what is below its own cgroup: that one moves into a cgroup beside the kill's.
    let own = env.scratch.limited("own", OWN_MIB);
    env.monitor = krunner_tests::Monitor::start(&LaunchMethod::direct().cgroup(&own));
    assert_eq!(env.monitor.watching()["scope"], "cgroup");
    eat_beside(&LaunchMethod::direct().cgroup(&env.limited));
    assert_eq!(env.limited.oom_kills(), 1);

    let told = eat_beside(&LaunchMethod::direct().cgroup(&own));

    env.monitor.until_report_of(told.pid("victim"));
    assert_eq!(env.monitor.reports().len(), 1, "{:#?}", env.monitor.lines());
}
