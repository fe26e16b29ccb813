//! Kills that are inferred from the counters of the memory cgroup and from `/proc`, without BPF.

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Scenario, binary, require};

use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};

/// A monitor without BPF in this cgroup.
#[track_caller]
fn monitor(launch: &LaunchMethod) -> Monitor {
    let monitor = Monitor::start_program(launch, &binary(), &["--no-bpf"]);
    assert_eq!(monitor.watching()["tracer"], "snapshot", "{}", monitor.watching());
    monitor
}

/// Causes an OOM kill there after a while and returns the victim's PID.
#[track_caller]
fn kill_in(cgroup: &Cgroup, after_ms: &str) -> u32 {
    let mut command = LaunchMethod::direct().cgroup(cgroup).command(VICTIM);
    command.args(["eat", TOO_MUCH, "--after-ms", after_ms]);
    Scenario::start(command).end().pid("victim")
}

#[test]
fn a_cgroup_that_takes_the_place_of_another_is_counted() {
    const ROUNDS: u32 = 6;
    let scratch = require!(Cgroup::scratch());
    let mut monitor = monitor(&LaunchMethod::direct().cgroup(&scratch));
    let mut job = scratch.limited("job-0", LIMIT_MIB);
    for round in 1..=ROUNDS {
        // One goes and one comes between two looks at the parent, whose link count stays the same.
        drop(job);
        job = scratch.limited(&format!("job-{round}"), LIMIT_MIB);
        let victim = kill_in(&job, "600");
        monitor.until_report_of(victim);
    }
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    assert_eq!(monitor.reports().len(), ROUNDS as usize, "{:#?}", monitor.lines());
}
