//! What a report says beside the victim's name is true at the moment of the kill.

use super::super::delivered::{DeliveredProcess, DeliveredVictim};
use super::*;
use crate::monitor::attribution::sigkill::SigkillCause;
use crate::monitor::model::detection::TracerKind;
use crate::monitor::model::event::{Exec, Fork, KillSource};

/// The reports so far.
fn reports(engine: &mut MonitorEngine) -> Vec<OomReport> {
    let events = engine.take_events().into_iter();
    let reports = events.filter_map(|notice| match notice {
        KillEvent::Report(report) => Some(*report),
        _ => None,
    });
    reports.collect()
}

/// The victims that were reported, each with its members.
fn told_with_members(engine: &mut MonitorEngine) -> Vec<(u32, Vec<u32>)> {
    let members = |report: &OomReport| report.members.iter().map(|member| member.process.pid).collect();
    reports(engine).iter().map(|report| (report.victim.process.pid, members(report))).collect()
}

#[test]
fn co_victims_are_in_the_victims_report() {
    let mut engine = engine();
    let at = 10 * SECOND;
    engine.snapshot(&snapshot(at, &[1, 7, 8], Duration::from_millis(1)), at);
    let [kill, mark, exit] = oom_kill(at, 7);
    let [other_kill, other_mark, other_exit] = oom_kill(at + 5000, 8);
    feed(&mut engine, &[kill, mark, other_kill, other_mark, other_exit], at + MS);
    assert_eq!(reported(&mut engine), [], "8 exited first, and waits for the victim that it names");
    assert!(engine.has_unreported(at + MS) && engine.is_busy(at + MS));
    feed(&mut engine, &[exit], at + 2 * MS);
    let [report] = &reports(&mut engine)[..] else { panic!("one report") };
    assert_eq!((report.victim.process.pid, report.members[0].process.pid), (7, 8));
    assert_eq!(report.largest.iter().map(|process| process.process.pid).collect::<Vec<_>>(), [1], "8 is no survivor");
    engine.tick(at + 20 * SECOND);
    assert_eq!(reported(&mut engine), [], "once");
}

#[test]
fn co_victims_wait_a_second_for_a_slow_exit() {
    for on_demand in [false, true] {
        let mut engine = engine();
        let at = 10 * SECOND;
        engine.snapshot(&snapshot(at, &[1], Duration::from_millis(1)), at);
        let [kill, mark, _] = oom_kill(at, 7);
        let [other_kill, other_mark, other_exit] = oom_kill(at + 5000, 8);
        feed(&mut engine, &[kill, mark, other_kill, other_mark, other_exit], at + MS);
        engine.tick(at + SECOND / 2);
        assert_eq!(reported(&mut engine), []);
        if on_demand {
            engine.report_now(at + SECOND / 2);
        } else {
            engine.tick(at + 2 * SECOND);
        }
        assert_eq!(told_with_members(&mut engine), [(7, vec![8])]);
        assert!(!engine.has_unreported(at + 2 * SECOND));
    }
}

/// Takes in a kill and mark in a group.
fn group_kill(engine: &mut MonitorEngine, at: u64, pid: u32) -> TraceEvent {
    let [kill, mark, exit] = oom_kill(at, pid);
    feed(engine, &[kill], at);
    engine.is_killed_with_group(key(pid), true);
    feed(engine, &[mark], at);
    exit
}

#[test]
fn exited_victim_waits_for_the_rest_of_its_group() {
    let mut engine = engine();
    let at = 10 * SECOND;
    engine.snapshot(&snapshot(at, &[1], Duration::from_millis(1)), at);
    let exit = group_kill(&mut engine, at, 7);
    feed(&mut engine, &[exit], at + MS);
    // A scan that comes meanwhile is no reason to hurry.
    engine.snapshot(&snapshot(at + 2 * MS, &[1], Duration::from_millis(1)), at + 2 * MS);
    let exits = [8, 9].map(|pid| group_kill(&mut engine, at + u64::from(pid) * MS, pid));
    // One exits before the report and one after it.
    feed(&mut engine, &exits[..1], at + 10 * MS);
    assert_eq!(reported(&mut engine), []);
    engine.tick(at + 30 * MS);
    assert_eq!(told_with_members(&mut engine), [(7, vec![8, 9])]);
    feed(&mut engine, &exits[1..], at + 40 * MS);
    let late = group_kill(&mut engine, at + 60 * MS, 10);
    feed(&mut engine, &[late], at + 61 * MS);
    engine.tick(at + SECOND);
    assert_eq!(reported(&mut engine), [(10, Confidence::CoVictim)], "the report was out");
}

#[test]
fn exec_resets_sizes() {
    let mut engine = engine();
    let mut family = snapshot(9 * SECOND, &[3, 7], Duration::from_millis(1));
    family.processes[1].parent_pid = 3;
    engine.snapshot(&family, 9 * SECOND);
    let exec = Exec { process: key(3), name: "new".into(), cmdline: b"new\0".to_vec(), cmdline_is_cut: false };
    feed(&mut engine, &[event(9 * SECOND + 500 * MS, Trace::Exec(exec))], 9 * SECOND + 500 * MS);
    // Began before the exec: what it shows is the old program.
    engine.snapshot(&Snapshot { at_boot_ns: 9 * SECOND + 400 * MS, ..family.clone() }, 9 * SECOND + 600 * MS);
    feed(&mut engine, &oom_kill(10 * SECOND, 7), 10 * SECOND);
    engine.tick(11 * SECOND);
    let [report] = &reports(&mut engine)[..] else { panic!("one report") };
    let parent = &report.ancestors[0];
    assert_eq!((&*parent.name, parent.vm_bytes, parent.rss_bytes), ("new", None, None));
    assert!(report.to_string().contains("vm: ?, rss: ?): new"), "{report}");

    engine.snapshot(&Snapshot { at_boot_ns: 12 * SECOND, ..family }, 12 * SECOND);
    let fork = Fork { child: ProcessKey { pid: 9, start_ticks: 1200 }, parent_pid: Some(3) };
    feed(&mut engine, &[event(12 * SECOND, Trace::Fork(fork))], 12 * SECOND);
    let parent = engine.history.find(key(3)).unwrap();
    assert_eq!(parent.rss_bytes(), Some(3), "seen anew");
    let child = engine.history.find(ProcessKey { pid: 9, start_ticks: 1200 }).unwrap();
    assert_eq!((child.vm_bytes(), child.rss_bytes()), (None, None), "nobody scanned at it");
}

#[test]
fn exited_processes_are_not_reported_alive() {
    // A build of 80 compilers that ended without a word.
    let mut engine = MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(AllBut(20..100)));
    let pids: Vec<u32> = (8..100).collect();
    engine.snapshot(&snapshot(9 * SECOND, &pids, Duration::from_millis(1)), 9 * SECOND);
    feed(&mut engine, &oom_kill(10 * SECOND, 7), 10 * SECOND);
    engine.tick(11 * SECOND);
    let [report] = &reports(&mut engine)[..] else { panic!("one report") };
    assert_eq!(report.largest.iter().map(|process| process.process.pid).collect::<Vec<_>>(), [19, 18, 17, 16, 15]);
}

#[test]
fn process_that_exited_after_the_kill_is_reported_alive() {
    let mut engine = MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(AllBut(3..4)));
    let at = 10 * SECOND;
    feed(&mut engine, &oom_kill(at, 7)[..2], at);
    // The scan that the kill asked for still shows its parent.
    let mut family = snapshot(at + MS, &[3, 7], Duration::from_millis(1));
    family.processes[1].parent_pid = 3;
    engine.snapshot(&family, at + MS);
    feed(&mut engine, &oom_kill(at, 7)[2..], at + 2 * MS);
    engine.tick(at + SECOND);
    let [report] = &reports(&mut engine)[..] else { panic!("one report") };
    assert_eq!((report.ancestors[0].pid, report.ancestors[0].exited), (3, false));
    assert_eq!((report.largest[0].process.pid, report.largest[0].process.exited), (3, false));
}

/// Everybody is there, as large as its number.
struct Weighed;

impl ProcessLookup for Weighed {
    fn has(&self, _: ProcessKey) -> bool {
        true
    }

    fn sizes(&self, process: ProcessKey) -> Option<Sizes> {
        Some(Sizes { vm_bytes: 1 << 20, rss_bytes: u64::from(process.pid) })
    }

    fn split(&self, process: ProcessKey) -> Option<SizeSplit> {
        Some(SizeSplit { anon_bytes: u64::from(process.pid), ..SizeSplit::default() })
    }

    fn is_charged(&self, _: ProcessKey, _: &CgroupFacts) -> bool {
        true
    }
}

#[test]
fn programs_started_since_the_last_scan_are_measured() {
    let mut engine = MonitorEngine::new(SystemTime::UNIX_EPOCH, Box::new(Weighed));
    engine.snapshot(&snapshot(9 * SECOND, &[1, 3], Duration::from_millis(1)), 9 * SECOND);
    let at = 9 * SECOND + 500 * MS;
    let exec = Exec { process: key(3), name: "new".into(), cmdline: b"new\0".to_vec(), cmdline_is_cut: false };
    let child = ProcessKey { pid: 9, start_ticks: 950 };
    let fork = Fork { child, parent_pid: Some(3) };
    let born_later = Fork { child: ProcessKey { pid: 10, start_ticks: 1001 }, parent_pid: Some(3) };
    feed(&mut engine, &[event(at, Trace::Exec(exec)), event(at, Trace::Fork(fork))], at);
    feed(&mut engine, &oom_kill(10 * SECOND, 7), 10 * SECOND);
    feed(&mut engine, &[event(10 * SECOND + 10 * MS, Trace::Fork(born_later))], 10 * SECOND + 10 * MS);
    engine.tick(11 * SECOND);
    let [report] = &reports(&mut engine)[..] else { panic!("one report") };
    let largest =
        report.largest.iter().map(|process| (process.process.pid, process.process.rss_bytes, process.anon_bytes));
    let largest: Vec<_> = largest.collect();
    assert_eq!(largest, [(9, Some(9), Some(9)), (3, Some(3), Some(3)), (1, Some(1), Some(1))]);
}

#[test]
fn time_of_day_follows_the_wall_clock() {
    let mut engine = engine();
    let mut time_of_kill = |pid, at_ns| {
        let _ = feed(&mut engine, &oom_kill(at_ns, pid), at_ns);
        engine.snapshot(&snapshot(at_ns, &[1], Duration::ZERO), at_ns);
        let events = engine.take_events();
        engine.set_booted_at(SystemTime::UNIX_EPOCH + Duration::from_hours(1));
        let [KillEvent::Report(report)] = &events[..] else { panic!("{events:?}") };
        report.time
    };
    assert_eq!(time_of_kill(7, 10 * SECOND), SystemTime::UNIX_EPOCH + Duration::from_secs(10));
    // The clock was an hour late when the monitor started, and was set meanwhile.
    assert_eq!(time_of_kill(8, 20 * SECOND), SystemTime::UNIX_EPOCH + Duration::from_secs(3620));
}

#[test]
fn process_killed_with_its_init_gets_that_cause() {
    let mut engine = engine();
    let at = 10 * SECOND;
    let [kill, mark, exit] = oom_kill(at, 7);
    let [mut zap, _, zapped] = oom_kill(at + 5000, 8);
    let Trace::Kill(of_init) = &mut zap.what else { panic!("a kill") };
    of_init.sender = Some(Actor { pid: 7, name: "init".into() });
    of_init.memory_map = 8;
    feed(&mut engine, &[kill, mark, zap, zapped], at + MS);
    let cause = |engine: &MonitorEngine| {
        engine.sigkill_cause(SigkillOf::Process { pid: 8, since_boot_ns: at }, true, at + 2 * MS).to_string()
    };
    assert!(
        cause(&engine).contains("the OOM killer killed PID 7 (init)"),
        "before the attribution: {}",
        cause(&engine)
    );
    feed(&mut engine, &[exit], at + MS);
    assert!(cause(&engine).contains("the OOM killer killed PID 7 (init)"), "and after it: {}", cause(&engine));
    engine.tick(at + SECOND);
    assert_eq!(told_with_members(&mut engine), [(7, vec![])], "8 is no victim");
}

/// The SIGKILL of earlyoom, as `krunner node` records it.
fn daemon_kill(at: u64, pid: u32) -> [TraceEvent; 2] {
    let [mut kill, _, exit] = oom_kill(at, pid);
    let Trace::Kill(killed) = &mut kill.what else { panic!("{kill:?}") };
    (killed.source, killed.daemon) = (KillSource::User, Some("earlyoom"));
    killed.sender = Some(Actor { pid: 33, name: "earlyoom".to_owned() });
    [kill, exit]
}

#[test]
fn kill_by_a_user_space_oom_killer_is_passed_on_to_the_victims_runner() {
    let mut engine = engine();
    engine.trace_for_others();
    let [kill, exit] = daemon_kill(SECOND, 7);
    // What a kill without a limit of its own gets.
    let limit = Some(LimitHit::traced(None, |_| panic!("no cgroup"), None, false));
    let _ = engine.trace(&kill, Some(MemoryFacts { limit, ..facts(1) }), SECOND);
    feed(&mut engine, &[exit], SECOND + MS);
    let events = engine.take_events();
    let [KillEvent::ByDaemon(kill)] = &events[..] else { panic!("{events:?}") };
    let evidence = kill.report.evidence.as_ref().expect("evidence");
    assert_eq!((kill.daemon, kill.report.victim.process.pid), ("earlyoom", 7));
    assert_eq!((&evidence.facts.limit, evidence.victims[0].killed_at_boot_ns), (&None, SECOND), "no limit was reached");
    assert_eq!(
        (evidence.victims.len(), kill.report.cgroup.as_ref().map(|cgroup| cgroup.path.as_str())),
        (1, Some("/a"))
    );
}

#[test]
fn delivered_kill_by_a_user_space_oom_killer_is_a_reason_and_no_report() {
    for (daemon, expected) in [(Some("earlyoom"), KillSender::OomDaemon("earlyoom")), (None, KillSender::Outside)] {
        let mut engine = engine();
        engine.snapshot(&snapshot(SECOND, &[1], Duration::from_millis(1)), SECOND);
        let whose = SigkillOf::Below { pid: 1 };
        assert_eq!(engine.known_sigkill_cause(whose, 2 * SECOND), None);
        engine.delivered_of_daemon(delivered(2 * SECOND, 7, 1), daemon, 2 * SECOND);
        let victim = Actor { pid: 7, name: "hog".to_owned() };
        let cause = SigkillCause::Sent { victim, by: expected };
        assert_eq!(engine.known_sigkill_cause(whose, 2 * SECOND), Some(&cause), "though no scan saw the process");
        assert_eq!(engine.take_events(), []);
    }
}

/// Its shell ended before the node could look for it.
#[test]
fn victim_of_a_user_space_oom_killer_without_a_known_parent_may_be_of_any_step() {
    for (daemon, is_known) in [(Some("earlyoom"), true), (None, false)] {
        let mut engine = engine();
        let mut kill = delivered(SECOND, 7, 1);
        kill.processes[0].parent_pid = None;
        engine.delivered_of_daemon(kill, daemon, SECOND);
        engine.snapshot(&snapshot(SECOND, &[5], Duration::from_millis(1)), SECOND);
        let known = |now_ns| engine.known_sigkill_cause(SigkillOf::Below { pid: 5 }, now_ns).is_some();
        assert_eq!([known(SECOND), known(5 * SECOND)], [is_known, false]);
    }
}

/// A kill of a child of that parent, as the node delivers it.
fn delivered(at_ns: u64, pid: u32, parent_pid: u32) -> DeliveredKill {
    let kill = Kill::example(key(pid));
    let exec = Exec { process: key(pid), name: "hog".to_owned(), cmdline: Vec::new(), cmdline_is_cut: false };
    let victim = Victim {
        tracer: TracerKind::Node,
        kill,
        confidence: Confidence::Confirmed,
        co_victim_of: None,
        is_group_kill: false,
        trigger: None,
        killed_at_boot_ns: at_ns,
        exited_at_boot_ns: None,
    };
    DeliveredKill {
        victims: vec![DeliveredVictim { victim, is_uncounted: false }],
        left_out: 0,
        processes: vec![DeliveredProcess { exec, parent_pid: Some(parent_pid), is_gone: true }],
        facts: MemoryFacts::default(),
    }
}
