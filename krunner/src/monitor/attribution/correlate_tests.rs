//! Chains of events as the kernel makes them, and what they have to come to.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::monitor::model::event::{KillSender, MemoryAtKill, ProcessExit};
use Confidence::{CoVictim, Confirmed};
use KillSource::{Kernel, User};

const SENDER: u32 = 1;

fn process(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_ticks: 5 }
}

fn actor(pid: u32) -> Actor {
    Actor { pid, name: format!("p{pid}") }
}

fn event(at_boot_ns: u64, what: Trace) -> TraceEvent {
    TraceEvent { at_boot_ns, what }
}

fn kill(at_ns: u64, victim: u32, source: KillSource, sender: u32) -> TraceEvent {
    let memory =
        MemoryAtKill { vm_bytes: 1, anon_bytes: 1, file_bytes: 0, shmem_bytes: 0, swap_bytes: 0, pgtables_bytes: 0 };
    let kill = Kill {
        name: "victim".into(),
        source,
        sender: Some(actor(sender)),
        memory,
        memory_map: 0,
        ..Kill::example(process(victim))
    };
    event(at_ns, Trace::Kill(kill))
}

fn mark(at_ns: u64, victim: u32, sender: u32) -> TraceEvent {
    event(at_ns, Trace::Mark(Mark { victim: process(victim), trigger: Some(actor(sender)) }))
}

fn exit(at_ns: u64, pid: u32) -> TraceEvent {
    event(at_ns, Trace::Exit(ProcessExit { process: process(pid) }))
}

/// Feeds the events in the order of their times and lets all patience run out.
fn attributions(mut events: Vec<TraceEvent>) -> Vec<Attribution> {
    events.sort_by_key(|event| event.at_boot_ns);
    let mut correlator = Correlator::new();
    let mut attributions = Vec::new();
    let mut last = 0;
    for event in &events {
        attributions.extend(correlator.tick(event.at_boot_ns));
        attributions.extend(correlator.feed(event));
        last = event.at_boot_ns;
    }
    for wait in [MARK_PATIENCE_NS, CORRELATION_WINDOW_NS, EXIT_PATIENCE_NS, 3 * EXIT_PATIENCE_NS] {
        attributions.extend(correlator.tick(last + wait));
    }
    assert!(correlator.pending_kills.is_empty(), "nothing is kept for ever: {:?}", correlator.pending_kills);
    attributions
}

/// PID and confidence of each OOM-killed process.
fn victims(attributions: &[Attribution]) -> Vec<(u32, Confidence)> {
    let victim = |attribution: &Attribution| match attribution {
        Attribution::Oom(victim) => Some((victim.kill.victim.pid, victim.confidence)),
        Attribution::KilledByProcess(_) => None,
    };
    attributions.iter().filter_map(victim).collect()
}

#[test]
fn kill_mark_and_exit_confirm_in_any_order() {
    let plain = vec![kill(0, 7, Kernel, SENDER), mark(1, 7, SENDER), exit(2 * MS, 7), exit(2 * MS + 1, 7)];
    assert_eq!(victims(&attributions(plain)), [(7, Confirmed)]);
    let exit_first = vec![kill(0, 7, Kernel, SENDER), exit(1, 7), mark(2, 7, SENDER)];
    assert_eq!(victims(&attributions(exit_first)), [(7, Confirmed)]);
    let mark_first = vec![mark(0, 7, SENDER), kill(1, 7, Kernel, SENDER), exit(2, 7)];
    assert_eq!(victims(&attributions(mark_first)), [(7, Confirmed)]);
}

#[test]
fn trigger_is_reported_without_waiting() {
    let mut correlator = Correlator::new();
    assert_eq!(correlator.feed(&kill(0, 7, Kernel, SENDER)), None);
    assert_eq!(correlator.feed(&mark(1, 7, SENDER)), None);
    let Some(Attribution::Oom(victim)) = correlator.feed(&exit(9, 7)) else { panic!("no attribution at the exit") };
    assert_eq!((victim.trigger, victim.exited_at_boot_ns), (Some(actor(SENDER)), Some(9)));
}

#[test]
fn process_sharing_memory_is_a_co_victim() {
    let events =
        vec![kill(0, 7, Kernel, SENDER), mark(1, 7, SENDER), kill(2, 8, Kernel, SENDER), exit(MS, 8), exit(2 * MS, 7)];
    let attributions = attributions(events);
    let mut victims = victims(&attributions);
    victims.sort_by_key(|(pid, _)| *pid);
    assert_eq!(victims, [(7, Confirmed), (8, CoVictim)]);
}

#[test]
fn process_killed_with_its_pid_namespace_is_no_co_victim() {
    let with_memory = |mut event: TraceEvent, memory_map: u64| {
        let Trace::Kill(kill) = &mut event.what else { panic!("{event:?} is no kill") };
        kill.memory_map = memory_map;
        event
    };
    // The first process of a namespace asks for memory, is killed, and kills the others when it exits.
    for (first, other) in [(1, 2), (0, 0)] {
        let events = vec![
            with_memory(kill(0, 7, Kernel, 7), first),
            mark(1, 7, 7),
            with_memory(kill(2, 8, Kernel, 7), other),
            exit(MS, 8),
            exit(2 * MS, 7),
        ];
        assert_eq!(victims(&attributions(events)), [(7, Confirmed)]);
    }
    let sharer = vec![
        with_memory(kill(0, 7, Kernel, 7), 1),
        mark(1, 7, 7),
        with_memory(kill(2, 8, Kernel, 7), 1),
        exit(MS, 8),
        exit(2 * MS, 7),
    ];
    assert_eq!(victims(&attributions(sharer)).len(), 2);
}

#[test]
fn late_member_belongs_to_the_group_of_an_exited_victim() {
    let first = [kill(0, 7, Kernel, SENDER), mark(1, 7, SENDER), exit(2, 7)];
    // 8 is marked 90 ms after the first, 9 that long after 8.
    let members = [8_u32, 9]
        .map(|pid| (u64::from(pid - 7) * 90 * MS, pid))
        .map(|(at, pid)| [kill(at, pid, Kernel, SENDER), mark(at + 1, pid, SENDER), exit(at + 2, pid)]);
    let with = |is_group: bool| {
        let mut correlator = Correlator::new();
        let events = first.iter().chain(members.iter().flatten());
        let mut victims = Vec::new();
        for event in events {
            let attribution = correlator.feed(event);
            if let Trace::Kill(kill) = &event.what {
                correlator.is_killed_with_group(kill.victim, is_group);
            }
            if let Some(Attribution::Oom(victim)) = attribution {
                victims.push((victim.kill.victim.pid, victim.co_victim_of.map(|first| first.pid)));
            }
        }
        victims
    };
    assert_eq!(with(true), [(7, None), (8, Some(7)), (9, Some(7))]);
    assert_eq!(with(false), [(7, None), (8, None), (9, None)], "each was chosen");
}

#[test]
fn member_killed_by_its_init_belongs_to_the_group() {
    // 7, the first process of a PID namespace, is the victim: it exits on another processor, and its SIGKILL comes to 8 before
    // that of the OOM killer, which marks 8 all the same.
    let with_memory = |mut event: TraceEvent, memory_map| {
        let Trace::Kill(kill) = &mut event.what else { panic!("{event:?}") };
        kill.memory_map = memory_map;
        event
    };
    let first = with_memory(kill(0, 7, Kernel, SENDER), 7);
    let zap = with_memory(kill(30, 8, Kernel, 7), 8);
    let attributions =
        attributions(vec![first, mark(1, 7, SENDER), zap, mark(40, 8, SENDER), exit(50, 8), exit(60, 7)]);
    let with = attributions.iter().map(|attribution| match attribution {
        Attribution::Oom(victim) => (victim.kill.victim.pid, victim.co_victim_of.map(|first| first.pid)),
        Attribution::KilledByProcess(_) => panic!("{attribution:?}"),
    });
    assert_eq!(with.collect::<Vec<_>>(), [(8, Some(7)), (7, None)]);
}

#[test]
fn member_killed_with_its_parent_belongs_to_the_group() {
    // 8 has a SIGKILL of its dying parent already when the OOM killer comes to it.
    let pending = |mut event: TraceEvent| {
        let Trace::Kill(kill) = &mut event.what else { panic!("{event:?}") };
        kill.already_pending = true;
        event
    };
    let first = vec![kill(0, 7, Kernel, SENDER), mark(1, 7, SENDER), kill(20, 8, User, 6)];
    let late = vec![pending(kill(30, 8, Kernel, SENDER)), mark(31, 8, SENDER), exit(50, 8), exit(60, 7)];
    let closed = |events: Vec<TraceEvent>| {
        let attributions = attributions(events).into_iter().map(|attribution| match attribution {
            Attribution::Oom(victim) => (victim.kill.victim.pid, Some(victim.confidence)),
            Attribution::KilledByProcess(killed) => (killed.kill.victim.pid, None),
        });
        attributions.collect::<Vec<_>>()
    };
    let of_group = [(8, Some(Confidence::CoVictim)), (7, Some(Confidence::Confirmed))];
    assert_eq!(closed([first.clone(), late.clone()].concat()), of_group);
    let unmarked = late.into_iter().filter(|event| !matches!(event.what, Trace::Mark(_))).collect();
    assert_eq!(closed([first, unmarked].concat()), [(8, None), (7, Some(Confidence::Confirmed))], "only its parent's");
}

#[test]
fn group_kill_has_one_victim_and_co_victims() {
    let members = [7, 8, 9];
    let kills = members.iter().flat_map(|pid| {
        let at = u64::from(*pid) * 10;
        [kill(at, *pid, Kernel, SENDER), mark(at + 1, *pid, SENDER), exit(MS + at, *pid)]
    });
    let attributions = attributions(kills.collect());
    assert_eq!(victims(&attributions), [(7, Confirmed), (8, CoVictim), (9, CoVictim)]);
}

#[test]
fn consecutive_kills_by_one_sender_are_separate() {
    let one = |at, pid| [kill(at, pid, Kernel, SENDER), mark(at + 1, pid, SENDER), exit(at + 2, pid)];
    let attributions = attributions([one(0, 7), one(50 * MS, 8)].concat());
    assert_eq!(victims(&attributions), [(7, Confirmed), (8, Confirmed)]);
}

#[test]
fn sigkill_from_a_process_is_not_an_oom_kill() {
    let attributions = attributions(vec![kill(0, 7, User, 33), exit(1, 7)]);
    let [Attribution::KilledByProcess(killed)] = &attributions[..] else { panic!("{attributions:?}") };
    assert_eq!((killed.kill.victim, killed.exited_at_boot_ns), (process(7), 1));
    assert_eq!(killed.kill.clone().into_name_and_sender(), ("victim".into(), KillSender::Visible(actor(33))));
}

#[test]
fn other_kernel_kills_are_dropped() {
    assert_eq!(attributions(vec![mark(0, 7, SENDER), exit(5, 7)]), [], "was exiting anyway");
    assert_eq!(attributions(vec![kill(0, 7, Kernel, SENDER), exit(5, 7)]), [], "its pid namespace has ended");
    assert_eq!(attributions(vec![exit(5, 7)]), []);
}

#[test]
fn victim_that_does_not_exit_is_reported_eventually() {
    let attributions = attributions(vec![kill(0, 7, Kernel, SENDER), mark(1, 7, SENDER)]);
    let [Attribution::Oom(victim)] = &attributions[..] else { panic!("{attributions:?}") };
    assert_eq!(victim.exited_at_boot_ns, None);
}

#[test]
fn a_reused_pid_is_another_process() {
    let mut events = vec![kill(0, 7, Kernel, SENDER), mark(1, 7, SENDER), exit(2, 7)];
    for mut event in events.clone() {
        event.at_boot_ns += 200 * MS;
        match &mut event.what {
            Trace::Kill(kill) => kill.victim.start_ticks = 9,
            Trace::Mark(mark) => mark.victim.start_ticks = 9,
            Trace::Exit(exit) => exit.process.start_ticks = 9,
            _ => {}
        }
        events.push(event);
    }
    assert_eq!(victims(&attributions(events)).len(), 2);
}

#[test]
fn pending_kills_are_bounded() {
    let mut correlator = Correlator::new();
    for pid in 0..3 * u32::try_from(MAX_PENDING).unwrap() {
        assert_eq!(correlator.feed(&kill(u64::from(pid), pid, Kernel, SENDER)), None);
    }
    assert_eq!(correlator.pending_kills.len(), MAX_PENDING);
}

/// One thing that can happen, with processes and a sender of its own.
#[derive(Debug, Clone, Copy)]
enum Incident {
    Oom { co_victims: u32, marked: bool, exit_before_mark: bool },
    UserKill,
    NamespaceEnd,
    MarkOnly,
}

fn incident() -> impl Strategy<Value = Incident> {
    prop_oneof![
        (0u32..4, any::<bool>(), any::<bool>()).prop_map(|(co_victims, marked, exit_before_mark)| Incident::Oom {
            co_victims,
            marked,
            exit_before_mark
        }),
        Just(Incident::UserKill),
        Just(Incident::NamespaceEnd),
        Just(Incident::MarkOnly),
    ]
}

/// The events of an incident that begins at `at`, and the OOM kills it should report.
fn unfold(incident: Incident, number: u32, at: u64, exit_delay: u64) -> (Vec<TraceEvent>, BTreeMap<u32, Confidence>) {
    let (first, sender) = (1000 + number * 10, 100_000 + number);
    let gone = at + 10_000 + exit_delay;
    match incident {
        Incident::UserKill => (vec![kill(at, first, User, sender), exit(gone, first)], BTreeMap::new()),
        Incident::NamespaceEnd => (vec![kill(at, first, Kernel, sender), exit(gone, first)], BTreeMap::new()),
        Incident::MarkOnly => (vec![mark(at, first, sender), exit(gone, first)], BTreeMap::new()),
        Incident::Oom { co_victims, marked, exit_before_mark } => {
            let mut events = vec![kill(at, first, Kernel, sender), mark(at + 20, first, sender)];
            // Only on its own can a victim exit that early: it would not be there for the others.
            events.push(exit(if exit_before_mark && co_victims == 0 { at + 10 } else { gone }, first));
            let mut expected = BTreeMap::from([(first, Confirmed)]);
            for (member, offset) in (first + 1..=first + co_victims).zip(1..) {
                let at = at + 20 + offset * 100;
                events.push(kill(at, member, Kernel, sender));
                if marked {
                    events.push(mark(at + 20, member, sender));
                }
                events.extend([exit(gone + offset, member), exit(gone + offset + 1, member)]);
                expected.insert(member, CoVictim);
            }
            (events, expected)
        }
    }
}

proptest! {
    /// Any number of incidents, overlapping as they like: every victim once, nobody else, and the
    /// right confidence.
    #[test]
    fn exactly_the_victims_are_reported_once(
        incidents in prop::collection::vec((incident(), 0u64..200 * MS, 0u64..3000 * MS), 1..20),
    ) {
        let mut events = Vec::new();
        let mut expected = BTreeMap::new();
        for (number, (incident, at, exit_delay)) in (0..).zip(incidents) {
            let (of_incident, victims) = unfold(incident, number, at, exit_delay);
            events.extend(of_incident);
            expected.extend(victims);
        }
        let attributions = attributions(events);
        let closed = victims(&attributions);
        prop_assert_eq!(closed.len(), expected.len());
        prop_assert_eq!(closed.into_iter().collect::<BTreeMap<_, _>>(), expected);
    }
}

#[test]
fn first_kernel_sigkill_counts() {
    let mut later = kill(MS + 500, 7, KillSource::Kernel, 1);
    let Trace::Kill(ignored) = &mut later.what else { panic!() };
    ignored.memory.anon_bytes = 0;
    let attributions = attributions(vec![
        kill(MS, 7, KillSource::Kernel, 33),
        mark(MS + 100, 7, 33),
        // The first process of its PID namespace dies of the same kill, and takes all others along.
        later,
        exit(2 * MS, 7),
    ]);
    let [Attribution::Oom(victim)] = &attributions[..] else { panic!("{attributions:?}") };
    assert_eq!((victim.kill.memory.anon_bytes, victim.killed_at_boot_ns), (1, MS));
    assert_eq!(victim.kill.sender, Some(actor(33)));
}

/// The first victim has not exited when the same process has the next one killed, 10 ms later.
#[test]
fn next_victim_is_a_kill_of_its_own_where_no_group_is_killed() {
    let next_belongs_to_first = |setting: Option<bool>| {
        let mut correlator = Correlator::new();
        let mut victims = Vec::new();
        for (at, pid) in [(0, 7), (10 * MS, 8)] {
            for event in [kill(at, pid, Kernel, SENDER), mark(at + 1, pid, SENDER)] {
                correlator.feed(&event);
                if let (Trace::Kill(kill), Some(is_group)) = (&event.what, setting) {
                    correlator.is_killed_with_group(kill.victim, is_group);
                }
            }
        }
        for event in [exit(20 * MS, 7), exit(21 * MS, 8)] {
            victims.extend(correlator.feed(&event).and_then(Attribution::into_victim));
        }
        victims[1].co_victim_of.is_some()
    };
    assert_eq!([Some(true), Some(false), None].map(next_belongs_to_first), [true, false, true]);
}
