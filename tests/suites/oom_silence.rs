//! What looks like a kill for memory and is none, and kills that are other people's: nothing is told of them.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use krunner_tests::cgroup::Freezer;
use krunner_tests::{Scene, Told, Way, World, host, proc, require};
use nix::sys::signal::Signal;

use crate::oom::{Field, LIMIT_MIB, OWN_MIB, TOO_MUCH, VICTIM};

#[track_caller]
fn eat_beside(way: &Way) -> Told {
    let mut command = way.command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let told = Scene::start(command).end();
    assert_eq!(told.status.signal(), Some(Signal::SIGKILL as i32), "{told:?}");
    told
}

#[test]
fn kill_9_by_a_user() {
    let field = require!(Field::new());
    let hog = field.start(&["eat", "16", "--hold"]);
    let pid = hog.until("ready");
    proc::signal(pid, Signal::SIGKILL);
    assert_eq!(hog.end().status.signal(), Some(Signal::SIGKILL as i32));
    assert_eq!(field.limited.oom_kills(), 0);
    field.finish(&[]);
}

#[test]
fn kill_9_in_a_container() {
    let field = require!(Field::in_world());
    let mut command = field.way().command("sh");
    command.args(["-c", "sleep 600 & kill -9 $!; wait $!; echo code $?"]);
    let told = Scene::start(command).end();
    assert_eq!(told.pid("code"), 137);
    field.finish(&[]);
}

#[test]
fn exit_137_by_itself() {
    let field = require!(Field::new());
    let status = field.way().command("sh").args(["-c", "exit 137"]).status().expect("sh starts");
    assert_eq!(status.code(), Some(137));
    field.finish(&[]);
}

#[test]
fn bystanders_alone() {
    let field = require!(Field::new());
    let told = field.start(&["bystanders", "20", "1"]).end();
    assert_eq!((told.all("exited").len(), told.all("killed").len()), (21, 0), "{told:?}");
    field.finish(&[]);
}

#[test]
fn hard_limit_of_cpu_time_is_a_kill_by_the_kernel_but_not_for_memory() {
    let field = require!(Field::new());
    let mut command: Command = field.way().command("sh");
    // Soft and hard: the kernel itself sends SIGKILL after one second.
    let status = command.args(["-c", "ulimit -t 1; while :; do :; done"]).status().expect("sh starts");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    field.finish(&[]);
}

#[test]
fn pid_namespace_that_ends() {
    require!(host::util_linux());
    let field = require!(Field::new());
    let script = "sleep 600 & sleep 600 & exit 3";
    let status = field.way().command("unshare").args(["--pid", "--fork", "sh", "-c", script]).status();
    assert_eq!(status.expect("unshare starts").code(), Some(3));
    field.finish(&[]);
}

#[test]
fn mark_without_a_kill() {
    // Whom the kernel looks at first is its own affair; as a rule the one that is as good as dead.
    const ATTEMPTS: usize = 8;
    for _ in 0..ATTEMPTS {
        let field = require!(Field::new());
        let freezer = require!(Freezer::scratch(&field.limited));
        let big = field.start(&["eat", "20", "--hold", "--role", "big"]);
        let pid = big.until("ready");
        freezer.freeze(pid);
        // It is as good as dead, and has its memory still: the kernel marks it, and sends nothing.
        proc::signal(pid, Signal::SIGKILL);

        let small = field.start(&["eat", "16", "--role", "small"]).end();

        assert_eq!(big.end().status.signal(), Some(Signal::SIGKILL as i32));
        if small.status.code() == Some(0) {
            assert_eq!(field.limited.oom_kills(), 0, "the kernel counts it as no kill");
            field.finish(&[]);
            return;
        }
    }
    panic!("in {ATTEMPTS} attempts the small one never got the memory of the marked one");
}

#[test]
fn kill_in_a_sibling_namespace() {
    let field = require!(Field::in_world());
    let sibling = World::new();
    let other = field.scratch.limited("other", LIMIT_MIB);
    eat_beside(&Way::here().world(&sibling).cgroup(&other));
    assert_eq!(other.oom_kills(), 1);
    drop(sibling);
    field.finish(&[]);
}

#[test]
fn kill_in_the_namespace_above() {
    let field = require!(Field::in_world());
    let other = field.scratch.limited("other", LIMIT_MIB);
    eat_beside(&Way::here().cgroup(&other));
    assert_eq!(other.oom_kills(), 1);
    field.finish(&[]);
}

#[test]
fn kill_in_a_sibling_cgroup() {
    let mut field = require!(Field::new());
    // The monitor answers for what is below its own cgroup: that one moves into a cgroup beside the kill's.
    let own = field.scratch.limited("own", OWN_MIB);
    field.monitor = krunner_tests::Monitor::start(&Way::here().cgroup(&own));
    assert_eq!(field.monitor.watching()["scope"], "cgroup");
    eat_beside(&Way::here().cgroup(&field.limited));
    assert_eq!(field.limited.oom_kills(), 1);

    let told = eat_beside(&Way::here().cgroup(&own));

    field.monitor.until_report_of(told.pid("victim"));
    assert_eq!(field.monitor.reports().len(), 1, "{:#?}", field.monitor.said());
}
