//! SIGTERM and SIGINT to the runner: what becomes of the step, of its output and of its processes.

use std::time::{Duration, Instant};

use krunner_tests::zmtp::Peer;
use krunner_tests::{Raw, Runner, host, proc, require, wait};
use nix::sys::signal::Signal;
use nix::unistd::getuid;
use serde_json::Value;

use crate::{announce, app, lines, wait_for_file};

/// The contract's limit for all of a stop.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// What a child gets between SIGTERM and SIGKILL.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

const FOREVER: &str = "while :; do sleep 0.02; done";

/// A session whose exec step runs `command` and has got as far as announcing itself.
fn running(command: &str) -> (Runner, Raw) {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", command);
    runner.wait_for("started");
    (runner, raw)
}

/// Waits for the runner's end and checks how it ended.
#[track_caller]
fn assert_stopped(runner: &mut Runner, since: Instant) {
    let status = runner.wait_exit();
    let took = since.elapsed();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < LIMIT, "the stop took {took:?}");
    let left = runner.processes();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn stop_with(signal: Signal) {
    let trap = "trap 'echo told; exit 5' TERM";
    let (mut runner, mut raw) = running(&format!("{trap}; {}; {FOREVER}", announce("started")));

    let since = Instant::now();
    runner.signal(signal);
    let rest = raw.read_to_end();

    assert_eq!(rest.stdout(), "told\n", "the child is told and its last output are sent");
    assert_eq!(rest.codes(), [("finished", 5)]);
    assert_stopped(&mut runner, since);
}

#[test]
fn sigterm_stops_the_runner_and_its_child() {
    stop_with(Signal::SIGTERM);
}

#[test]
fn sigint_stops_the_runner_and_its_child() {
    stop_with(Signal::SIGINT);
}

/// How the session ended, as it noted itself.
fn reason_noted(runner: &Runner) -> String {
    let end: Value = serde_json::from_str(&runner.wait_for(".logs/last-end.json")).expect("JSON");
    end["reason"].as_str().expect("a reason").to_owned()
}

#[test]
fn program_that_stops_the_runner_is_named() {
    let mut runner = app().folder("home/work/.logs").start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "sh -c 'echo $$; kill $0; sleep 1000' $PPID");

    let run = raw.read_to_end();

    let expected = format!("SIGTERM from PID {} (sh, uid {})", run.stdout().trim_end(), getuid());
    let line = runner.wait_for_log(&["shutting down: ", &expected]);
    assert!(run.stderr().contains(&line), "the user sees it, too: {}", run.stderr());
    assert!(runner.wait_exit().success());
    assert_eq!(reason_noted(&runner), expected);
}

/// A session whose runner is the first process of a PID namespace.
fn in_namespace() -> (Runner, Raw) {
    let namespaces = ["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"];
    let runner = app().folder("home/work/.logs").prefix(&namespaces).start();
    let mut raw = Raw::connect(&runner);
    raw.sync();
    (runner, raw)
}

#[test]
fn users_pkill_is_named() {
    require!(host::root().and_then(|()| host::util_linux()).and_then(|()| host::program("pkill")));
    let (mut runner, mut raw) = in_namespace();

    // It prints what it has killed into a full pipe: it has not exited when the runner looks, on a busy machine either.
    raw.op("exec", "(head -c 65536 /dev/zero; pkill -e -f kernel) | sleep 1000");

    assert!(runner.wait_exit().success());
    let reason = reason_noted(&runner);
    assert!(reason.starts_with("SIGTERM from PID ") && reason.ends_with(" (pkill, uid 0)"), "{reason}");
}

#[test]
fn signal_from_outside_the_container_is_one() {
    require!(host::root().and_then(|()| host::util_linux()));
    let (mut runner, _raw) = in_namespace();
    let first_process = proc::children(runner.pid())[0];

    proc::signal(first_process, Signal::SIGTERM);

    assert!(runner.wait_exit().success());
    assert_eq!(reason_noted(&runner), "SIGTERM from outside this container (uid 0)");
    runner.wait_for_log(&["shutting down: SIGTERM from outside this container"]);
}

#[test]
fn step_cut_short_is_never_a_success() {
    let (mut runner, mut raw) = running(&format!("trap 'exit 0' TERM; {}; {FOREVER}", announce("started")));
    raw.op("exec", "echo not reached");
    raw.op("clean", "echo not reached");
    raw.sync();

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    let rest = raw.read_to_end();

    let cancelled = [("finished", -15), ("clean-finished", -15)];
    assert_eq!(rest.codes(), [&[("finished", -15)], &cancelled[..]].concat(), "no success, and all are answered");
    assert_eq!(rest.stdout(), "", "no queued step is begun");
    runner.wait_for_log(&["2 queued steps cancelled: the runner is shutting down"]);
    assert_stopped(&mut runner, since);
}

#[test]
fn child_that_ignores_sigterm_is_killed_after_the_grace() {
    let (mut runner, mut raw) = running(&format!("trap '' TERM; {}; {FOREVER}", announce("started")));

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    let rest = raw.read_to_end();

    assert_eq!(rest.codes(), [("finished", -9)]);
    assert_stopped(&mut runner, since);
    let took = since.elapsed();
    assert!(took >= GRACE.mul_f64(0.9), "killed after {took:?} already");
}

#[test]
fn whole_group_is_stopped() {
    let inner = format!("trap '' TERM; {FOREVER}");
    let command = format!("sh -c \"{inner}\" & sh -c \"{inner}\" | cat & {}; {FOREVER}", announce("started"));
    let (mut runner, mut raw) = running(&command);

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    let rest = raw.read_to_end();

    assert_eq!(rest.codes(), [("finished", -15)]);
    assert_stopped(&mut runner, since);
}

#[test]
fn everything_written_before_the_end_is_flushed() {
    let trap = "trap 'seq 1 200000; exit 5' TERM";
    let (mut runner, mut raw) = running(&format!("seq 1 200000; {trap}; {}; {FOREVER}", announce("started")));

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    let rest = raw.read_to_end();

    let expected = lines((1..=200_000).chain(1..=200_000));
    assert!(rest.stdout() == expected, "{} bytes arrived", rest.stdout().len());
    assert_eq!(rest.codes(), [("finished", 5)]);
    assert_stopped(&mut runner, since);
}

#[test]
fn second_signal_ends_the_runner_at_once() {
    let trap = "trap 'echo > told' TERM";
    let (mut runner, _raw) = running(&format!("{trap}; {}; {FOREVER}", announce("started")));

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    runner.wait_for("told");
    runner.signal(Signal::SIGTERM);
    runner.wait_exit();

    let took = since.elapsed();
    assert!(took < GRACE, "the child's grace was waited for: {took:?}");
}

#[test]
fn idle_runner_stops_cleanly() {
    let mut runner = app().start();
    let mut raw = Raw::connect(&runner);
    raw.sync();

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    let rest = raw.read_to_end();

    assert_eq!(rest.codes(), []);
    assert_stopped(&mut runner, since);
}

#[test]
fn stop_does_not_wait_for_an_agent_that_is_not_there() {
    let mut runner = app().start();
    let mut push = Peer::connect(runner.ports().0, "PUSH");
    push.send(&[b"exec", format!("seq 1 10000; {}; {FOREVER}", announce("started")).as_bytes()]);
    runner.wait_for("started");

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);

    assert_stopped(&mut runner, since);
}

#[test]
fn stop_does_not_wait_for_an_agent_that_has_stalled() {
    let mut runner = app().start();
    let (replin, replout) = runner.ports();
    let _pull = Peer::connect_narrow(replout, 16 * 1024);
    let mut push = Peer::connect(replin, "PUSH");
    push.send(&[b"exec", b"exec yes"]);
    let child = runner.wait_for_program("yes", 1)[0];
    wait::until_stalled("the child", || proc::written_bytes(child));

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);

    assert_stopped(&mut runner, since);
}

#[test]
fn stop_during_the_bootstrap_script() {
    let script = format!("{}\n{}\n", announce("started"), wait_for_file("never"));
    let mut runner = app().file("home/work/bootstrap.sh", script).start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "echo not reached");
    runner.wait_for("started");
    // Ops are taken in their order.
    raw.op("status", "now");
    raw.read_until(|message| message.kind == "status");

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    let rest = raw.read_to_end();

    assert_eq!((rest.stdout().as_str(), rest.codes()), ("", vec![("finished", -15)]), "answered without being begun");
    runner.wait_for_log(&["1 queued steps cancelled: the runner is shutting down"]);
    assert_stopped(&mut runner, since);
}
