//! Who was there, who started whom: what snapshots and events say of processes, past the end of each. Pure.
//!
//! Who *started* a process is the question, so an entry keeps the first parent that is known of it, though
//! the kernel hands orphans on to another. Events give parents and arguments to what lives between two
//! snapshots; snapshots give sizes, and end what has left without a word.
//!
//! Bounded: what is gone is kept while somebody alive descends from it and for [`KEEP_NS`], and never beyond
//! [`MAX_ENTRIES`] in all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::event::{Exec, Fork, ProcessKey, Trace, TraceEvent};
use super::process::{Cmdline, Observed, Snapshot};

const SECOND_NS: u64 = 1_000_000_000;

/// How long what is gone may still be asked for: a victim takes up to 10 s to exit.
const KEEP_NS: u64 = 60 * SECOND_NS;

/// Between two clearings away.
const CLEAR_NS: u64 = 10 * SECOND_NS;

/// Entries in all, at some 200 bytes each. A machine that forks 5,000 times a second has 10,000 between two
/// snapshots.
const MAX_ENTRIES: usize = 20_000;

/// Ancestors of a process; deeper trees are cut.
const MAX_DEPTH: usize = 32;

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// Which.
    pub(super) key: ProcessKey,
    /// Who started it.
    pub(super) parent: Option<ProcessKey>,
    /// Its comm.
    pub(super) name: Arc<str>,
    /// Its arguments.
    pub(super) cmdline: Arc<Cmdline>,
    /// Address space when it was last seen alive; 0 for one that no snapshot showed.
    pub(super) vm_bytes: u64,
    /// Resident, likewise.
    pub(super) rss_bytes: u64,
    /// When it was seen to have exited.
    pub(super) gone_at_ns: Option<u64>,
    /// When its program was started, if that was seen: older snapshots do not know its name.
    program_at_ns: u64,
    /// The last snapshot that showed it.
    seen_at_ns: u64,
}

/// The processes of the recent past.
#[derive(Debug, Default)]
pub(super) struct History {
    processes: BTreeMap<ProcessKey, Process>,
    snapshot_ns: u64,
    cleared_at_ns: u64,
}

impl History {
    /// Knows nothing.
    #[must_use]
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Takes in what a tracer saw.
    pub(super) fn fold_event(&mut self, event: &TraceEvent) {
        match &event.what {
            Trace::Fork(fork) => self.forked(fork),
            Trace::Exec(exec) => self.executed(exec, event.at_boot_ns),
            Trace::Exit(exit) => {
                if let Some(process) = self.processes.get_mut(&exit.process) {
                    process.gone_at_ns.get_or_insert(event.at_boot_ns);
                }
            }
            Trace::Kill(_) | Trace::Mark(_) | Trace::Lost { .. } => {}
        }
    }

    /// Takes in a look at `/proc`. Whoever was there before and is not in it has left.
    pub(super) fn fold_snapshot(&mut self, snapshot: &Snapshot) {
        let at_ns = snapshot.at_boot_ns;
        for observed in &snapshot.processes {
            self.observed(observed, at_ns);
        }
        // Parents come in any order, so they are looked up when all are there.
        for observed in &snapshot.processes {
            let parent = self.living(observed.parent_pid, observed.key);
            if let Some(process) = self.processes.get_mut(&observed.key) {
                process.parent = process.parent.or(parent);
            }
        }
        for process in self.processes.values_mut() {
            let missed = process.seen_at_ns != at_ns && process.key.started_before(at_ns);
            if missed && process.gone_at_ns.is_none() {
                process.gone_at_ns = Some(at_ns);
            }
        }
        self.snapshot_ns = at_ns;
        if at_ns.saturating_sub(self.cleared_at_ns) >= CLEAR_NS || self.processes.len() > MAX_ENTRIES {
            self.clear_away(at_ns);
        }
    }

    /// What is known of a process.
    #[must_use]
    pub(super) fn find(&self, process: ProcessKey) -> Option<&Process> {
        self.processes.get(&process)
    }

    /// Who started it, who started that one, and so on, as far as is known.
    #[must_use]
    pub(super) fn ancestors(&self, process: ProcessKey) -> Vec<&Process> {
        let mut ancestors: Vec<&Process> = Vec::new();
        let mut next = self.find(process).and_then(|process| process.parent);
        while let Some(ancestor) = next.and_then(|key| self.find(key)) {
            if ancestors.len() == MAX_DEPTH {
                break;
            }
            ancestors.push(ancestor);
            next = ancestor.parent;
        }
        ancestors
    }

    /// The largest that are alive, but for one.
    #[must_use]
    pub(super) fn largest(&self, count: usize, but: ProcessKey) -> Vec<&Process> {
        let alive = |process: &&Process| process.gone_at_ns.is_none() && process.rss_bytes > 0 && process.key != but;
        largest_first(self.processes.values().filter(alive), count)
    }

    /// Who left between the last two snapshots, the largest first, but for some.
    #[must_use]
    pub(super) fn left_last(&self, count: usize, but: impl Fn(ProcessKey) -> bool) -> Vec<&Process> {
        let left = |process: &&Process| {
            process.gone_at_ns == Some(self.snapshot_ns) && process.rss_bytes > 0 && !but(process.key)
        };
        largest_first(self.processes.values().filter(left), count)
    }

    fn forked(&mut self, fork: &Fork) {
        let parent = fork.parent_pid.and_then(|pid| self.living(pid, fork.child));
        let starter = parent.and_then(|parent| self.find(parent));
        let process = Process {
            key: fork.child,
            parent,
            name: starter.map_or_else(|| Arc::from(""), |starter| Arc::clone(&starter.name)),
            cmdline: starter.map(|starter| Arc::clone(&starter.cmdline)).unwrap_or_default(),
            vm_bytes: 0,
            rss_bytes: 0,
            gone_at_ns: None,
            program_at_ns: 0,
            seen_at_ns: 0,
        };
        self.make_room();
        // A snapshot may have been quicker; it knows more.
        let known = self.processes.entry(fork.child).or_insert(process);
        known.parent = parent.or(known.parent);
    }

    fn executed(&mut self, exec: &Exec, at_ns: u64) {
        self.make_room();
        let process = self.processes.entry(exec.process).or_insert_with(|| unknown(exec.process));
        process.name = Arc::from(exec.name.as_str());
        process.cmdline = Arc::new(Cmdline { bytes: exec.cmdline.clone(), is_cut: exec.cmdline_is_cut });
        process.program_at_ns = at_ns;
    }

    fn observed(&mut self, observed: &Observed, at_ns: u64) {
        let process = self.processes.entry(observed.key).or_insert_with(|| unknown(observed.key));
        process.seen_at_ns = at_ns;
        if observed.is_zombie {
            // It has no size any more; the last one is of more use.
            process.gone_at_ns.get_or_insert(at_ns);
            return;
        }
        process.vm_bytes = observed.vm_bytes;
        process.rss_bytes = observed.rss_bytes;
        if at_ns >= process.program_at_ns {
            process.name.clone_from(&observed.name);
            process.cmdline.clone_from(&observed.cmdline);
        }
    }

    /// The process with that pid which could be the parent of `child`: alive, or just gone, and not younger.
    fn living(&self, pid: u32, child: ProcessKey) -> Option<ProcessKey> {
        if pid == 0 || pid == child.pid {
            return None;
        }
        let candidates = ProcessKey { pid, start_ticks: 0 }..=ProcessKey { pid, start_ticks: child.start_ticks };
        self.processes.range(candidates).next_back().map(|(key, _)| *key)
    }

    /// Between snapshots only events add to it; then what is gone has to go, and else the oldest.
    fn make_room(&mut self) {
        if self.processes.len() < MAX_ENTRIES {
            return;
        }
        let oldest = |process: &&Process| (process.gone_at_ns.is_none(), process.key.start_ticks);
        let mut order: Vec<_> = self.processes.values().map(|process| (oldest(&process), process.key)).collect();
        order.sort_unstable();
        for (_, key) in order.iter().take(MAX_ENTRIES / 8) {
            self.processes.remove(key);
        }
    }

    /// Forgets who is long gone and whom nobody alive descends from.
    fn clear_away(&mut self, now_ns: u64) {
        self.cleared_at_ns = now_ns;
        let is_old = |process: &Process| process.gone_at_ns.is_some_and(|at_ns| at_ns + KEEP_NS < now_ns);
        if !self.processes.values().any(is_old) {
            return;
        }
        let mut needed = BTreeSet::new();
        for process in self.processes.values().filter(|process| !is_old(process)) {
            needed.extend(self.ancestors(process.key).iter().map(|ancestor| ancestor.key));
        }
        self.processes.retain(|key, process| !is_old(process) || needed.contains(key));
    }
}

fn unknown(key: ProcessKey) -> Process {
    Process {
        key,
        parent: None,
        name: Arc::from(""),
        cmdline: Arc::default(),
        vm_bytes: 0,
        rss_bytes: 0,
        gone_at_ns: None,
        program_at_ns: 0,
        seen_at_ns: 0,
    }
}

fn largest_first<'a>(processes: impl Iterator<Item = &'a Process>, count: usize) -> Vec<&'a Process> {
    let mut processes: Vec<&Process> = processes.collect();
    processes.sort_by(|one, other| other.rss_bytes.cmp(&one.rss_bytes).then(one.key.cmp(&other.key)));
    processes.truncate(count);
    processes
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
