//! Who was there, started by whom, how big: what snapshots and events say together.
//!
//! Pure: no clock but the times in what it is told. Snapshots show everybody every now and then, with
//! memory; fork and exec events add who lived in between. The question is who *started* a process, and an
//! orphan's parent in `/proc` is whoever adopted it: an entry keeps the first parent it is known with, as
//! a (pid, start) key that no reuse of the pid can redirect, also when that parent is long gone.
//!
//! ```text
//!   snapshot, fork, exec                    exit, zombie,
//!  ─────────────────────▶ living ──────────────────────────────────▶ gone ─ 60 s, no child left ─▶ forgotten
//!                           ▲    not in a snapshot, pid in other hands │
//!                           └───── in a snapshot again (absence only) ─┘
//! ```
//!
//! What is told late is sorted in by its time: a snapshot that began before an exec does not undo it, a fork
//! event after the snapshot that shows the child still names the parent. Bounds are `table`'s matter.

mod table;

use std::sync::Arc;

use super::event::{Death, Exec, Exit, Fork, ProcessKey, Trace, TraceEvent};
use super::process::{Cmdline, End, Glance, Observed, Sizes, Snapshot};
use table::{Entry, Gone, Table};

/// Ancestors of a chain: deeper than any real one, and a report still fits a screen or two.
const MAX_DEPTH: usize = 32;

/// How long a process is remembered after its end: several times what a victim may take from SIGKILL to
/// exit, and far more than two snapshots.
const REMEMBERED_NS: u64 = 60 * 1_000_000_000;

/// What is known of the processes here.
#[derive(Debug, Default)]
pub(super) struct History {
    table: Table,
    /// Snapshots so far.
    scan: u64,
    last_snapshot_boot_ns: u64,
}

/// A process as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Which.
    pub(super) key: ProcessKey,
    /// Its comm.
    pub(super) name: Arc<str>,
    /// Its arguments or title; between a fork and what tells more, its parent's.
    pub(super) cmdline: Arc<Cmdline>,
    /// The arguments that it began with, if it wrote a title over them.
    pub(super) first_cmdline: Option<Arc<Cmdline>>,
    /// Address space when it was last seen with its present program; 0 if nobody saw that.
    pub(super) vm_bytes: u64,
    /// Resident, likewise. May be 0 when it was seen, too: all of it swapped out.
    pub(super) rss_bytes: u64,
    /// As in `/proc/PID/oom_score_adj`; 0 if nobody has looked.
    pub(super) oom_score_adj: i16,
    /// Known to be gone since then, in nanoseconds since boot.
    pub(super) gone_at_boot_ns: Option<u64>,
}

/// A process that has left, or is about to, and may have been killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    /// Who it is, and what it had when it was last seen.
    pub(super) known: Known,
    /// How it ends, if that was seen.
    pub(super) end: Option<End>,
    /// When that was seen first.
    pub(super) end_ns: Option<u64>,
    /// When it was last seen alive.
    pub(super) alive_ns: Option<u64>,
    /// When it was last seen to have grown, or its birth.
    pub(super) grown_ns: u64,
}

impl Known {
    /// Address space, if it was seen.
    #[must_use]
    pub(super) fn vm_bytes(&self) -> Option<u64> {
        (self.vm_bytes > 0).then_some(self.vm_bytes)
    }

    /// Resident memory, if it was seen.
    #[must_use]
    pub(super) fn rss_bytes(&self) -> Option<u64> {
        (self.vm_bytes > 0).then_some(self.rss_bytes)
    }

    /// Whether it was known to be gone at that time.
    #[must_use]
    pub(super) fn is_gone_at(&self, at_boot_ns: u64) -> bool {
        self.gone_at_boot_ns.is_some_and(|gone_ns| gone_ns <= at_boot_ns)
    }
}

impl History {
    /// Nothing is known.
    #[must_use]
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Takes a snapshot in. One that is older than the last is of no use any more.
    pub(super) fn fold_snapshot(&mut self, snapshot: &Snapshot) {
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
            self.observe(observed, at_ns);
            self.table.shrink();
            if let Some(entry) = self.table.get_mut(observed.key) {
                entry.scan = scan;
            }
        }
        self.find_parents(snapshot);
        self.miss(snapshot);
        self.table.expire(at_ns.saturating_sub(REMEMBERED_NS));
    }

    /// Takes a glance in.
    pub(super) fn fold_glance(&mut self, glance: &Glance) {
        let at_ns = glance.at_boot_ns;
        for observed in &glance.processes {
            self.observe(observed, at_ns);
            if self.table.get(observed.key).is_some_and(|entry| entry.parent.is_none()) {
                let parent = self.table.holder_of(observed.parent_pid, at_ns);
                let fits =
                    |parent: &ProcessKey| *parent != observed.key && parent.start_ticks <= observed.key.start_ticks;
                self.table.set_parent(observed.key, parent.filter(fits));
            }
        }
        self.table.shrink();
        for key in &glance.absent {
            self.mark_absent(*key, at_ns);
        }
        self.table.expire(at_ns.saturating_sub(REMEMBERED_NS));
    }

    /// Takes an event in; those that say nothing about who is there change nothing.
    pub(super) fn fold_event(&mut self, event: &TraceEvent) {
        let at_ns = event.at_boot_ns;
        match &event.what {
            Trace::Fork(fork) => self.fork(fork, at_ns),
            Trace::Exec(exec) => self.exec(exec, at_ns),
            Trace::Exit(Exit { process }) => self.table.mark_gone(*process, Gone { at_ns, is_certain: true }),
            Trace::Kill(_) | Trace::Mark(_) | Trace::CgroupMade(_) | Trace::Lost { .. } => {}
        }
        self.table.expire(at_ns.saturating_sub(REMEMBERED_NS));
    }

    /// Somebody has looked and found this process.
    pub(super) fn mark_present(&mut self, key: ProcessKey, at_boot_ns: u64) {
        self.table.set_alive(key, at_boot_ns);
    }

    /// Somebody has looked and not found this process: it is gone since then, or since it was last seen.
    pub(super) fn mark_absent(&mut self, key: ProcessKey, since_boot_ns: u64) {
        let seen_ns = self.table.get(key).map_or(0, |entry| {
            let dying_ns = entry.end.map_or(0, |(_, at_ns)| at_ns);
            entry.alive_ns.unwrap_or(0).max(dying_ns)
        });
        self.table.mark_gone(key, Gone { at_ns: since_boot_ns.max(seen_ns), is_certain: false });
    }

    /// A process, living or not.
    #[must_use]
    pub(super) fn find(&self, key: ProcessKey) -> Option<Known> {
        self.table.get(key).map(|entry| known(key, entry))
    }

    /// Who started a process: its parent first, then that one's, as it was at that time. Ends with the first
    /// process that can be seen, or where nothing more is known.
    #[must_use]
    pub(super) fn chain(&self, key: ProcessKey, at_boot_ns: u64) -> Vec<Known> {
        let mut chain: Vec<Known> = Vec::new();
        let mut child = key;
        while chain.len() < MAX_DEPTH {
            let Some(parent) = self.table.get(child).and_then(|entry| entry.parent) else { break };
            let is_new = parent != key && chain.iter().all(|known| known.key != parent);
            // Neither can happen with a sane kernel; a chain must end whatever we were told.
            if !is_new || parent.start_ticks > child.start_ticks {
                break;
            }
            let Some(entry) = self.table.get(parent) else { break };
            let gone_at_boot_ns = entry.gone.map(|gone| gone.at_ns).filter(|gone_ns| *gone_ns <= at_boot_ns);
            chain.push(Known { gone_at_boot_ns, ..known(parent, entry) });
            child = parent;
        }
        chain
    }

    /// The youngest processes alive at that time, at most so many, whose size nobody has seen since their fork or exec.
    #[must_use]
    pub(super) fn unseen(&self, count: usize, at_boot_ns: u64) -> Vec<ProcessKey> {
        // Kernel threads have no memory: those that snapshots show are not asked about again.
        let is_unseen = |entry: &Entry| entry.vm_bytes == 0 && (entry.scan == 0 || entry.exec_ns > 0);
        let entries = self.table.iter().filter(|(key, entry)| is_unseen(entry) && is_alive_at(*key, entry, at_boot_ns));
        let mut unseen: Vec<ProcessKey> = entries.map(|(key, _)| key).collect();
        unseen.sort_unstable_by_key(|key| std::cmp::Reverse((key.start_ticks, key.pid)));
        unseen.truncate(count);
        unseen
    }

    /// Somebody has looked at how large a process is.
    pub(super) fn weigh(&mut self, key: ProcessKey, sizes: Sizes) {
        self.table.set_sizes(key, sizes);
    }

    /// The largest processes alive at that time by resident memory, at most so many.
    #[must_use]
    pub(super) fn largest(&self, count: usize, at_boot_ns: u64) -> Vec<Known> {
        let is_listed = |key, entry: &Entry| entry.rss_bytes > 0 && is_alive_at(key, entry, at_boot_ns);
        let entries = self.table.iter().filter(|(key, entry)| is_listed(*key, entry));
        let mut largest: Vec<(ProcessKey, &Entry)> = entries.collect();
        sort_by_size(&mut largest);
        largest.into_iter().take(count).map(|(key, entry)| known(key, entry)).collect()
    }

    /// Who has left since that time, or is seen to be killed; nobody else. In no order.
    #[must_use]
    pub(super) fn suspects(&self, since_ns: u64) -> Vec<Suspect> {
        let is_dying = |entry: &Entry| entry.end.is_some_and(|(end, at_ns)| end == End::Killed && at_ns >= since_ns);
        let has_left = |entry: &Entry| entry.gone.is_some_and(|gone| gone.at_ns >= since_ns);
        let entries = self.table.iter().filter(|(_, entry)| has_left(entry) || entry.gone.is_none() && is_dying(entry));
        let suspects = entries.map(|(key, entry)| Suspect {
            known: known(key, entry),
            grown_ns: entry.grown_ns,
            end: entry.end.map(|(end, _)| end),
            end_ns: entry.end.map(|(_, at_ns)| at_ns),
            alive_ns: entry.alive_ns,
        });
        suspects.collect()
    }

    /// Somebody waits for this process, which has ended.
    pub(super) fn ended(&mut self, death: &Death) {
        let key = death.process;
        if self.table.get(key).is_none() && death.end == End::Killed {
            let parent = self.table.holder_of(death.parent_pid, death.at_boot_ns).filter(|parent| *parent != key);
            let entry = Entry { parent, ..Entry::new(death.name.as_str().into(), key.start_boot_ns()) };
            self.table.insert(key, entry, death.at_boot_ns);
        }
        self.ended_unseen(key, death.end, death.at_boot_ns);
    }

    /// The same of one that is known here.
    pub(super) fn ended_unseen(&mut self, process: ProcessKey, end: End, at_boot_ns: u64) {
        if let Some(entry) = self.table.get_mut(process) {
            entry.end = Some((end, at_boot_ns));
        }
        self.table.mark_gone(process, Gone { at_ns: at_boot_ns, is_certain: true });
    }

    /// Who has that pid at that time, as far as is known.
    #[must_use]
    pub(super) fn holder_of(&self, pid: u32, at_boot_ns: u64) -> Option<ProcessKey> {
        self.table.holder_of(pid, at_boot_ns)
    }

    /// How many processes were forgotten before their time for want of room.
    #[must_use]
    pub(super) fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    fn fork(&mut self, fork: &Fork, at_ns: u64) {
        let parent = fork.parent_pid.and_then(|pid| self.table.holder_of(pid, at_ns));
        let parent = parent.filter(|parent| *parent != fork.child && parent.start_ticks <= fork.child.start_ticks);
        if let Some(entry) = self.table.get_mut(fork.child) {
            // A snapshot was faster; it may have seen the child with whoever adopted it.
            if parent.is_some() && !std::mem::replace(&mut entry.is_parent_told, true) {
                self.table.set_parent(fork.child, parent);
            }
            return;
        }
        let inherited = parent.and_then(|parent| self.table.get(parent));
        let (name, cmdline) = inherited.map(|entry| (entry.name.clone(), entry.cmdline.clone())).unwrap_or_default();
        let entry = Entry {
            parent,
            parent_pid: fork.parent_pid.unwrap_or(0),
            is_parent_told: parent.is_some(),
            is_forked: true,
            cmdline,
            ..Entry::new(name, at_ns)
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
                // Those of the old program: the new one begins with next to nothing.
                self.table.set_sizes(exec.process, Sizes::default());
                self.table.set_cmdline(exec.process, cmdline);
                self.table.set_first_cmdline(exec.process, None);
            }
            Some(_) => {}
            None => {
                let entry = Entry { exec_ns: at_ns, cmdline, ..Entry::new(name, at_ns) };
                self.table.insert(exec.process, entry, at_ns);
            }
        }
    }

    fn observe(&mut self, observed: &Observed, at_ns: u64) {
        if self.table.get(observed.key).is_none() {
            let entry = Entry {
                cmdline: observed.cmdline.clone(),
                ..Entry::new(observed.name.clone(), observed.key.start_boot_ns())
            };
            self.table.add(observed.key, entry, at_ns);
        }
        let Some(entry) = self.table.get_mut(observed.key) else { return };
        if let Some(end) = observed.end
            && entry.end.is_none()
        {
            entry.end = Some((end, at_ns));
        }
        if observed.is_zombie {
            self.table.mark_gone(observed.key, Gone { at_ns, is_certain: true });
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
        // Nothing left: it is on its way out, and what it had before is what counts.
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
        self.table.weigh(observed.key, at_ns);
        // An exec without arguments leaves none behind; a process on its way out lets go of those it had.
        let has_arguments = !observed.cmdline.bytes.is_empty();
        if is_newer && (has_arguments || has_changed && observed.vm_bytes > 0) {
            self.set_title(observed);
        }
    }

    /// Takes over the arguments that `/proc` shows, and keeps those which a title was written over: as the scanner saw them, or
    /// as they were told at the exec or taken over at the fork.
    fn set_title(&mut self, observed: &Observed) {
        let Some(entry) = self.table.get(observed.key) else { return };
        let is_program_told = entry.exec_ns > 0 || entry.is_forked;
        let told = Some(entry.first_cmdline.as_ref().unwrap_or(&entry.cmdline))
            .filter(|told| is_program_told && !told.bytes.is_empty() && !is_beginning_of(told, &observed.cmdline));
        let first = told.cloned().or_else(|| observed.first_cmdline.clone());
        self.table.set_cmdline(observed.key, observed.cmdline.clone());
        self.table.set_first_cmdline(observed.key, first);
    }

    /// For those that the snapshot shows and that have no parent yet.
    fn find_parents(&mut self, snapshot: &Snapshot) {
        let lacks = |observed: &&Observed| self.table.get(observed.key).is_some_and(|entry| entry.parent.is_none());
        let orphans: Vec<&Observed> =
            snapshot.processes.iter().filter(|observed| observed.parent_pid != 0).filter(lacks).collect();
        if orphans.is_empty() {
            return;
        }
        let mut keys: Vec<ProcessKey> = snapshot.processes.iter().map(|observed| observed.key).collect();
        keys.sort_unstable();
        for orphan in orphans {
            let told_pid = self.table.get(orphan.key).map_or(0, |entry| entry.parent_pid);
            let fits = |key: &ProcessKey| *key != orphan.key && key.start_ticks <= orphan.key.start_ticks;
            let holder = |pid: u32| keys.binary_search_by_key(&pid, |key| key.pid).ok().map(|index| keys[index]);
            let parent = [told_pid, orphan.parent_pid].into_iter().find_map(|pid| holder(pid).filter(fits));
            self.table.set_parent(orphan.key, parent);
        }
    }

    /// Marks as gone who should be in the snapshot and is not.
    fn miss(&mut self, snapshot: &Snapshot) {
        let at_ns = snapshot.at_boot_ns;
        let largest_pid = snapshot.processes.iter().map(|observed| observed.key.pid).max().unwrap_or(0);
        let is_covered = |key: ProcessKey| {
            let next_tick = ProcessKey { start_ticks: key.start_ticks.saturating_add(1), ..key };
            next_tick.start_boot_ns() <= at_ns && (snapshot.left_out == 0 || key.pid <= largest_pid)
        };
        let is_missed =
            |(key, entry): &(ProcessKey, &Entry)| entry.gone.is_none() && entry.scan != self.scan && is_covered(*key);
        let missed: Vec<ProcessKey> = self.table.iter().filter(is_missed).map(|(key, _)| key).collect();
        for key in missed {
            self.table.mark_gone(key, Gone { at_ns, is_certain: false });
        }
    }
}

fn is_alive_at(key: ProcessKey, entry: &Entry, at_boot_ns: u64) -> bool {
    key.start_boot_ns() <= at_boot_ns && entry.gone.is_none_or(|gone| gone.at_ns > at_boot_ns)
}

/// Whether one is the other, as far as it was kept.
fn is_beginning_of(one: &Cmdline, other: &Cmdline) -> bool {
    let length = one.bytes.len().min(other.bytes.len());
    one.bytes[..length] == other.bytes[..length]
        && (one.bytes.len() == length || other.is_cut)
        && (other.bytes.len() == length || one.is_cut)
}

fn known(key: ProcessKey, entry: &Entry) -> Known {
    Known {
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

/// Largest first; among equals the youngest, then by pid, so that the order is always the same.
fn sort_by_size(processes: &mut [(ProcessKey, &Entry)]) {
    processes.sort_unstable_by_key(|(key, entry)| {
        (std::cmp::Reverse(entry.rss_bytes), std::cmp::Reverse(key.start_ticks), key.pid)
    });
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
