//! SIGKILLs of the machine's user-space OOM killers in a plain container. No counter shows them, and only `krunner node` sees the
//! sender.

use std::path::Path;

use krunner_tests::container::Spec;
use krunner_tests::node::Node;
use krunner_tests::{Transcript, proc, require, wait};
use serde_json::Value;

use crate::contained::{Contained, plain};
use crate::node::node_and_session;
use crate::oom::TOO_MUCH;
use crate::oom_phrases::{HEADING, NOT_THE_OOM_KILLER, OOM_DAEMON, REPORT, SIGKILL_FROM};

/// The victim's name in the node's log and to [`proc::comm`].
const VICTIM: &str = "sleep";

/// The PID on the host of the step's only process with the victim's name.
#[track_caller]
fn victim(session: &Contained) -> u32 {
    let is_below = |pid: u32| {
        let mut above = std::iter::successors(proc::parent(pid), |pid| proc::parent(*pid));
        above.any(|pid| pid == session.container.pid())
    };
    let is_victim = |pid: &u32| proc::comm(*pid).as_deref() == Some(VICTIM) && is_below(*pid);
    wait::until("the victim sleeps", || proc::all().find(is_victim))
}

/// Runs a step until `kill` has ended its victim.
#[track_caller]
fn killed(session: &mut Contained, step: &str, kill: impl FnOnce(u32)) -> Transcript {
    session.raw.op("exec", step);
    kill(victim(session));
    session.raw.read_runs(1)
}

/// The kills by user-space OOM killers in this container, in the node's log.
fn logged(node: &Node, session: &Contained) -> Vec<Value> {
    let path = session.container.cgroup().path_in_hierarchy();
    let is_inside = |line: &Value| line["cgroup"]["path"].as_str().is_some_and(|at| Path::new(at).starts_with(&path));
    node.lines().into_iter().filter(|line| line["event"] == "user_space_oom_kill" && is_inside(line)).collect()
}

#[test]
fn step_that_the_machines_oom_daemon_kills_says_so() {
    for daemon in ["earlyoom", "systemd-oomd"] {
        let (mut session, node) = require!(node_and_session(plain));
        for (step, code) in [("exec sleep 600", -9), ("sleep 600; exit $?", 137)] {
            let run = killed(&mut session, step, |pid| proc::kill_as(daemon, pid));
            let text = run.stderr();
            assert_eq!(run.codes(), [("finished", code)], "{text}");
            let missing = [SIGKILL_FROM, daemon, OOM_DAEMON].into_iter().find(|words| !text.contains(words));
            assert_eq!(missing, None, "{step}: {text}");
            assert!(!text.contains(HEADING) && !text.contains(REPORT), "no OOM kill of the kernel: {text}");
        }
        assert_eq!(session.reports(), [] as [Value; 0]);
        let two = || Some(logged(&node, &session)).filter(|lines| lines.len() == 2);
        for line in wait::until("two lines in the node's log", two) {
            assert_eq!((&line["daemon"], &line["victim"]["name"]), (&daemon.into(), &VICTIM.into()), "{line}");
            assert!(line["owner"].is_object() && !line.to_string().contains("cmdline"), "{line}");
        }
    }
}

/// Anyone may give a program this name. In a container, and for a victim in the sender's own cgroup, it says nothing about the
/// machine, and takes no room in the ring buffer.
fn is_not_taken_for_the_machines(spec: fn() -> Spec) {
    let (mut session, node) = require!(node_and_session(spec));
    session.raw.op("exec", "cp /bin/sh earlyoom; sleep 600 & ./earlyoom -c \"kill -9 $!\"; wait $!");
    let run = session.raw.read_runs(1);
    let text = run.stderr();
    assert_eq!(run.codes(), [("finished", 137)], "{text}");
    assert!(text.contains(NOT_THE_OOM_KILLER) && !text.contains(OOM_DAEMON), "{text}");
    // Later than any line about it.
    session.kill(&format!("eat {TOO_MUCH}"), 1);
    wait::until_true("the report", || !session.reports().is_empty());
    assert_eq!(logged(&node, &session), [] as [Value; 0]);
}

#[test]
fn program_of_that_name_in_a_container_is_not_taken_for_the_machines() {
    is_not_taken_for_the_machines(plain);
}

#[test]
fn program_of_that_name_in_the_hosts_pid_namespace_is_not_taken_for_the_machines() {
    is_not_taken_for_the_machines(|| plain().host_pids());
}
