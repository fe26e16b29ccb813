//! Kills that are inferred from the counters of the memory cgroup and from `/proc`, without BPF.

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{Monitor, Scene, Way, binary, require};

use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};

/// A monitor without BPF in this cgroup.
#[track_caller]
fn monitor(way: &Way) -> Monitor {
    let monitor = Monitor::start_program(way, &binary(), &["--no-bpf"]);
    assert_eq!(monitor.watching()["tracer"], "snapshot", "{}", monitor.watching());
    monitor
}

/// Has one killed in there some time from now; its pid.
#[track_caller]
fn kill_in(cgroup: &Cgroup, after_ms: &str) -> u32 {
    let mut command = Way::here().cgroup(cgroup).command(VICTIM);
    command.args(["eat", TOO_MUCH, "--after-ms", after_ms]);
    Scene::start(command).end().pid("victim")
}

#[test]
fn a_cgroup_that_takes_the_place_of_another_is_counted() {
    const ROUNDS: u32 = 6;
    let scratch = require!(Cgroup::scratch());
    let mut monitor = monitor(&Way::here().cgroup(&scratch));
    let mut job = scratch.limited("job-0", LIMIT_MIB);
    for round in 1..=ROUNDS {
        // One goes and one comes between two looks at the parent, whose link count stays the same.
        drop(job);
        job = scratch.limited(&format!("job-{round}"), LIMIT_MIB);
        let victim = kill_in(&job, "600");
        monitor.until_report_of(victim);
    }
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    assert_eq!(monitor.reports().len(), ROUNDS as usize, "{:#?}", monitor.said());
}
