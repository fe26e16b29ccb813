//! Lives of processes, and what must be known of them after.

use proptest::prelude::*;

use super::super::event::{Exit, Fork};
use super::*;

const TICK_NS: u64 = 10_000_000;

fn key(pid: u32, start_ticks: u64) -> ProcessKey {
    ProcessKey { pid, start_ticks }
}

fn seen(key: ProcessKey, parent_pid: u32, name: &str, rss_bytes: u64) -> Observed {
    let bytes = format!("{name}\0").into_bytes();
    Observed {
        key,
        parent_pid,
        name: name.into(),
        cmdline: Arc::new(Cmdline { bytes, is_cut: false }),
        vm_bytes: 2 * rss_bytes,
        rss_bytes,
        is_zombie: false,
    }
}

fn snapshot(at_ticks: u64, processes: Vec<Observed>) -> Snapshot {
    Snapshot { at_boot_ns: at_ticks * TICK_NS, processes }
}

fn fork(child: ProcessKey, parent_pid: u32) -> TraceEvent {
    let what = Trace::Fork(Fork { child, parent_pid: Some(parent_pid) });
    TraceEvent { at_boot_ns: child.start_boot_ns(), what }
}

fn exec(process: ProcessKey, at_ticks: u64, name: &str) -> TraceEvent {
    let cmdline = format!("{name}\0").into_bytes();
    let what = Trace::Exec(Exec { process, name: name.into(), cmdline, cmdline_is_cut: false });
    TraceEvent { at_boot_ns: at_ticks * TICK_NS, what }
}

fn names(history: &History, process: ProcessKey) -> Vec<String> {
    history.ancestors(process).iter().map(|ancestor| ancestor.name.to_string()).collect()
}

#[test]
fn a_life_between_two_snapshots_is_known_from_events() {
    let mut history = History::new();
    history.fold_snapshot(&snapshot(100, vec![seen(key(1, 0), 0, "init", 1), seen(key(5, 50), 1, "sh", 2)]));
    history.fold_event(&fork(key(6, 110), 5));
    assert_eq!(history.find(key(6, 110)).unwrap().cmdline.bytes, b"sh\0", "until it runs something else");
    history.fold_event(&exec(key(6, 110), 111, "hog"));
    let hog = history.find(key(6, 110)).unwrap();
    assert_eq!((&*hog.name, hog.cmdline.bytes.as_slice()), ("hog", &b"hog\0"[..]));
    assert_eq!(names(&history, key(6, 110)), ["sh", "init"]);
    // A snapshot that began before the exec and saw the shell's name does not take it back.
    history.fold_snapshot(&snapshot(110, vec![seen(key(1, 0), 0, "init", 1), seen(key(6, 110), 5, "sh", 3)]));
    assert_eq!(&*history.find(key(6, 110)).unwrap().name, "hog");
}

#[test]
fn whoever_started_it_stays_its_parent() {
    let mut history = History::new();
    let starter = seen(key(5, 50), 1, "starter", 2);
    history.fold_snapshot(&snapshot(100, vec![seen(key(1, 0), 0, "init", 1), starter, seen(key(6, 60), 5, "hog", 9)]));
    // The starter has left, and the kernel has given its child to init.
    history.fold_snapshot(&snapshot(200, vec![seen(key(1, 0), 0, "init", 1), seen(key(6, 60), 1, "hog", 9)]));
    assert_eq!(names(&history, key(6, 60)), ["starter", "init"]);
    assert!(history.find(key(5, 50)).unwrap().gone_at_ns.is_some());
    // As long as the child is there; and not for ever after.
    let minutes = |count: u64| 200 + count * 6_000;
    history.fold_snapshot(&snapshot(minutes(3), vec![seen(key(1, 0), 0, "init", 1), seen(key(6, 60), 1, "hog", 9)]));
    assert_eq!(names(&history, key(6, 60)), ["starter", "init"]);
    history.fold_snapshot(&snapshot(minutes(4), vec![seen(key(1, 0), 0, "init", 1)]));
    history.fold_snapshot(&snapshot(minutes(6), vec![seen(key(1, 0), 0, "init", 1)]));
    assert_eq!(history.processes.len(), 1);
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    let mut history = History::new();
    history.fold_snapshot(&snapshot(100, vec![seen(key(5, 50), 0, "old", 2), seen(key(6, 60), 5, "child", 1)]));
    history.fold_snapshot(&snapshot(200, vec![seen(key(5, 150), 0, "new", 2), seen(key(6, 60), 5, "child", 1)]));
    history.fold_event(&fork(key(7, 210), 5));
    assert_eq!(names(&history, key(6, 60)), ["old"]);
    assert_eq!(names(&history, key(7, 210)), ["new"]);
}

#[test]
fn who_left_last_is_told_with_the_last_size() {
    let mut history = History::new();
    let all = |hog| vec![seen(key(1, 0), 0, "init", 1), hog, seen(key(7, 70), 1, "small", 5)];
    history.fold_snapshot(&snapshot(100, all(seen(key(6, 60), 1, "hog", 900))));
    assert_eq!(history.left_last(9, |_| false), Vec::<&Process>::new());
    // A zombie has left, too.
    let zombie = Observed { is_zombie: true, ..seen(key(6, 60), 1, "hog", 0) };
    history.fold_snapshot(&snapshot(200, vec![seen(key(1, 0), 0, "init", 1), zombie.clone()]));
    let left: Vec<_> =
        history.left_last(9, |_| false).iter().map(|process| (&*process.name, process.rss_bytes)).collect();
    assert_eq!(left, [("hog", 900), ("small", 5)]);
    history.fold_snapshot(&snapshot(300, vec![seen(key(1, 0), 0, "init", 1), zombie]));
    assert_eq!(history.left_last(9, |_| false), Vec::<&Process>::new(), "not again");
    assert_eq!(history.largest(9, key(9, 9)).len(), 1);
}

#[test]
fn a_storm_of_forks_stays_within_bounds_and_keeps_who_is_there() {
    let mut history = History::new();
    history.fold_snapshot(&snapshot(1, vec![seen(key(1, 0), 0, "init", 1)]));
    for number in 0..3 * u32::try_from(MAX_ENTRIES).unwrap() {
        let child = key(2 + number, 10 + u64::from(number));
        history.fold_event(&fork(child, 1));
        let exit = Trace::Exit(Exit { process: child });
        history.fold_event(&TraceEvent { at_boot_ns: child.start_boot_ns() + 1, what: exit });
        assert!(history.processes.len() <= MAX_ENTRIES);
    }
    assert!(history.find(key(1, 0)).is_some());
}

/// What may happen to a few processes whose pids are used again and again.
#[derive(Debug, Clone)]
enum Step {
    Fork { parent: usize, pid: u32 },
    Leave { which: usize },
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..20_usize, 2..12_u32).prop_map(|(parent, pid)| Step::Fork { parent, pid }),
        2 => (0..20_usize).prop_map(|which| Step::Leave { which }),
        1 => Just(Step::Look),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    /// The kernel's own view, kept naively, is what the history says of everyone alive.
    #[test]
    fn ancestors_are_those_who_started_it(steps in steps(), traced: bool) {
        let mut history = History::new();
        let init = key(1, 0);
        // Alive: key, who started it, whose child it is now.
        let mut alive = vec![(init, None, 0_u32)];
        let mut starters = std::collections::BTreeMap::from([(init, None::<ProcessKey>)]);
        let mut ticks = 10;
        history.fold_snapshot(&snapshot(ticks, vec![seen(init, 0, "p1", 1)]));
        for step in steps {
            ticks += 5;
            match step {
                Step::Fork { parent, pid } => {
                    if alive.iter().any(|(process, ..)| process.pid == pid) {
                        continue;
                    }
                    let parent = alive[parent % alive.len()].0;
                    let child = key(pid, ticks);
                    alive.push((child, Some(parent), parent.pid));
                    starters.insert(child, Some(parent));
                    if traced {
                        history.fold_event(&fork(child, parent.pid));
                    }
                }
                Step::Leave { which } if alive.len() > 1 => {
                    let (gone, ..) = alive.remove(1 + which % (alive.len() - 1));
                    for (_, _, parent_pid) in alive.iter_mut().filter(|(_, _, parent_pid)| *parent_pid == gone.pid) {
                        *parent_pid = 1;
                    }
                }
                Step::Leave { .. } => {}
                Step::Look => {
                    let all = alive.iter().map(|(process, _, parent)| seen(*process, *parent, "p", 1)).collect();
                    history.fold_snapshot(&snapshot(ticks, all));
                }
            }
        }
        for (process, ..) in alive {
            let told: Vec<ProcessKey> = history.ancestors(process).iter().map(|ancestor| ancestor.key).collect();
            prop_assert!(told.len() <= MAX_DEPTH);
            let mut child = process;
            for ancestor in &told {
                prop_assert!(ancestor.start_ticks <= child.start_ticks, "{ancestor:?} is younger than {child:?}");
                child = *ancestor;
            }
            if traced {
                let mut expected = Vec::new();
                let mut next = starters[&process];
                while let Some(starter) = next {
                    expected.push(starter);
                    next = starters[&starter];
                }
                prop_assert_eq!(told, expected);
            }
        }
    }
}
