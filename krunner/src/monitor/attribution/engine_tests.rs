//! What the engine tells, and when.

use std::sync::Arc;

use super::*;
use crate::monitor::attribution::correlate::Confidence;
use crate::monitor::attribution::sigkill::SigkillOf;
use crate::monitor::explain::{GroupKill, Kills};
use crate::monitor::model::event::{Actor, KillSender, Mark, ProcessExit};
use crate::monitor::model::process::{Cmdline, ExitKind, ProcessSample, ScanCost, SizeSplit, Sizes};

#[path = "engine_facts_tests.rs"]
mod facts;

const SECOND: u64 = 1000 * MS;
const TRIGGER: u32 = 5;

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_ticks: 1 }
}

/// Everybody is there but for these pids.
struct AllBut(std::ops::Range<u32>);

impl ProcessLookup for AllBut {
    fn has(&self, process: ProcessKey) -> bool {
        !self.0.contains(&process.pid)
    }

    fn sizes(&self, _: ProcessKey) -> Option<Sizes> {
        None
    }

    fn split(&self, _: ProcessKey) -> Option<SizeSplit> {
        None
    }

    fn is_charged(&self, _: ProcessKey, _: &CgroupFacts) -> bool {
        true
    }
}

fn engine() -> MonitorEngine {
    MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(AllBut(0..0)))
}

fn event(at_boot_ns: u64, what: Trace) -> TraceEvent {
    TraceEvent { at_boot_ns, what }
}

/// SIGKILL, mark and exit of a process, a microsecond apart.
fn oom_kill(at_ns: u64, pid: u32) -> [TraceEvent; 3] {
    let trigger = Actor { pid: TRIGGER, name: "trigger".into() };
    let kill = Kill { sender: Some(trigger.clone()), cgroup_id: Some(u64::from(pid)), ..Kill::example(key(pid)) };
    let mark = Mark { victim: key(pid), trigger: Some(trigger) };
    [
        event(at_ns, Trace::Kill(kill)),
        event(at_ns + 1000, Trace::Mark(mark)),
        event(at_ns + 2000, Trace::Exit(ProcessExit { process: key(pid) })),
    ]
}

fn snapshot(at_boot_ns: u64, pids: &[u32], wall: Duration) -> Snapshot {
    let observed = |pid: &u32| ProcessSample {
        key: key(*pid),
        parent_pid: 0,
        name: format!("p{pid}").into(),
        cmdline: Arc::new(Cmdline::default()),
        first_cmdline: None,
        vm_bytes: 2 * u64::from(*pid),
        rss_bytes: u64::from(*pid),
        oom_score_adj: 0,
        is_zombie: false,
        is_leaving: false,
        end: None,
    };
    let processes = pids.iter().map(observed).collect();
    Snapshot { at_boot_ns, processes, cost: ScanCost { wall, cpu: wall }, ..Snapshot::default() }
}

fn figures(kills: u64) -> CgroupFacts {
    CgroupFacts {
        path: "/a".into(),
        version: 1,
        limit_bytes: Some(10),
        usage_bytes: Some(10),
        oom_kill_count: Some(kills),
    }
}

/// The same as right after a kill.
fn facts(kills: u64) -> MemoryFacts {
    MemoryFacts { cgroup: Some(figures(kills)), ..MemoryFacts::default() }
}

/// Feeds events; whether one of them asked for a scan.
fn feed(engine: &mut MonitorEngine, events: &[TraceEvent], now_ns: u64) -> bool {
    events.iter().fold(false, |scan, event| engine.trace(event, Some(facts(1)), now_ns) | scan)
}

/// Pids and confidences of the reports so far.
fn reported(engine: &mut MonitorEngine) -> Vec<(u32, Confidence)> {
    let events = engine.take_events();
    let reports = events.iter().filter_map(|notice| match notice {
        KillEvent::Report(report) => Some((report.victim.process.pid, report.confidence)),
        _ => None,
    });
    reports.collect()
}

#[test]
fn report_waits_for_the_scan_that_its_kill_requested() {
    let mut engine = engine();
    let at = 10 * SECOND;
    assert!(feed(&mut engine, &oom_kill(at, 7), at + 3000), "who else was large?");
    assert_eq!(reported(&mut engine), [], "the scan is under way");
    engine.snapshot(&snapshot(at + MS, &[1, 8, 9], Duration::from_millis(1)), at + 2 * MS);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(report.largest.iter().map(|process| process.process.pid).collect::<Vec<_>>(), [9, 8, 1]);
    assert_eq!(report.cgroup.as_ref().unwrap().limit_bytes, Some(10));
    assert_eq!(report.time, SystemTime::UNIX_EPOCH + Duration::from_nanos(at));
}

#[test]
fn report_wait_is_bounded() {
    let mut engine = engine();
    let at = 10 * SECOND;
    assert!(feed(&mut engine, &oom_kill(at, 7), at));
    assert!(engine.is_busy(at));
    engine.tick(at + SCAN_PATIENCE_NS - 1);
    assert_eq!(reported(&mut engine), []);
    engine.tick(at + SCAN_PATIENCE_NS);
    assert_eq!(reported(&mut engine), [(7, Confidence::Confirmed)]);
}

#[test]
fn slow_or_redundant_scans_are_not_requested() {
    for (wall, age_ns) in [(2 * QUICK_SCAN, SECOND), (Duration::from_millis(1), FRESH_NS / 2)] {
        let mut engine = engine();
        let at = 10 * SECOND;
        engine.snapshot(&snapshot(at - age_ns, &[7], wall), at - age_ns);
        assert!(!feed(&mut engine, &oom_kill(at, 7), at));
        assert_eq!(reported(&mut engine), [(7, Confidence::Confirmed)], "at once");
    }
}

#[test]
fn lost_records_are_reported() {
    let mut engine = engine();
    let lost = event(SECOND, Trace::Lost { records: 3, of_kills: 1 });
    assert!(!feed(&mut engine, &[lost], SECOND));
    assert_eq!(engine.take_events(), [KillEvent::RecordsLost { records: 3 }]);
    assert!(feed(&mut engine, &oom_kill(2 * SECOND, 7), 2 * SECOND));
    engine.tick(3 * SECOND);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(report.lost_records, 3);
}

#[test]
fn exited_ancestor_is_reported_as_exited() {
    let mut engine = MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(AllBut(3..4)));
    let mut family = snapshot(9 * SECOND, &[1, 3, 7], Duration::from_millis(1));
    family.processes[1].parent_pid = 1;
    family.processes[2].parent_pid = 3;
    engine.snapshot(&family, 9 * SECOND);
    let _ = feed(&mut engine, &oom_kill(10 * SECOND, 7), 10 * SECOND);
    engine.tick(11 * SECOND);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    let ancestors: Vec<_> = report.ancestors.iter().map(|ancestor| (ancestor.pid, ancestor.exited)).collect();
    assert_eq!(ancestors, [(3, true), (1, false)]);
}

/// A scan at the counters that shows so many new kills.
fn count(kills: &[u64], since_boot_ns: u64, at_boot_ns: u64) -> Count {
    let kills = kills.iter().map(|number| Kills { number: *number, group: GroupKill::No, facts: facts(*number) });
    let kills = kills.collect();
    Count { kills, is_counted: true, since_boot_ns, at_boot_ns }
}

#[test]
fn ancestor_that_exits_right_after_the_victim_is_alive_in_the_report() {
    /// Is there when it is asked for first, and not any more.
    struct Once(std::sync::atomic::AtomicBool);
    impl ProcessLookup for Once {
        fn has(&self, process: ProcessKey) -> bool {
            process.pid != 3 || !self.0.swap(true, std::sync::atomic::Ordering::Relaxed)
        }

        fn sizes(&self, _: ProcessKey) -> Option<Sizes> {
            None
        }

        fn split(&self, _: ProcessKey) -> Option<SizeSplit> {
            None
        }

        fn is_charged(&self, _: ProcessKey, _: &CgroupFacts) -> bool {
            true
        }
    }
    let mut engine = MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(Once(false.into())));
    let mut family = snapshot(9 * SECOND, &[3, 7], Duration::from_millis(1));
    family.processes[1].parent_pid = 3;
    engine.snapshot(&family, 9 * SECOND);
    let _ = feed(&mut engine, &oom_kill(10 * SECOND, 7), 10 * SECOND + MS);
    engine.tick(11 * SECOND);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((report.ancestors[0].pid, report.ancestors[0].exited), (3, false));
}

#[test]
fn largest_processes_are_checked_for_existence() {
    let mut engine = MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(AllBut(90..100)));
    let pids: Vec<u32> = (80..96).collect();
    engine.snapshot(&snapshot(9 * SECOND, &pids, Duration::from_millis(1)), 9 * SECOND);
    let _ = feed(&mut engine, &oom_kill(10 * SECOND, 7), 10 * SECOND);
    engine.tick(11 * SECOND);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(report.largest.iter().map(|process| process.process.pid).collect::<Vec<_>>(), [89, 88, 87, 86, 85]);
}

#[test]
fn without_a_tracer_a_rising_counter_names_a_process_that_disappeared() {
    let mut engine = engine();
    let quick = Duration::from_millis(1);
    engine.snapshot(&snapshot(2 * SECOND, &[1, 7, 8], quick), 2 * SECOND);
    assert!(!engine.counted(count(&[], 2 * SECOND, 3 * SECOND)));
    engine.snapshot(&snapshot(4 * SECOND, &[1, 7, 8, 9], quick), 4 * SECOND);
    let counted_ns = 5 * SECOND;
    assert!(engine.counted(count(&[2], 4 * SECOND, counted_ns)), "a scan is wanted");
    assert_eq!(reported(&mut engine), [], "a scan that came before the count shows nothing");
    let looked_ns = counted_ns + MS;
    engine.snapshot(&snapshot(looked_ns, &[1], quick), looked_ns);
    assert_eq!(reported(&mut engine), [], "who else is on the way out?");
    assert!(engine.is_busy(looked_ns));
    engine.tick(counted_ns + SECOND / 10);
    assert_eq!(
        reported(&mut engine),
        [(9, Confidence::Inferred), (8, Confidence::Inferred)],
        "the largest two of three"
    );
    assert!(!engine.agent_reported_kill(6 * SECOND), "the count is enough");
}

#[test]
fn without_a_tracer_a_killed_child_is_reported_at_once() {
    let mut engine = engine();
    let quick = Duration::from_millis(1);
    engine.snapshot(&snapshot(SECOND, &[1, 7, 8], quick), SECOND);
    let death =
        ChildExit { process: key(7), name: "p7".into(), parent_pid: 1, end: ExitKind::Killed, at_boot_ns: 2 * SECOND };
    engine.child_exited(&death, 2 * SECOND);
    assert_eq!(reported(&mut engine), [], "another process may have been killed");
    assert!(engine.counted(count(&[1], 2 * SECOND - MS, 2 * SECOND + MS)));
    engine.snapshot(&snapshot(2 * SECOND + 2 * MS, &[1, 8], quick), 2 * SECOND + 2 * MS);
    assert_eq!(reported(&mut engine), [(7, Confidence::Inferred)], "though 8 is larger");
}

#[test]
fn without_a_tracer_a_normal_exit_is_no_candidate() {
    let mut engine = engine();
    let quick = Duration::from_millis(1);
    engine.snapshot(&snapshot(SECOND, &[1, 7, 8], quick), SECOND);
    let death =
        ChildExit { process: key(8), name: "p8".into(), parent_pid: 1, end: ExitKind::Other, at_boot_ns: 2 * SECOND };
    engine.child_exited(&death, 2 * SECOND);
    assert!(engine.counted(count(&[2], 2 * SECOND - MS, 2 * SECOND + MS)));
    engine.snapshot(&snapshot(2 * SECOND + 2 * MS, &[1], quick), 2 * SECOND + 2 * MS);
    engine.tick(2 * SECOND + SECOND / 10);
    assert_eq!(reported(&mut engine), [(7, Confidence::Inferred)]);
}

/// Both have the `oom_score_adj` that krunner gives its children, which counts for more than their memory.
#[test]
fn without_a_tracer_a_survivor_with_the_same_adjustment_rules_a_smaller_process_out() {
    let mut engine = engine();
    let seen = |at_ns, pids: &[u32]| {
        let mut seen = snapshot(at_ns, pids, Duration::from_millis(1));
        seen.processes.iter_mut().for_each(|process| process.oom_score_adj = 250);
        seen
    };
    engine.snapshot(&seen(2 * SECOND, &[10, 20]), 2 * SECOND);
    engine.snapshot(&seen(4 * SECOND, &[10, 20]), 4 * SECOND);
    let mut counted = count(&[1], 4 * SECOND, 5 * SECOND);
    for kills in &mut counted.kills {
        kills.facts.cgroup.as_mut().unwrap().limit_bytes = Some(1 << 20);
    }
    assert!(engine.counted(counted));
    engine.snapshot(&seen(5 * SECOND + MS, &[20]), 5 * SECOND + MS);
    engine.tick(20 * SECOND);
    assert_eq!(reported(&mut engine), []);
}

#[test]
fn without_a_tracer_a_kill_may_stay_unattributed() {
    let mut engine = engine();
    let quick = Duration::from_millis(1);
    engine.snapshot(&snapshot(SECOND, &[1], quick), SECOND);
    assert!(engine.counted(count(&[1], SECOND, 2 * SECOND)));
    engine.snapshot(&snapshot(2 * SECOND + MS, &[1], quick), 2 * SECOND + MS);
    engine.tick(3 * SECOND);
    assert_eq!(engine.take_events(), [KillEvent::AttributionPending { kills: 1 }], "it may be slow to die");
    engine.tick(20 * SECOND);
    assert_eq!(engine.take_events(), [KillEvent::Unattributed { kills: 1, reason: None }]);
    engine.tick(40 * SECOND);
    assert_eq!(engine.take_events(), [], "once");
}

#[test]
fn without_a_tracer_a_partial_scan_identifies_a_victim() {
    let mut engine = engine();
    engine.snapshot(&snapshot(SECOND, &[1], Duration::from_millis(1)), SECOND);
    let seen = |end, at_boot_ns| {
        let mut newcomer = snapshot(at_boot_ns, &[7], Duration::ZERO).processes;
        newcomer[0].end = end;
        PartialScan { at_boot_ns, processes: newcomer, ..PartialScan::default() }
    };
    engine.partial_scan(&seen(None, 2 * SECOND), 2 * SECOND);
    engine.partial_scan(&seen(Some(ExitKind::Killed), 2 * SECOND + 5 * MS), 2 * SECOND + 5 * MS);
    assert!(engine.counted(count(&[1], 2 * SECOND, 2 * SECOND + 6 * MS)));
    let looked_ns = 2 * SECOND + 10 * MS;
    engine.snapshot(&snapshot(looked_ns, &[1], Duration::from_millis(1)), looked_ns);
    assert_eq!(reported(&mut engine), [(7, Confidence::Inferred)]);
}

#[test]
fn without_a_counter_the_agents_event_is_answered_once() {
    let mut engine = engine();
    let quick = Duration::from_millis(1);
    engine.snapshot(&snapshot(SECOND, &[1, 7, 8], quick), SECOND);
    // A regular scan has noticed before the word comes.
    engine.snapshot(&snapshot(3 * SECOND, &[1, 7], quick), 3 * SECOND);
    assert!(engine.agent_reported_kill(4 * SECOND));
    engine.snapshot(&snapshot(4 * SECOND + MS, &[1, 7], quick), 4 * SECOND + MS);
    engine.tick(4 * SECOND + SECOND / 10);
    assert_eq!(reported(&mut engine), [(8, Confidence::Possible)]);
    assert!(engine.agent_reported_kill(5 * SECOND));
    engine.snapshot(&snapshot(5 * SECOND + MS, &[1], quick), 5 * SECOND + MS);
    engine.tick(5 * SECOND + SECOND / 10);
    assert_eq!(reported(&mut engine), [(7, Confidence::Possible)], "not 8 again");
}

#[test]
fn nothing_is_requested_or_reported_while_held() {
    let mut engine = engine();
    let at = 10 * SECOND;
    engine.hold();
    let events = oom_kill(at, 7);
    let scan = events.iter().fold(false, |scan, event| engine.trace(event, None, at + 3000) | scan);
    assert!(!scan, "a scan may be the next kill");
    engine.tick(at + SECOND);
    assert_eq!(reported(&mut engine), []);
    assert!(engine.has_unreported(at + SECOND));

    assert!(engine.resume(|id| (id == Some(7)).then(|| figures(3)), at + SECOND), "now there is room to scan");
    engine.tick(at + SECOND + 2 * SCAN_PATIENCE_NS);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(report.cgroup.as_ref().unwrap().oom_kill_count, Some(3), "of the victim's cgroup");
    assert!(!engine.has_unreported(at + 2 * SECOND));
}

#[test]
fn victim_that_exits_after_the_hold_has_facts_and_a_scan() {
    let mut engine = engine();
    let at = 10 * SECOND;
    engine.hold();
    let [kill, mark, exit] = oom_kill(at, 7);
    assert!(!engine.trace(&kill, None, at) && !engine.trace(&mark, None, at));
    assert!(engine.resume(|_| Some(figures(3)), at + MS), "before 6.16 memory is back before the exit is reported");
    let _ = engine.trace(&exit, None, at + 2 * MS);
    engine.snapshot(&snapshot(at + 3 * MS, &[1, 9], Duration::from_millis(1)), at + 3 * MS);
    let events = engine.take_events();
    let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((report.largest.len(), report.cgroup.as_ref().unwrap().oom_kill_count), (2, Some(3)));
}

#[test]
fn victim_that_is_slow_to_exit_is_reported_on_demand() {
    let mut engine = engine();
    let at = 10 * SECOND;
    assert!(feed(&mut engine, &oom_kill(at, 7)[..2], at + 3000));
    assert!(engine.has_unreported(at + SECOND), "it was killed and marked");
    engine.report_now(at + SECOND);
    assert_eq!(reported(&mut engine), [(7, Confidence::Confirmed)]);
    assert!(!engine.has_unreported(at + SECOND));
    feed(&mut engine, &oom_kill(at, 7)[2..], at + 2 * SECOND);
    engine.tick(at + 3 * SECOND);
    assert_eq!(reported(&mut engine), [], "its exit tells nothing new");
}

#[test]
fn cause_of_a_sigkill_is_known_afterwards() {
    let mut engine = engine();
    let at = 10 * SECOND;
    feed(&mut engine, &oom_kill(at, 7), at + 3000);
    engine.tick(at + SECOND);
    let [TraceEvent { what: Trace::Kill(kill), .. }, ..] = oom_kill(at, 8) else { panic!("the first is the kill") };
    let sender = Actor { pid: 33, name: "timeout".into() };
    let sent = Kill { source: KillSource::User, sender: Some(sender.clone()), ..kill };
    feed(&mut engine, &[event(at, Trace::Kill(sent)), event(at, Trace::Exit(ProcessExit { process: key(8) }))], at);

    let cause = |pid| engine.sigkill_cause(SigkillOf::Process { pid, since_boot_ns: at }, true, at + SECOND);
    assert!(matches!(cause(7), SigkillCause::Oom { .. }), "{:?}", cause(7));
    let victim = Actor { pid: 8, name: "hog".into() };
    assert_eq!(cause(8), SigkillCause::Sent { victim, by: KillSender::Visible(sender) });
    assert_eq!(cause(9), SigkillCause::Unknown);
}

#[test]
fn without_a_tracer_the_counter_tells_what_a_sigkill_was_not() {
    let mut engine = engine();
    let whose = SigkillOf::Process { pid: 7, since_boot_ns: 0 };
    assert_eq!(engine.sigkill_cause(whose, false, 0), SigkillCause::Unknown, "nobody counts");
    let _ = engine.counted(count(&[], SECOND, 2 * SECOND));
    assert_eq!(engine.sigkill_cause(whose, false, 2 * SECOND), SigkillCause::NotOom);
    assert!(engine.counted(count(&[1], 2 * SECOND, 3 * SECOND)));
    assert_eq!(engine.sigkill_cause(whose, false, 4 * SECOND), SigkillCause::MaybeOom);
    assert_eq!(engine.sigkill_cause(whose, false, 60 * SECOND), SigkillCause::NotOom, "that was another time");
}

#[test]
fn unattributed_kill_is_announced_once() {
    let mut engine = engine();
    assert!(engine.counted(count(&[2], SECOND, 2 * SECOND)));
    assert!(engine.has_unreported(2 * SECOND));
    engine.tick(3 * SECOND);
    engine.tick(4 * SECOND);
    assert_eq!(engine.take_events(), [KillEvent::AttributionPending { kills: 2 }]);
    assert!(!engine.has_unreported(4 * SECOND), "the next steps do not wait for it");
}

/// A victim of many GiB takes seconds to exit; the runner that waits for the node's report does not.
#[test]
fn victim_of_another_container_is_reported_before_it_exits() {
    let [kill, mark, exit] = oom_kill(SECOND, 42);
    for (traces_for_others, patience_ns) in [(false, 10 * SECOND), (true, 100 * MS)] {
        let mut engine = engine();
        if traces_for_others {
            engine.trace_for_others();
        }
        let _ = engine.trace(&kill, Some(facts(1)), SECOND);
        let _ = engine.trace(&mark, None, SECOND);
        engine.tick(SECOND + patience_ns - MS);
        assert_eq!(engine.take_events(), []);
        assert_eq!(engine.is_busy(SECOND + 50 * MS), traces_for_others);
        engine.tick(SECOND + patience_ns);
        let events = engine.take_events();
        let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((report.confidence, report.exited_at_boot_ns), (Confidence::Confirmed, None));
        let cgroups = report.evidence.as_ref().map(|evidence| evidence.cgroups.clone());
        assert_eq!(cgroups, traces_for_others.then(|| vec![Some("/a".to_owned())]));
        let _ = engine.trace(&exit, None, SECOND);
        engine.tick(30 * SECOND);
        assert_eq!(engine.take_events(), [], "once");
    }
}

/// The tracer was attached while a count was open: the same kill is in both.
#[test]
fn kill_that_was_counted_and_traced_is_reported_once() {
    for is_inferred_first in [false, true] {
        let mut engine = engine();
        let quick = Duration::from_millis(1);
        engine.snapshot(&snapshot(2 * SECOND, &[7, 8], quick), 2 * SECOND);
        assert!(engine.counted(count(&[1], 2 * SECOND, 3 * SECOND)));
        // The other one exits as well.
        engine.snapshot(&snapshot(3 * SECOND + MS, &[], quick), 3 * SECOND + MS);
        if is_inferred_first {
            engine.tick(3 * SECOND + SECOND / 10);
            assert_eq!(reported(&mut engine), [(8, Confidence::Inferred)]);
        }
        engine.counted_and_traced(key(7), 3 * SECOND - MS);
        let now = 3 * SECOND + SECOND / 10;
        let _ = feed(&mut engine, &oom_kill(3 * SECOND - MS, 7), now);
        engine.tick(now + SECOND);
        engine.tick(now + 60 * SECOND);
        let expected = if is_inferred_first { vec![] } else { vec![(7, Confidence::Confirmed)] };
        assert_eq!(reported(&mut engine), expected);
        assert_eq!(engine.take_events(), [], "no kill is left without a victim");
    }
}
