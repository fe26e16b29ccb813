//! The history of processes: their parents, names and sizes, combined from snapshots and events.
//!
//! Pure: times come with the inputs. Snapshots show all processes every few seconds, with their memory. Fork and exec events add
//! the processes that lived in between. The history answers who *started* a process. `/proc` shows an orphan's adoptive parent, so
//! an entry keeps the first parent that is known, as a (PID, start) key that survives PID reuse, even after that parent exited.
//!
//! ```text
//!   snapshot, fork, exec                    exit, zombie,
//!  ─────────────────────▶ living ──────────────────────────────────▶ gone ─ 60 s, no child left ─▶ forgotten
//!                           ▲    missing in a snapshot, PID reused     │
//!                           └───── in a snapshot again (absence only) ─┘
//! ```
//!
//! Late inputs are merged by their times: a snapshot that began before an exec does not undo it, and a fork event that arrives
//! after the snapshot with the child still sets the parent. `table` enforces the limits.

mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::monitor::explain::ProcessUsage;
use crate::monitor::model::event::{ChildExit, Exec, Fork, ProcessExit, Trace, TraceEvent};
use crate::monitor::model::process::{Cmdline, ExitKind, PartialScan, ProcessKey, ProcessSample, Sizes, Snapshot};
use table::{Ended, Gone, ProcessEntry, Table};

/// Maximum length of an ancestor chain: deeper than real ones, and a report still fits on a screen or two.
const MAX_DEPTH: usize = 32;

/// How long an exited process is kept: several times longer than a victim takes from SIGKILL to exit, and many snapshots.
const REMEMBERED_NS: u64 = 60 * 1_000_000_000;

/// The known processes.
#[derive(Debug, Default)]
pub(in crate::monitor) struct History {
    table: Table,
    /// Number of snapshots so far.
    scan: u64,
    last_snapshot_boot_ns: u64,
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct ProcessRecord {
    pub(in crate::monitor) key: ProcessKey,
    pub(in crate::monitor) name: Arc<str>,
    /// Its arguments or title. The parent's until an exec event or a snapshot provides its own.
    pub(in crate::monitor) cmdline: Arc<Cmdline>,
    /// Its original arguments, if it wrote a title over them.
    pub(in crate::monitor) first_cmdline: Option<Arc<Cmdline>>,
    /// Size of the address space at the last reading since its exec; 0 if it was not read.
    pub(in crate::monitor) vm_bytes: u64,
    /// Resident memory at that reading. May be 0 after a reading, if all of it is swapped out.
    pub(in crate::monitor) rss_bytes: u64,
    /// As in `/proc/PID/oom_score_adj`; 0 if it was not read.
    pub(in crate::monitor) oom_score_adj: i16,
    /// When it was found to be gone, in nanoseconds since boot.
    pub(in crate::monitor) gone_at_boot_ns: Option<u64>,
}

/// A process that disappeared or is exiting, and may be the victim of an OOM kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Candidate {
    /// The process with its last known sizes.
    pub(in crate::monitor) process: ProcessRecord,
    /// How it exits, if known.
    pub(in crate::monitor) end: Option<ExitKind>,
    /// When that became known.
    pub(in crate::monitor) end_ns: Option<u64>,
    /// The latest time at which it can have disappeared, if it has.
    pub(in crate::monitor) gone_by_ns: Option<u64>,
    /// When it was last observed alive.
    pub(in crate::monitor) alive_ns: Option<u64>,
    /// When it was last observed to have grown, or its start.
    pub(in crate::monitor) grown_ns: u64,
}

impl ProcessRecord {
    /// Size of the address space, if it was read.
    #[must_use]
    pub(in crate::monitor) fn vm_bytes(&self) -> Option<u64> {
        (self.vm_bytes > 0).then_some(self.vm_bytes)
    }

    /// Resident memory, if it was read.
    #[must_use]
    pub(in crate::monitor) fn rss_bytes(&self) -> Option<u64> {
        (self.vm_bytes > 0).then_some(self.rss_bytes)
    }

    /// Whether it is known to have been gone at that time.
    #[must_use]
    pub(in crate::monitor) fn is_gone_at(&self, at_boot_ns: u64) -> bool {
        self.gone_at_boot_ns.is_some_and(|gone_ns| gone_ns <= at_boot_ns)
    }
}

impl History {
    #[must_use]
    pub(in crate::monitor) fn new() -> Self {
        Self::default()
    }

    /// Merges a snapshot. Ignores one that is older than the last.
    pub(in crate::monitor) fn fold_snapshot(&mut self, snapshot: &Snapshot) {
        let at_ns = snapshot.at_boot_ns;
        if at_ns < self.last_snapshot_boot_ns {
            return;
        }
        self.last_snapshot_boot_ns = at_ns;
        self.scan += 1;
        let scan = self.scan;
        for observed in &snapshot.processes {
            if !self.table.would_keep(observed.key, observed.rss_bytes, at_ns) {
                continue;
            }
            self.observe(observed, at_ns, snapshot.end_boot_ns());
            self.table.shrink();
            if let Some(entry) = self.table.get_mut(observed.key) {
                entry.scan = scan;
            }
        }
        self.find_parents(snapshot);
        self.mark_missing(snapshot);
        self.table.expire(at_ns.saturating_sub(REMEMBERED_NS));
    }

    /// Merges a partial scan.
    pub(in crate::monitor) fn fold_partial_scan(&mut self, scan: &PartialScan) {
        let at_ns = scan.at_boot_ns;
        for observed in &scan.processes {
            self.observe(observed, at_ns, scan.end_boot_ns());
            if self.table.get(observed.key).is_some_and(|entry| entry.parent.is_none()) {
                let parent = self.table.holder_of(observed.parent_pid, at_ns);
                let fits =
                    |parent: &ProcessKey| *parent != observed.key && parent.start_ticks <= observed.key.start_ticks;
                self.table.set_parent(observed.key, parent.filter(fits));
            }
        }
        self.table.shrink();
        for key in &scan.absent {
            self.mark_absent_by(*key, at_ns, scan.end_boot_ns());
        }
        self.table.expire(at_ns.saturating_sub(REMEMBERED_NS));
    }

    /// Merges an event, if it is about the existence of a process.
    pub(in crate::monitor) fn fold_event(&mut self, event: &TraceEvent) {
        let at_ns = event.at_boot_ns;
        match &event.what {
            Trace::Fork(fork) => self.fork(fork, at_ns),
            Trace::Exec(exec) => self.exec(exec, at_ns),
            Trace::Exit(ProcessExit { process }) => self.table.mark_gone(*process, Gone::at(at_ns)),
            Trace::Kill(_) | Trace::Mark(_) | Trace::CgroupMade(_) | Trace::Lost { .. } => {}
        }
        self.table.expire(at_ns.saturating_sub(REMEMBERED_NS));
    }

    /// Notes that a lookup found this process.
    pub(in crate::monitor) fn mark_present(&mut self, key: ProcessKey, at_boot_ns: u64) {
        self.table.set_alive(key, at_boot_ns);
    }

    /// Notes that a lookup did not find this process: it is gone since then, or since it was last observed.
    pub(in crate::monitor) fn mark_absent(&mut self, key: ProcessKey, since_boot_ns: u64) {
        self.mark_absent_by(key, since_boot_ns, since_boot_ns);
    }

    fn mark_absent_by(&mut self, key: ProcessKey, since_boot_ns: u64, by_ns: u64) {
        let seen_ns = self.table.get(key).map_or(0, |entry| {
            let dying_ns = entry.end.map_or(0, |end| end.at_ns);
            entry.alive_ns.unwrap_or(0).max(dying_ns)
        });
        let at_ns = since_boot_ns.max(seen_ns);
        self.table.mark_gone(key, Gone { at_ns, by_ns: by_ns.max(at_ns), is_certain: false });
    }

    /// The record of a process, living or not.
    #[must_use]
    pub(in crate::monitor) fn find(&self, key: ProcessKey) -> Option<ProcessRecord> {
        self.table.get(key).map(|entry| record(key, entry))
    }

    /// The ancestors of a process at that time, parent first. Ends with the first visible process or at the first unknown parent.
    #[must_use]
    pub(in crate::monitor) fn chain(&self, key: ProcessKey, at_boot_ns: u64) -> Vec<ProcessRecord> {
        let mut chain: Vec<ProcessRecord> = Vec::new();
        let mut child = key;
        while chain.len() < MAX_DEPTH {
            let Some(parent) = self.table.get(child).and_then(|entry| entry.parent) else { break };
            let is_new = parent != key && chain.iter().all(|known| known.key != parent);
            // A sane kernel causes neither. The check bounds the chain for any input.
            if !is_new || parent.start_ticks > child.start_ticks {
                break;
            }
            let Some(entry) = self.table.get(parent) else { break };
            let gone_at_boot_ns = entry.gone.map(|gone| gone.at_ns).filter(|gone_ns| *gone_ns <= at_boot_ns);
            chain.push(ProcessRecord { gone_at_boot_ns, ..record(parent, entry) });
            child = parent;
        }
        chain
    }

    /// The youngest processes alive at that time whose sizes were not read since their fork or exec, up to `count`.
    #[must_use]
    pub(in crate::monitor) fn unmeasured(&self, count: usize, at_boot_ns: u64) -> Vec<ProcessKey> {
        // Kernel threads have no memory. Those that snapshots show are not looked up again.
        let is_unmeasured = |entry: &ProcessEntry| entry.vm_bytes == 0 && (entry.scan == 0 || entry.exec_ns > 0);
        let entries =
            self.table.iter().filter(|(key, entry)| is_unmeasured(entry) && is_alive_at(*key, entry, at_boot_ns));
        let mut unseen: Vec<ProcessKey> = entries.map(|(key, _)| key).collect();
        unseen.sort_unstable_by_key(|key| std::cmp::Reverse((key.start_ticks, key.pid)));
        unseen.truncate(count);
        unseen
    }

    /// Sets the sizes that a lookup found.
    pub(in crate::monitor) fn set_sizes(&mut self, key: ProcessKey, sizes: Sizes) {
        self.table.set_sizes(key, sizes);
    }

    /// The largest processes alive at that time by resident memory, up to `count`.
    #[must_use]
    pub(in crate::monitor) fn largest(&self, count: usize, at_boot_ns: u64) -> Vec<ProcessRecord> {
        let is_listed = |key, entry: &ProcessEntry| entry.rss_bytes > 0 && is_alive_at(key, entry, at_boot_ns);
        let entries = self.table.iter().filter(|(key, entry)| is_listed(*key, entry));
        let mut largest: Vec<(ProcessKey, &ProcessEntry)> = entries.collect();
        if largest.len() > count {
            largest.select_nth_unstable_by(count, by_size);
            largest.truncate(count);
        }
        largest.sort_unstable_by(by_size);
        largest.into_iter().map(|(key, entry)| record(key, entry)).collect()
    }

    /// The largest processes alive at that time, the given exited ones with their sizes, and the living ancestors of all.
    #[must_use]
    pub(in crate::monitor) fn with_parents(
        &self,
        count: usize,
        dead: &[(ProcessKey, u64)],
        at_boot_ns: u64,
    ) -> Vec<ProcessUsage> {
        let alive = self.largest(count, at_boot_ns).into_iter().map(|known| (known.key, known.rss_bytes));
        let mut sizes: BTreeMap<ProcessKey, u64> = alive.chain(dead.iter().copied()).collect();
        for key in sizes.keys().copied().collect::<Vec<_>>() {
            let living = self.chain(key, at_boot_ns).into_iter().filter(|above| !above.is_gone_at(at_boot_ns));
            for above in living {
                sizes.entry(above.key).or_insert(above.rss_bytes);
            }
        }
        let usage = |(key, rss_bytes): (ProcessKey, u64)| {
            let entry = self.table.get(key)?;
            Some(ProcessUsage { key, parent: entry.parent, name: entry.name.to_string(), rss_bytes })
        };
        sizes.into_iter().filter_map(usage).collect()
    }

    /// The processes that disappeared since that time or are being killed, in no particular order.
    #[must_use]
    pub(in crate::monitor) fn candidates(&self, since_ns: u64) -> Vec<Candidate> {
        let is_dying =
            |entry: &ProcessEntry| entry.end.is_some_and(|end| end.kind == ExitKind::Killed && end.by_ns >= since_ns);
        let has_left = |entry: &ProcessEntry| entry.gone.is_some_and(|gone| gone.by_ns >= since_ns);
        let entries = self.table.iter().filter(|(_, entry)| has_left(entry) || entry.gone.is_none() && is_dying(entry));
        let candidates = entries.map(|(key, entry)| Candidate {
            process: record(key, entry),
            grown_ns: entry.grown_ns,
            end: entry.end.map(|end| end.kind),
            end_ns: entry.end.map(|end| end.at_ns),
            gone_by_ns: entry.gone.map(|gone| gone.by_ns),
            alive_ns: entry.alive_ns,
        });
        candidates.collect()
    }

    /// Notes the exit of a child.
    pub(in crate::monitor) fn exited(&mut self, exit: &ChildExit) {
        let key = exit.process;
        if self.table.get(key).is_none() && exit.end == ExitKind::Killed {
            let parent = self.table.holder_of(exit.parent_pid, exit.at_boot_ns).filter(|parent| *parent != key);
            let entry = ProcessEntry { parent, ..ProcessEntry::new(exit.name.as_str().into(), key.start_boot_ns()) };
            self.table.insert(key, entry, exit.at_boot_ns);
        }
        self.exited_unseen(key, exit.end, exit.at_boot_ns);
    }

    /// Notes the exit of a process that is already known.
    pub(in crate::monitor) fn exited_unseen(&mut self, process: ProcessKey, end: ExitKind, at_boot_ns: u64) {
        if let Some(entry) = self.table.get_mut(process) {
            entry.end = Some(Ended { kind: end, at_ns: at_boot_ns, by_ns: at_boot_ns });
        }
        self.table.mark_gone(process, Gone::at(at_boot_ns));
    }

    /// The process that had this PID at that time, if known.
    #[must_use]
    pub(in crate::monitor) fn holder_of(&self, pid: u32, at_boot_ns: u64) -> Option<ProcessKey> {
        self.table.holder_of(pid, at_boot_ns)
    }

    /// Number of processes evicted early because the table was full.
    #[must_use]
    pub(in crate::monitor) fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    fn fork(&mut self, fork: &Fork, at_ns: u64) {
        let parent = fork.parent_pid.and_then(|pid| self.table.holder_of(pid, at_ns));
        let parent = parent.filter(|parent| *parent != fork.child && parent.start_ticks <= fork.child.start_ticks);
        if let Some(entry) = self.table.get_mut(fork.child) {
            // A snapshot came first and may show the child with its adoptive parent.
            if parent.is_some() && !std::mem::replace(&mut entry.has_fork_parent, true) {
                self.table.set_parent(fork.child, parent);
            }
            return;
        }
        let inherited = parent.and_then(|parent| self.table.get(parent));
        let (name, cmdline) = inherited.map(|entry| (entry.name.clone(), entry.cmdline.clone())).unwrap_or_default();
        let entry = ProcessEntry {
            parent,
            parent_pid: fork.parent_pid.unwrap_or(0),
            has_fork_parent: parent.is_some(),
            is_forked: true,
            cmdline,
            ..ProcessEntry::new(name, at_ns)
        };
        self.table.insert(fork.child, entry, at_ns);
    }

    fn exec(&mut self, exec: &Exec, at_ns: u64) {
        let name: Arc<str> = exec.name.as_str().into();
        let cmdline = Arc::new(Cmdline { bytes: exec.cmdline.clone(), is_cut: exec.cmdline_is_cut });
        match self.table.get_mut(exec.process) {
            Some(entry) if entry.gone.is_none() && at_ns >= entry.exec_ns => {
                entry.name = name;
                entry.exec_ns = at_ns;
                // The sizes were the old program's. The new one starts small.
                self.table.set_sizes(exec.process, Sizes::default());
                self.table.set_cmdline(exec.process, cmdline);
                self.table.set_first_cmdline(exec.process, None);
            }
            Some(_) => {}
            None => {
                let entry = ProcessEntry { exec_ns: at_ns, cmdline, ..ProcessEntry::new(name, at_ns) };
                self.table.insert(exec.process, entry, at_ns);
            }
        }
    }

    /// Takes a process from a scan. What lives did so at its start; what has ended did so by its end, which may be after the kill was
    /// counted.
    fn observe(&mut self, observed: &ProcessSample, at_ns: u64, end_ns: u64) {
        if self.table.get(observed.key).is_none() {
            let entry = ProcessEntry {
                cmdline: observed.cmdline.clone(),
                ..ProcessEntry::new(observed.name.clone(), observed.key.start_boot_ns())
            };
            self.table.add(observed.key, entry, at_ns);
        }
        let Some(entry) = self.table.get_mut(observed.key) else { return };
        if let Some(end) = observed.end
            && entry.end.is_none()
        {
            entry.end = Some(Ended { kind: end, at_ns, by_ns: end_ns });
        }
        if observed.is_zombie {
            self.table.mark_gone(observed.key, Gone { by_ns: end_ns, ..Gone::at(at_ns) });
            return;
        }
        if entry.gone.is_some_and(|gone| gone.is_certain) {
            return;
        }
        if observed.end.is_none() && !observed.is_leaving {
            entry.alive_ns = Some(at_ns);
        }
        entry.oom_score_adj = observed.oom_score_adj;
        let has_changed = entry.name != observed.name;
        let is_newer = entry.exec_ns <= at_ns;
        // An exiting process has no memory left. Keep its last sizes.
        if is_newer && observed.vm_bytes > 0 {
            if observed.rss_bytes > entry.rss_bytes && entry.rss_bytes > 0 {
                entry.grown_ns = at_ns;
            }
            (entry.vm_bytes, entry.rss_bytes) = (observed.vm_bytes, observed.rss_bytes);
        }
        if is_newer && has_changed {
            entry.name = observed.name.clone();
        }
        self.table.revive(observed.key);
        self.table.update_activity(observed.key, at_ns);
        // A process may exec without arguments. An exiting process loses the ones it had.
        let has_arguments = !observed.cmdline.bytes.is_empty();
        if is_newer && (has_arguments || has_changed && observed.vm_bytes > 0) {
            self.set_title(observed);
        }
    }

    /// Takes the arguments that `/proc` shows and keeps the original ones under a title: from the scanner, from the exec event,
    /// or inherited at the fork.
    fn set_title(&mut self, observed: &ProcessSample) {
        let Some(entry) = self.table.get(observed.key) else { return };
        let is_program_told = entry.exec_ns > 0 || entry.is_forked;
        let told = Some(entry.first_cmdline.as_ref().unwrap_or(&entry.cmdline))
            .filter(|told| is_program_told && !told.bytes.is_empty() && !is_beginning_of(told, &observed.cmdline));
        let first = told.cloned().or_else(|| observed.first_cmdline.clone());
        self.table.set_cmdline(observed.key, observed.cmdline.clone());
        self.table.set_first_cmdline(observed.key, first);
    }

    /// Sets the parents of processes in the snapshot that have none yet.
    fn find_parents(&mut self, snapshot: &Snapshot) {
        let lacks =
            |observed: &&ProcessSample| self.table.get(observed.key).is_some_and(|entry| entry.parent.is_none());
        let orphans: Vec<&ProcessSample> =
            snapshot.processes.iter().filter(|observed| observed.parent_pid != 0).filter(lacks).collect();
        if orphans.is_empty() {
            return;
        }
        let mut keys: Vec<ProcessKey> = snapshot.processes.iter().map(|observed| observed.key).collect();
        keys.sort_unstable();
        for orphan in orphans {
            let fork_parent_pid = self.table.get(orphan.key).map_or(0, |entry| entry.parent_pid);
            let fits = |key: &ProcessKey| *key != orphan.key && key.start_ticks <= orphan.key.start_ticks;
            let holder = |pid: u32| keys.binary_search_by_key(&pid, |key| key.pid).ok().map(|index| keys[index]);
            let parent = [fork_parent_pid, orphan.parent_pid].into_iter().find_map(|pid| holder(pid).filter(fits));
            self.table.set_parent(orphan.key, parent);
        }
    }

    /// Marks processes as gone that the snapshot should show and does not.
    fn mark_missing(&mut self, snapshot: &Snapshot) {
        let at_ns = snapshot.at_boot_ns;
        let largest_pid = snapshot.processes.iter().map(|observed| observed.key.pid).max().unwrap_or(0);
        let is_covered = |key: ProcessKey| {
            let next_tick = ProcessKey { start_ticks: key.start_ticks.saturating_add(1), ..key };
            next_tick.start_boot_ns() <= at_ns && (snapshot.left_out == 0 || key.pid <= largest_pid)
        };
        let is_missed = |(key, entry): &(ProcessKey, &ProcessEntry)| {
            entry.gone.is_none() && entry.scan != self.scan && is_covered(*key)
        };
        let missed: Vec<ProcessKey> = self.table.iter().filter(is_missed).map(|(key, _)| key).collect();
        for key in missed {
            let by_ns =
                if snapshot.vanished.contains(&key.pid) { snapshot.end_boot_ns() } else { snapshot.listed_boot_ns };
            self.table.mark_gone(key, Gone { at_ns, by_ns: by_ns.max(at_ns), is_certain: false });
        }
    }
}

fn is_alive_at(key: ProcessKey, entry: &ProcessEntry, at_boot_ns: u64) -> bool {
    key.start_boot_ns() <= at_boot_ns && entry.gone.is_none_or(|gone| gone.at_ns > at_boot_ns)
}

/// Whether both are the same as far as they were kept.
fn is_beginning_of(one: &Cmdline, other: &Cmdline) -> bool {
    let length = one.bytes.len().min(other.bytes.len());
    one.bytes[..length] == other.bytes[..length]
        && (one.bytes.len() == length || other.is_cut)
        && (other.bytes.len() == length || one.is_cut)
}

fn record(key: ProcessKey, entry: &ProcessEntry) -> ProcessRecord {
    ProcessRecord {
        key,
        name: entry.name.clone(),
        cmdline: entry.cmdline.clone(),
        first_cmdline: entry.first_cmdline.clone(),
        vm_bytes: entry.vm_bytes,
        rss_bytes: entry.rss_bytes,
        oom_score_adj: entry.oom_score_adj,
        gone_at_boot_ns: entry.gone.map(|gone| gone.at_ns),
    }
}

/// Largest first, then youngest, then by PID: a total order.
fn by_size(one: &(ProcessKey, &ProcessEntry), other: &(ProcessKey, &ProcessEntry)) -> std::cmp::Ordering {
    let order =
        |(key, entry): &(ProcessKey, &ProcessEntry)| (entry.rss_bytes, key.start_ticks, std::cmp::Reverse(key.pid));
    order(other).cmp(&order(one))
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
