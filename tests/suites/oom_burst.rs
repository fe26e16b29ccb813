//! Many OOM kills: consecutive ones are all reported; in a burst all are counted.

use std::collections::BTreeMap;

use krunner_tests::{proc, require};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::oom::TestEnv;

/// Records of signals that a ring buffer of 256 KiB has no room for.
pub(crate) const NO_ROOM_FOR: &str = "5000";

/// The number of reports for each pair of PID and start time.
fn told(reports: &[&Value]) -> BTreeMap<(u64, u64), usize> {
    let mut told = BTreeMap::new();
    for report in reports {
        let number = |field: &str| report["victim"][field].as_u64().expect("a number");
        *told.entry((number("pid"), number("start_ticks"))).or_default() += 1;
    }
    told
}

#[test]
fn a_burst_is_reported_in_part_and_counted_in_full() {
    const KILLS: usize = 300;
    /// The limits of full reports: in a burst, and in each second after it.
    const AT_ONCE: u64 = 128;
    const PER_SECOND: u64 = 10;
    let mut env = require!(TestEnv::new());
    let scenario = env.run_many("burst", KILLS);
    let killed = scenario.all("killed");
    let counted = env.limited.oom_kills();
    println!("{} of {KILLS} were killed; the kernel counts {counted}", killed.len());
    assert!(killed.len() > KILLS / 2, "a burst: {scenario:?}");

    let full_and_suppressed = |said: &[Value]| {
        let full = said.iter().filter(|line| line["event"] == "oom_kill").count() as u64;
        let counts = said.iter().filter(|line| line["event"] == "oom_kills_suppressed");
        full + counts.map(|line| line["count"].as_u64().expect("a count")).sum::<u64>()
    };
    let truth = killed.len() as u64;
    let monitor = &mut env.monitor;
    while full_and_suppressed(monitor.lines()) < truth {
        let (so_far, of) = (full_and_suppressed(monitor.lines()), truth);
        monitor.until(&format!("the rest of the burst, {so_far} of {of}"), |_| true);
    }
    // The marker may be suppressed as part of the burst, or reported once.
    env.run(&["eat", crate::oom::TOO_MUCH]);
    let monitor = &mut env.monitor;
    while full_and_suppressed(monitor.lines()) < truth + 1 {
        monitor.until("the marker", |_| true);
    }
    assert_eq!(monitor.end().code(), Some(0));

    assert_eq!(full_and_suppressed(monitor.lines()), truth + 1, "counted once each");
    let reports = monitor.reports();
    // A slow machine takes longer for the burst, and more of it is reported. Two seconds for the way of a report.
    let killed_at = |report: &&Value| report["killed_at_boot_ns"].as_u64().expect("a time");
    let (first, last) = (reports.iter().map(killed_at).min(), reports.iter().map(killed_at).max());
    let seconds = (last.expect("a report") - first.expect("a report")) / 1_000_000_000 + 2;
    let (full, most) = (reports.len() as u64, AT_ONCE + PER_SECOND * seconds);
    assert!(full <= most, "{full} of {truth} kills were reported in full, of which {most} may be");
    let told = told(&reports);
    assert!(!told.is_empty() && told.values().all(|&times| times == 1), "{told:?}");
    for line in monitor.lines().iter().filter(|line| line["event"] == "oom_kills_suppressed") {
        let names = line["by_name"].as_object().expect("names");
        let sum: u64 = names.values().map(|count| count.as_u64().expect("a count")).sum();
        assert_eq!(line["count"], sum, "{line}");
        // Some die before their exec.
        assert!(names.keys().all(|name| name == "victim" || name == "sh"), "{line}");
    }
    let told_pids = told.keys().map(|(pid, _)| *pid);
    let strangers: Vec<_> = told_pids.filter(|pid| !killed.iter().any(|&killed| u64::from(killed) == *pid)).collect();
    assert!(strangers.len() <= 1, "only the marker was reported besides: {strangers:?}");
}

/// Anyone can send them, as many as they like.
#[test]
fn signals_without_an_effect_take_no_room() {
    let mut env = require!(TestEnv::new());
    proc::signal(env.monitor.process(), Signal::SIGSTOP);
    let flood =
        env.inside().cgroup(&env.scratch).command(crate::oom::VICTIM).args(["kill-zombie", NO_ROOM_FOR]).status();
    assert!(flood.expect("it starts").success());
    proc::signal(env.monitor.process(), Signal::SIGCONT);
    env.run(&["eat", crate::oom::TOO_MUCH]);
    env.monitor.until_reports(1);
    let lost: Vec<_> = env.monitor.lines().iter().filter(|line| line["event"] == "records_lost").collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn records_that_find_no_room_are_counted_and_the_next_kill_is_told() {
    // An exec takes some 300 bytes of the ring's 256 KiB.
    const EXECS: u64 = 3000;
    let mut env = require!(TestEnv::new());
    proc::signal(env.monitor.process(), Signal::SIGSTOP);
    let line = format!("i=0; while [ $i -lt {EXECS} ]; do /bin/true; i=$((i+1)); done");
    let status = env.launch().command("sh").args(["-c", &line]).status();
    proc::signal(env.monitor.process(), Signal::SIGCONT);
    assert!(status.expect("sh starts").success());

    env.monitor.until("the count of what was lost", |line| line["event"] == "records_lost");
    let victim = env.marker();

    let report = env.monitor.reports()[0];
    assert_eq!((&report["victim"]["pid"], &report["confidence"]), (&victim.into(), &"confirmed".into()));
    let lost = report["lost_records"].as_u64().expect("a count");
    assert!((EXECS / 10..2 * EXECS).contains(&lost), "{lost} of {EXECS} forks and execs each");
}

#[test]
fn kills_during_a_flood_of_forks_and_execs_are_all_told() {
    // More than fit into the ring buffer of forks and execs, before and after the kills.
    const EXECS: u64 = 1500;
    const KILLS: usize = 5;
    let mut env = require!(TestEnv::new());
    proc::signal(env.monitor.process(), Signal::SIGSTOP);
    let flood = || {
        let line = format!("i=0; while [ $i -lt {EXECS} ]; do /bin/true; i=$((i+1)); done");
        let status = env.launch().command("sh").args(["-c", &line]).status();
        assert!(status.expect("sh starts").success());
    };
    flood();
    let victims: Vec<u32> = (0..KILLS).map(|_| env.run(&["eat", crate::oom::TOO_MUCH]).pid("victim")).collect();
    flood();
    proc::signal(env.monitor.process(), Signal::SIGCONT);

    for victim in victims {
        env.monitor.until_report_of(victim);
        let reports = env.monitor.reports();
        let report = reports.iter().find(|report| report["victim"]["pid"] == victim).expect("it was told of");
        assert_eq!(report["confidence"], "confirmed", "{report}");
    }
}

#[test]
fn kills_whose_records_were_dropped_are_counted() {
    // SIGKILL and exit take 190 bytes of the 256 KiB for kills.
    const KILLED: u64 = 1800;
    let mut env = require!(TestEnv::new());
    proc::signal(env.monitor.process(), Signal::SIGSTOP);
    let line =
        format!("i=0; while [ $i -lt {KILLED} ]; do sh -c 'kill -9 $$' 2>/dev/null; i=$((i+1)); done 2>/dev/null");
    let status = env.inside().cgroup(&env.scratch).command("sh").args(["-c", &line]).status();
    assert!(status.expect("sh starts").success());
    let victim = env.run(&["eat", crate::oom::TOO_MUCH]).pid("victim");
    proc::signal(env.monitor.process(), Signal::SIGCONT);

    env.monitor.until("the count of what is missing", |line| line["event"] == "oom_kills_unattributed");

    let missing = env.monitor.lines().iter().find(|line| line["event"] == "oom_kills_unattributed");
    assert_eq!(missing.expect("just heard")["count"], 1);
    env.marker();
    let reports = env.monitor.reports();
    assert!(reports.iter().all(|report| report["victim"]["pid"] != victim), "its records were dropped: {reports:?}");
    assert_eq!(reports.len(), 1, "no other process is reported: {reports:?}");
}
