//! Two containers side by side: each session reports its own kills, and neither names the other's processes.

use std::process::Command;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, HELPER, Spec};
use krunner_tests::{Scenario, host, require};

use crate::contained::{Contained, all, plain, with_bpf};
use crate::oom::{TOO_MUCH, VICTIM};
use crate::oom_containers::guesses_after;

/// In the command line of processes outside both containers.
const STRANGER: &str = "tenant-b";

/// Two tenants at once: each session reports its own kill and nothing of the other's.
#[track_caller]
fn keep_apart(spec: &Spec, confidence: &str) {
    const TENANTS: [&str; 2] = ["tenant-a", STRANGER];
    let first = match container::available().and_then(|()| Cgroup::for_container()) {
        Ok(cgroup) => cgroup,
        Err(reason) => return host::skip("suites::oom_tenants::keep_apart::here", &reason),
    };
    let second = first.beside().expect("a cgroup beside the first");
    let mut sessions = [first, second].map(|cgroup| Contained::start_in(spec, cgroup));
    for session in &sessions {
        session.until_it_watches();
    }
    for (session, tenant) in sessions.iter_mut().zip(TENANTS) {
        // One that lives on, two that die.
        let hog = format!("{HELPER} eat {TOO_MUCH} --after-ms 300 -- {tenant}");
        session.raw.op("exec", &format!("sh -c 'sleep 600; : {tenant}' & {hog}; {hog}; kill $!"));
    }
    for (session, tenant) in sessions.iter_mut().zip(TENANTS) {
        let told = session.raw.read_runs(1).stdout();
        session.victims = all(&told, "victim");
        assert_eq!((session.victims.len(), session.container.cgroup().oom_kills()), (2, 2), "{tenant}: {told}");
    }
    let tracer = if confidence == "confirmed" { "bpf" } else { "snapshot" };
    for ((session, own), other) in sessions.iter_mut().zip(TENANTS).zip(TENANTS.iter().rev()) {
        session.assert_reported_only_victims(tracer, confidence);
        let told = [session.runner.stderr(), session.runner.read(".logs/oom.jsonl").unwrap_or_default()].concat();
        assert!(told.contains(own) && !told.contains(other), "{own}: {told}");
    }
}

#[test]
fn two_with_bpf() {
    keep_apart(&with_bpf(), "confirmed");
}

#[test]
fn two_without_bpf() {
    keep_apart(&plain(), "inferred");
}

#[test]
fn two_in_the_hosts_pid_namespace_with_bpf() {
    keep_apart(&with_bpf().host_pids(), "confirmed");
}

#[test]
fn two_that_see_their_cgroup_as_the_top_with_bpf() {
    keep_apart(&with_bpf().host_pids().cgroup_namespace(), "confirmed");
}

#[test]
fn two_that_see_their_cgroup_as_the_top_without_bpf() {
    keep_apart(&plain().host_pids().cgroup_namespace(), "inferred");
}

#[test]
fn two_in_the_hosts_pid_namespace_without_bpf() {
    keep_apart(&plain().host_pids(), "inferred");
}

#[test]
fn hosts_pid_namespace_and_no_cgroups_is_no_way_to_name_others() {
    let session = require!(Contained::start(&plain().host_pids().no_cgroups()));
    // Other people's processes, larger than any in there: one lives on, one ends just before the agent tells of a kill.
    let hoard = || {
        let mut command = Command::new(VICTIM);
        command.args(["eat", "200", "--hold", "--", STRANGER]);
        let scenario = Scenario::start(command);
        scenario.until("ready");
        scenario
    };
    let (_stays, goes) = (hoard(), hoard());
    let text =
        guesses_after(session, "a memory cgroup is required to identify krunner's own processes", || drop(goes.end()));
    assert!(!text.contains(STRANGER), "{text}");
}
