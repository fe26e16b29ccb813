//! Small worlds with a kernel's rules, and what the history makes of what it is told of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[path = "history_scan_tests.rs"]
mod scans;
#[path = "history_title_tests.rs"]
mod titles;

const TICK_NS: u64 = 10_000_000;
const SECOND_NS: u64 = 100 * TICK_NS;

fn key(pid: u32, start_ticks: u64) -> ProcessKey {
    ProcessKey { pid, start_ticks }
}

fn fork(child: ProcessKey, parent_pid: u32) -> TraceEvent {
    let fork = Fork { child, parent_pid: Some(parent_pid) };
    TraceEvent { at_boot_ns: child.start_boot_ns() + 1, what: Trace::Fork(fork) }
}

fn exec(at_boot_ns: u64, process: ProcessKey, cmdline: &[u8]) -> TraceEvent {
    let exec = Exec { process, name: "ran".into(), cmdline: cmdline.to_vec(), cmdline_is_cut: false };
    TraceEvent { at_boot_ns, what: Trace::Exec(exec) }
}

fn exit(at_boot_ns: u64, process: ProcessKey) -> TraceEvent {
    TraceEvent { at_boot_ns, what: Trace::Exit(ProcessExit { process }) }
}

fn observed(key: ProcessKey, parent_pid: u32, rss_bytes: u64) -> ProcessSample {
    let cmdline = Arc::new(Cmdline { bytes: format!("p{}\0", key.pid).into_bytes(), is_cut: false });
    let name = format!("p{}", key.pid).into();
    ProcessSample {
        key,
        parent_pid,
        name,
        cmdline,
        first_cmdline: None,
        vm_bytes: 2 * rss_bytes,
        rss_bytes,
        oom_score_adj: 0,
        is_zombie: false,
        is_leaving: false,
        end: None,
    }
}

fn snapshot(at_boot_ns: u64, processes: Vec<ProcessSample>) -> Snapshot {
    Snapshot { at_boot_ns, processes, ..Snapshot::default() }
}

fn keys(known: &[ProcessRecord]) -> Vec<ProcessKey> {
    known.iter().map(|known| known.key).collect()
}

const INIT: ProcessKey = ProcessKey { pid: 1, start_ticks: 1 };
const SHELL: ProcessKey = ProcessKey { pid: 10, start_ticks: 10 };
const HOG: ProcessKey = ProcessKey { pid: 20, start_ticks: 200 };

/// Init and a shell, seen after a second.
fn begun() -> History {
    let mut history = History::new();
    history.fold_snapshot(&snapshot(SECOND_NS, vec![observed(INIT, 0, 5), observed(SHELL, 1, 7)]));
    history
}

#[test]
fn process_between_two_snapshots_has_parent_and_arguments() {
    let mut history = begun();
    history.fold_event(&fork(HOG, 10));
    let inherited = history.find(HOG).unwrap();
    assert_eq!((&*inherited.name, &inherited.cmdline.bytes[..]), ("p10", &b"p10\0"[..]));
    history.fold_event(&exec(3 * SECOND_NS, HOG, b"./hog\0"));
    let hog = history.find(HOG).unwrap();
    assert_eq!((&*hog.name, &hog.cmdline.bytes[..]), ("ran", &b"./hog\0"[..]));
    let chain = history.chain(HOG, 3 * SECOND_NS);
    assert_eq!(keys(&chain), [SHELL, INIT]);
    assert_eq!(chain[0].rss_bytes, 7);
}

#[test]
fn orphan_keeps_its_first_parent() {
    let mut history = begun();
    history.fold_event(&fork(HOG, 10));
    history.fold_event(&exit(3 * SECOND_NS, SHELL));
    history.fold_snapshot(&snapshot(4 * SECOND_NS, vec![observed(INIT, 0, 5), observed(HOG, 1, 7)]));
    // Stays as long as the orphan lives, and the pid's next holder is another.
    history.fold_event(&fork(key(10, 500), 1));
    let later_ns = 1000 * SECOND_NS;
    history.fold_snapshot(&snapshot(later_ns, vec![observed(INIT, 0, 5), observed(HOG, 1, 7)]));
    let chain = history.chain(HOG, later_ns);
    assert_eq!(keys(&chain), [SHELL, INIT]);
    assert_eq!(chain.iter().map(|known| known.is_gone_at(later_ns)).collect::<Vec<_>>(), [true, false]);
    assert!(!history.chain(HOG, 2 * SECOND_NS)[0].is_gone_at(later_ns), "as it was then");
}

#[test]
fn a_late_fork_event_still_names_the_parent() {
    let mut history = begun();
    history.fold_snapshot(&snapshot(3 * SECOND_NS, vec![observed(INIT, 0, 5), observed(HOG, 1, 7)]));
    assert_eq!(keys(&history.chain(HOG, 3 * SECOND_NS)), [INIT]);
    history.fold_event(&fork(HOG, 10));
    assert_eq!(keys(&history.chain(HOG, 3 * SECOND_NS)), [SHELL, INIT]);
    assert_eq!(&*history.find(HOG).unwrap().name, "p20", "the snapshot knows better than the fork");
}

#[test]
fn fork_before_the_first_snapshot_gets_its_parent_from_it() {
    let mut history = History::new();
    history.fold_event(&fork(HOG, 10));
    assert_eq!(history.chain(HOG, SECOND_NS), []);
    let processes = vec![observed(INIT, 0, 5), observed(HOG, 1, 7), observed(SHELL, 1, 7)];
    history.fold_snapshot(&snapshot(3 * SECOND_NS, processes));
    assert_eq!(keys(&history.chain(HOG, 3 * SECOND_NS)), [SHELL, INIT]);
}

#[test]
fn exec_overrides_older_snapshots_only() {
    let mut history = begun();
    let long = |at_ns| {
        let cmdline = Arc::new(Cmdline { bytes: vec![b'x'; 4000], is_cut: false });
        snapshot(at_ns, vec![observed(INIT, 0, 5), ProcessSample { cmdline, ..observed(SHELL, 1, 7) }])
    };
    history.fold_event(&exec(3 * SECOND_NS, SHELL, b"short\0"));
    history.fold_snapshot(&long(2 * SECOND_NS));
    assert_eq!(history.find(SHELL).unwrap().cmdline.bytes, b"short\0");
    history.fold_snapshot(&long(4 * SECOND_NS));
    let shell = history.find(SHELL).unwrap();
    assert_eq!((&*shell.name, shell.cmdline.bytes.len()), ("p10", 4000));
}

#[test]
fn exiting_process_keeps_its_sizes() {
    let mut history = begun();
    let ending = ProcessSample { vm_bytes: 0, rss_bytes: 0, cmdline: Arc::default(), ..observed(SHELL, 1, 0) };
    history.fold_snapshot(&snapshot(2 * SECOND_NS, vec![observed(INIT, 0, 5), ending]));
    let shell = history.find(SHELL).unwrap();
    assert_eq!((shell.vm_bytes, shell.rss_bytes, &shell.cmdline.bytes[..]), (14, 7, &b"p10\0"[..]));
}

#[test]
fn exiting_process_keeps_its_arguments() {
    let mut history = begun();
    let ending = ProcessSample {
        name: "new".into(),
        vm_bytes: 0,
        rss_bytes: 0,
        cmdline: Arc::default(),
        ..observed(SHELL, 1, 0)
    };
    history.fold_snapshot(&snapshot(2 * SECOND_NS, vec![observed(INIT, 0, 5), ending]));
    let shell = history.find(SHELL).unwrap();
    assert_eq!((&*shell.name, &shell.cmdline.bytes[..]), ("new", &b"p10\0"[..]));
}

#[test]
fn absence_is_revised_but_an_exit_is_final() {
    let mut history = begun();
    history.fold_snapshot(&snapshot(2 * SECOND_NS, vec![observed(INIT, 0, 5)]));
    assert_eq!(history.find(SHELL).unwrap().gone_at_boot_ns, Some(2 * SECOND_NS));
    let both = |at_ns| snapshot(at_ns, vec![observed(INIT, 0, 5), observed(SHELL, 1, 9)]);
    history.fold_snapshot(&both(3 * SECOND_NS));
    assert_eq!(history.find(SHELL).unwrap().gone_at_boot_ns, None);
    history.fold_event(&exit(4 * SECOND_NS, SHELL));
    history.fold_snapshot(&both(5 * SECOND_NS));
    assert_eq!(history.find(SHELL).unwrap().gone_at_boot_ns, Some(4 * SECOND_NS));
}

#[test]
fn process_started_during_the_scan_is_not_gone() {
    let mut history = begun();
    history.fold_event(&fork(HOG, 10));
    let both = || vec![observed(INIT, 0, 5), observed(SHELL, 1, 7)];
    history.fold_snapshot(&snapshot(HOG.start_boot_ns() + TICK_NS - 1, both()));
    assert_eq!(history.find(HOG).unwrap().gone_at_boot_ns, None);
    history.fold_snapshot(&snapshot(HOG.start_boot_ns() + TICK_NS, both()));
    assert!(history.find(HOG).unwrap().gone_at_boot_ns.is_some());
}

#[test]
fn process_left_out_of_a_snapshot_is_not_gone() {
    let mut history = begun();
    let full = Snapshot { left_out: 1, ..snapshot(2 * SECOND_NS, vec![observed(INIT, 0, 5)]) };
    history.fold_snapshot(&full);
    assert_eq!(history.find(SHELL).unwrap().gone_at_boot_ns, None);
}

#[test]
fn largest_processes_are_alive_at_that_time() {
    let mut history = begun();
    let zombie = ProcessSample { is_zombie: true, ..observed(key(30, 30), 1, 99) };
    let processes = vec![observed(INIT, 0, 5), observed(SHELL, 1, 7), observed(HOG, 10, 50), zombie];
    history.fold_snapshot(&snapshot(3 * SECOND_NS, processes));
    history.fold_event(&exit(4 * SECOND_NS, HOG));
    assert_eq!(keys(&history.largest(2, 3 * SECOND_NS)), [HOG, SHELL]);
    assert_eq!(keys(&history.largest(9, 4 * SECOND_NS)), [SHELL, INIT]);
    assert_eq!(keys(&history.largest(9, 2 * SECOND_NS - 1)), [SHELL, INIT], "the hog was not born");
}

#[test]
fn candidates_disappeared_recently_and_are_not_old_zombies() {
    let mut history = begun();
    let (small, old_zombie) = (key(30, 30), key(31, 31));
    let gone = |pid, rss| ProcessSample { is_zombie: true, ..observed(key(pid, u64::from(pid)), 1, rss) };
    let living = || vec![observed(INIT, 0, 5), observed(SHELL, 1, 7)];
    history.fold_snapshot(&snapshot(2 * SECOND_NS, [living(), vec![observed(old_zombie, 1, 3)]].concat()));
    let before = [living(), vec![observed(small, 1, 2), observed(HOG, 1, 50), gone(31, 0)]].concat();
    history.fold_snapshot(&snapshot(3 * SECOND_NS, before));
    // One has left, one is a zombie now.
    history.fold_snapshot(&snapshot(4 * SECOND_NS, [living(), vec![gone(30, 0)]].concat()));
    let candidates = |since_ns| {
        let mut candidates = history.candidates(since_ns);
        candidates.sort_by_key(|candidate| candidate.process.key);
        candidates
    };
    let left = candidates(3 * SECOND_NS + 1);
    assert_eq!(left.iter().map(|candidate| candidate.process.key).collect::<Vec<_>>(), [HOG, small]);
    assert_eq!((left[0].process.rss_bytes, left[0].alive_ns), (50, Some(3 * SECOND_NS)));
    assert_eq!(candidates(4 * SECOND_NS + 1), []);
}

#[test]
fn exit_of_an_unknown_process_is_recorded() {
    let mut history = begun();
    let exit = ChildExit {
        process: HOG,
        name: "hog".into(),
        parent_pid: 10,
        end: ExitKind::Killed,
        at_boot_ns: 3 * SECOND_NS,
    };
    history.exited(&exit);
    let candidates = history.candidates(3 * SECOND_NS);
    assert_eq!(candidates.len(), 1);
    assert_eq!(
        (candidates[0].process.key, &*candidates[0].process.name, candidates[0].end),
        (HOG, "hog", Some(ExitKind::Killed))
    );
    assert_eq!(keys(&history.chain(HOG, u64::MAX)), [SHELL, INIT]);
}

/// A process of the model.
#[derive(Debug, Clone)]
struct Model {
    parent: Option<ProcessKey>,
    /// The first that the history can have known.
    starter: Starter,
    name: String,
    cmdline: Vec<u8>,
    is_alive: bool,
}

/// A parent, once there was an occasion to know it; it may be that there is none.
#[derive(Debug, Clone, Copy)]
enum Starter {
    Unknown,
    Known(Option<ProcessKey>),
}

/// A snapshot with each one's parent.
type Taken = (Snapshot, Vec<(ProcessKey, Option<ProcessKey>)>);

/// A kernel's process table, as simple as it can be, and the history that is told of it.
struct World {
    history: History,
    at_ns: u64,
    processes: BTreeMap<ProcessKey, Model>,
    /// Taken, and not told yet.
    pending: Option<Taken>,
    is_traced: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Fork { parent: usize, pid: u32 },
    Exec { process: usize },
    Exit { process: usize, is_told: bool },
    Scan,
    Report,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<usize>(), 2u32..12).prop_map(|(parent, pid)| Step::Fork { parent, pid }),
        2 => any::<usize>().prop_map(|process| Step::Exec { process }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(process, is_told)| Step::Exit { process, is_told }),
        1 => Just(Step::Scan),
        1 => Just(Step::Report),
    ]
}

impl World {
    fn new(is_traced: bool) -> Self {
        let init = Model {
            parent: None,
            starter: Starter::Unknown,
            name: "init".into(),
            cmdline: b"init".to_vec(),
            is_alive: true,
        };
        let processes = BTreeMap::from([(INIT, init)]);
        let mut world = Self { history: History::new(), at_ns: SECOND_NS, processes, pending: None, is_traced };
        world.step(Step::Scan);
        world.step(Step::Report);
        world
    }

    fn living(&self) -> Vec<ProcessKey> {
        self.processes.iter().filter(|(_, model)| model.is_alive).map(|(key, _)| *key).collect()
    }

    fn tell(&mut self, event: &TraceEvent) {
        if self.is_traced {
            self.history.fold_event(event);
        }
    }

    fn step(&mut self, step: Step) {
        self.at_ns += 3 * TICK_NS;
        let living = self.living();
        let pick = |index: usize| living[index % living.len()];
        match step {
            Step::Fork { pid, .. } if living.iter().any(|key| key.pid == pid) => {}
            Step::Fork { parent, pid } => {
                let (parent, child) = (pick(parent), ProcessKey::from_boot_ns(pid, self.at_ns));
                let starter = if self.is_traced { Starter::Known(Some(parent)) } else { Starter::Unknown };
                let model = Model { parent: Some(parent), starter, ..self.processes[&parent].clone() };
                self.processes.insert(child, model);
                self.tell(&fork(child, parent.pid));
            }
            Step::Exec { process } => {
                let process = pick(process);
                let event = exec(self.at_ns, process, format!("at {}", self.at_ns).as_bytes());
                let Trace::Exec(exec) = &event.what else { return };
                let model = self.processes.get_mut(&process).unwrap();
                (model.name, model.cmdline) = (exec.name.clone(), exec.cmdline.clone());
                self.tell(&event);
            }
            Step::Exit { process, .. } if pick(process) == INIT => {}
            Step::Exit { process, is_told } => {
                let process = pick(process);
                for model in self.processes.values_mut().filter(|model| model.parent == Some(process)) {
                    model.parent = Some(INIT);
                }
                self.processes.get_mut(&process).unwrap().is_alive = false;
                if is_told {
                    self.tell(&exit(self.at_ns, process));
                }
            }
            Step::Scan => self.pending = Some(self.scan()),
            Step::Report => {
                let Some((snapshot, parents)) = self.pending.take() else { return };
                self.history.fold_snapshot(&snapshot);
                for (child, parent) in parents {
                    let model = self.processes.get_mut(&child).unwrap();
                    if let Starter::Unknown = model.starter {
                        model.starter = Starter::Known(parent);
                    }
                }
            }
        }
    }

    fn scan(&self) -> Taken {
        let living = || self.processes.iter().filter(|(_, model)| model.is_alive);
        let observe = |(key, model): (&ProcessKey, &Model)| ProcessSample {
            name: model.name.as_str().into(),
            cmdline: Arc::new(Cmdline { bytes: model.cmdline.clone(), is_cut: false }),
            ..observed(*key, model.parent.map_or(0, |parent| parent.pid), 1)
        };
        let parents = living().map(|(key, model)| (*key, model.parent)).collect();
        (snapshot(self.at_ns, living().map(observe).collect()), parents)
    }

    /// Who started it, and whether those are alive.
    fn expected_chain(&self, key: ProcessKey) -> Vec<(ProcessKey, bool)> {
        let next = |key: &ProcessKey| match self.processes[key].starter {
            Starter::Unknown => None,
            Starter::Known(starter) => starter,
        };
        let chain = std::iter::successors(next(&key), next).take(MAX_DEPTH);
        chain.map(|key| (key, self.processes[&key].is_alive)).collect()
    }

    fn check(&self, key: ProcessKey) {
        let known = self.history.find(key).unwrap();
        let model = &self.processes[&key];
        assert_eq!((&*known.name, &known.cmdline.bytes), (&*model.name, &model.cmdline), "{key:?}");
        assert_eq!(known.gone_at_boot_ns, None, "{key:?}");
    }
}

/// An event or snapshot that no kernel would make.
fn nonsense() -> impl Strategy<Value = Result<TraceEvent, Box<Snapshot>>> {
    let key = || (0u32..6, 0u64..6).prop_map(|(pid, start_ticks)| ProcessKey { pid, start_ticks });
    let at = || (0..9 * TICK_NS, 0u64..4).prop_map(|(at_ns, minutes)| at_ns + minutes * 60 * SECOND_NS);
    let seen = (key(), 0u32..6, any::<bool>(), 0u64..3)
        .prop_map(|(key, parent, is_zombie, rss)| ProcessSample { is_zombie, ..observed(key, parent, rss) });
    prop_oneof![
        3 => (key(), 0u32..6, at()).prop_map(|(key, parent, at)| Ok(TraceEvent { at_boot_ns: at, ..fork(key, parent) })),
        1 => (key(), at()).prop_map(|(key, at)| Ok(exec(at, key, b"nonsense"))),
        1 => (key(), at()).prop_map(|(key, at)| Ok(exit(at, key))),
        1 => (at(), prop::collection::vec(seen, 0..8)).prop_map(|(at, seen)| Err(Box::new(snapshot(at, seen)))),
    ]
}

proptest! {
    /// Forks, execs, exits (told or not), pids used again, snapshots told late: the chain is that of who
    /// started whom, as far as it could be known.
    #[test]
    fn chains_are_those_of_the_model(steps in prop::collection::vec(step(), 0..200), is_traced: bool) {
        let mut world = World::new(is_traced);
        for step in steps.into_iter().chain([Step::Scan, Step::Report]) {
            world.step(step);
            if is_traced {
                world.living().into_iter().for_each(|key| world.check(key));
            }
        }
        world.history.table.check();
        for key in world.living() {
            world.check(key);
            let chain = world.history.chain(key, world.at_ns);
            let alive: Vec<_> = chain.iter().map(|known| (known.key, !known.is_gone_at(world.at_ns))).collect();
            prop_assert_eq!(alive, world.expected_chain(key));
        }
    }

    #[test]
    fn invalid_input_creates_no_cycles_and_no_younger_parents(told in prop::collection::vec(nonsense(), 0..100)) {
        let mut history = History::new();
        for told in told {
            match told {
                Ok(event) => history.fold_event(&event),
                Err(snapshot) => history.fold_snapshot(&snapshot),
            }
            history.table.check();
            let all: Vec<ProcessKey> = history.table.iter().map(|(key, _)| key).collect();
            for key in all {
                let mut chain = vec![key];
                chain.extend(keys(&history.chain(key, u64::MAX)));
                prop_assert!(chain.len() <= MAX_DEPTH + 1);
                prop_assert!(chain.is_sorted_by_key(|key| std::cmp::Reverse(key.start_ticks)), "{:?}", chain);
                let distinct: std::collections::BTreeSet<_> = chain.iter().collect();
                prop_assert_eq!(distinct.len(), chain.len());
            }
        }
    }
}

#[test]
fn ancestor_chains_are_bounded() {
    let mut history = begun();
    for pid in 100..200 {
        history.fold_event(&fork(key(pid, 300), if pid == 100 { 10 } else { pid - 1 }));
    }
    let chain = history.chain(key(199, 300), u64::MAX);
    assert_eq!((chain.len(), chain[0].key.pid), (MAX_DEPTH, 198));
}
