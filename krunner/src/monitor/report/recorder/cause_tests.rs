//! The rules for causes, each with a recording that it decides.

use super::*;
use crate::monitor::report::recorder::format::DatedRecord;
use crate::monitor::report::recorder::record::RecordingHeader;

const SECOND_NS: u64 = 1_000_000_000;

/// A recording with memory at these percentages of the limit, one second apart.
fn recording(percents: &[u64], events: Vec<Record>) -> Recording {
    let dated = |sequence: u64, record| DatedRecord {
        sequence,
        at_boot_ns: sequence * SECOND_NS,
        unix_ns: sequence * SECOND_NS,
        record,
    };
    let sample = |(percent, second): (&u64, u64)| {
        let sample = MemorySample {
            at_boot_ns: second * SECOND_NS,
            usage_bytes: percent << 20,
            inactive_file_bytes: None,
            limit_bytes: Some(100 << 20),
            processes: Vec::new(),
        };
        dated(second, Record::Sample(sample))
    };
    let header =
        RecordingHeader { boot_id: "one".into(), cgroup_id: Some(7), oom_kill_count: Some(3), ..Default::default() };
    Recording {
        header,
        events: events.into_iter().zip(0..).map(|(event, sequence)| dated(sequence, event)).collect(),
        samples: percents.iter().zip(0..).map(sample).collect(),
        damaged: 0,
    }
}

/// Same boot, different cgroup.
fn now() -> CurrentState {
    CurrentState { is_locked: false, boot_id: "one".into(), cgroup_id: Some(8), oom_kill_count: Some(0) }
}

/// Same cgroup, with this count.
fn counted(count: u64) -> CurrentState {
    CurrentState { cgroup_id: Some(7), oom_kill_count: Some(count), ..now() }
}

fn found(recording: &Recording, now: &CurrentState) -> (EndCause, Certainty) {
    let finding = find_cause(recording, now);
    assert!(!finding.reasons.is_empty(), "{finding:?}");
    (finding.cause, finding.certainty)
}

#[test]
fn goodbye_overrides_memory_evidence() {
    let goodbye = Record::Goodbye { reason: "SIGTERM".into() };
    assert_eq!(found(&recording(&[99], vec![goodbye]), &now()), (EndCause::Stopped, Certainty::Certain));
}

#[test]
fn count_that_the_monitor_recorded_after_the_end_began_changes_nothing() {
    let end = [Record::Goodbye { reason: "SIGTERM".into() }, Record::Stopping { reason: "SIGTERM".into() }];
    let causes = end.map(|end| found(&recording(&[10], vec![end, Record::OomKills { count: 3 }]), &counted(3)).0);
    assert_eq!(causes, [EndCause::Stopped, EndCause::KilledWhileStopping]);
    let kill = Record::Kill { text: "a step's".into(), processes: 1 };
    let killed_then = recording(&[99], vec![Record::Stopping { reason: "SIGTERM".into() }, kill]);
    assert_eq!(found(&killed_then, &now()).0, EndCause::KilledAtLimit, "a kill says more");
}

#[test]
fn locked_recording_is_running() {
    let locked = CurrentState { is_locked: true, ..now() };
    assert_eq!(found(&recording(&[99], vec![]), &locked), (EndCause::Running, Certainty::Certain));
}

#[test]
fn end_at_the_limit_is_an_oom_kill() {
    let at_limit = recording(&[50, 80, 96], vec![]);
    assert_eq!(found(&at_limit, &now()), (EndCause::KilledAtLimit, Certainty::Likely));
    let other_boot = CurrentState { boot_id: "two".into(), ..now() };
    assert_eq!(found(&at_limit, &other_boot), (EndCause::KilledAtLimit, Certainty::Likely));
    let mut group = at_limit.clone();
    group.header.kills_groups = true;
    assert_eq!(found(&group, &now()), (EndCause::GroupKill, Certainty::Likely));
}

#[test]
fn growth_towards_the_limit_is_a_possible_oom_kill() {
    assert_eq!(found(&recording(&[40, 70], vec![]), &now()), (EndCause::KilledAtLimit, Certainty::Possible));
    assert_eq!(found(&recording(&[60, 70], vec![]), &now()).0, EndCause::Killed, "90 % in two seconds");
}

#[test]
fn without_a_counter_a_burst_cannot_be_excluded() {
    assert_eq!(found(&recording(&[60], vec![]), &now()), (EndCause::Killed, Certainty::Possible));
    assert_eq!(found(&recording(&[40], vec![]), &now()), (EndCause::Killed, Certainty::Likely));
    assert_eq!(found(&recording(&[60], vec![]), &counted(3)), (EndCause::Killed, Certainty::Likely));
}

#[test]
fn page_cache_is_no_shortage() {
    let mut cached = recording(&[99], vec![]);
    let Record::Sample(sample) = &mut cached.samples[0].record else { unreachable!() };
    sample.inactive_file_bytes = Some(60 << 20);
    assert_eq!(found(&cached, &now()), (EndCause::Killed, Certainty::Likely));
}

#[test]
fn counter_of_the_same_cgroup_decides() {
    let (near, far) = (recording(&[99], vec![]), recording(&[10], vec![]));
    assert_eq!(found(&near, &counted(3)), (EndCause::Killed, Certainty::Likely), "it has not moved");
    assert_eq!(found(&far, &counted(4)), (EndCause::KilledAtLimit, Certainty::Likely));
    let kill = || Record::Kill { text: "a step's".into(), processes: 2 };
    let reported = recording(&[10], vec![kill()]);
    assert_eq!(found(&reported, &counted(5)).0, EndCause::Killed, "those were others");
    assert_eq!(found(&reported, &counted(6)).0, EndCause::KilledAtLimit);
    let recorded = recording(&[10], vec![kill(), Record::OomKills { count: 5 }]);
    assert_eq!(found(&recorded, &counted(5)).0, EndCause::Killed);
    assert_eq!(found(&recorded, &counted(6)).0, EndCause::KilledAtLimit);
    let near = recording(&[99], vec![kill()]);
    assert_eq!(found(&near, &counted(5)).0, EndCause::KilledAtLimit, "the counter does not say whose they were");
}

#[test]
fn kill_during_shutdown_is_its_own_cause() {
    let stopping = Record::Stopping { reason: "SIGTERM".into() };
    assert_eq!(found(&recording(&[10], vec![stopping]), &now()), (EndCause::KilledWhileStopping, Certainty::Likely));
}

#[test]
fn another_boot_makes_a_restart_possible() {
    let other = CurrentState { boot_id: "two".into(), ..now() };
    assert_eq!(found(&recording(&[10], vec![]), &other), (EndCause::MachineRestarted, Certainty::Possible));
}

#[test]
fn without_samples_nothing_is_claimed() {
    assert_eq!(found(&recording(&[], vec![]), &now()), (EndCause::Unknown, Certainty::Possible));
}

#[test]
fn an_end_after_a_slow_down_names_systemd_oomd() {
    let reasons = |events| find_cause(&recording(&[40], events), &now()).reasons.join("; ");
    let slowed = Record::Throttled { text: "memory is throttled".into() };
    assert!(reasons(vec![slowed]).contains("systemd-oomd"));
    assert!(!reasons(vec![]).contains("systemd-oomd"));
}
