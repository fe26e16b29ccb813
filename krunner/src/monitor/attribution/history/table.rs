//! The entries of the history and their limits.
//!
//! Keeps the indexes consistent: the holder of each PID, the number of children of each entry, the eviction order, and the bytes
//! that command lines take. Does not know about snapshots or events.
//!
//! When the table is full, entries are evicted in this order: exited processes without children; processes known only from a fork
//! or exec event, without children (most short-lived ones exit untraced); other exited processes; living processes without
//! children. In the first three classes the oldest is evicted first. Among living processes the idle are evicted before the
//! active, the smaller before the larger and the older before the younger: the kernel kills large processes, and a process that
//! was idle for long is no victim. So with 32,000 processes the large, growing and young ones stay, with all their ancestors.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::monitor::model::process::{Cmdline, ExitKind, ProcessKey, Sizes};

/// Maximum number of entries: 2,000 living processes and 60 s of a busy build. About 9 MiB when full, including names, arguments
/// and indexes.
const MAX_ENTRIES: usize = 16_384;

/// Maximum bytes of command lines. A shared command line counts once.
const MAX_CMDLINE_BYTES: usize = 2 << 20;

/// Bytes of its command line that an entry may always keep.
const SHORT_CMDLINE_BYTES: usize = 32;

/// Maximum bytes of longer command lines; the rest is reserved for short ones.
const LONG_CMDLINE_BYTES: usize = MAX_CMDLINE_BYTES - MAX_ENTRIES * SHORT_CMDLINE_BYTES;

/// How long a living process is active after its start or its last growth, whatever its size: several scans of `/proc`.
const ACTIVE_NS: u64 = 10 * 1_000_000_000;

/// An entry of the table.
#[derive(Debug)]
pub(super) struct ProcessEntry {
    pub(super) parent: Option<ProcessKey>,
    /// The parent that the fork event named, known or not; 0 without a fork event.
    pub(super) parent_pid: u32,
    /// The parent comes from a fork event.
    pub(super) has_fork_parent: bool,
    pub(super) name: Arc<str>,
    pub(super) cmdline: Arc<Cmdline>,
    /// The original arguments under a title.
    pub(super) first_cmdline: Option<Arc<Cmdline>>,
    /// Its arguments were inherited at the fork.
    pub(super) is_forked: bool,
    /// When an exec event set name and command line; 0 without one.
    pub(super) exec_ns: u64,
    /// Changed by [`Table::set_sizes`] only, as is `rss_bytes`.
    pub(super) vm_bytes: u64,
    pub(super) rss_bytes: u64,
    pub(super) oom_score_adj: i16,
    /// Number of the last snapshot that shows it; 0 if none does.
    pub(super) scan: u64,
    /// The time of the last snapshot that shows it alive.
    pub(super) alive_ns: Option<u64>,
    /// When it was last observed to have grown, or its start.
    pub(super) grown_ns: u64,
    pub(super) gone: Option<Gone>,
    /// How it exits.
    pub(super) end: Option<Ended>,
    pub(super) state: EntryState,
}

/// The fields of an entry that [`Table`] manages.
#[derive(Debug)]
pub(super) struct EntryState {
    /// When it became known, or its start.
    since_ns: u64,
    /// Number of entries that have it as parent.
    children: u32,
    /// Its key in [`Table::evictable`].
    eviction_key: Option<EvictionKey>,
    /// It was young or growing when it was last observed.
    is_active: bool,
}

/// The process is exiting or has exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) kind: ExitKind,
    /// When that became known: the start of the scan.
    pub(super) at_ns: u64,
    /// The latest time at which it can have begun: the end of the scan.
    pub(super) by_ns: u64,
}

/// The process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone {
    /// When it exited, or the start of the scan that noticed its absence.
    pub(super) at_ns: u64,
    /// The latest time at which it can have exited.
    pub(super) by_ns: u64,
    /// The exit was observed, not only the absence.
    pub(super) is_certain: bool,
}

impl Gone {
    /// An exit at a known time.
    pub(super) fn at(at_ns: u64) -> Self {
        Self { at_ns, by_ns: at_ns, is_certain: true }
    }
}

/// Eviction order: the class, the order within it (a time in nanoseconds, or [`ProcessEntry::weight`] for the living), the
/// process.
type EvictionKey = (EvictionClass, u64, ProcessKey);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EvictionClass {
    GoneLeaf,
    UnseenLeaf,
    GoneParent,
    LivingLeaf,
}

impl ProcessEntry {
    pub(super) fn new(name: Arc<str>, since_ns: u64) -> Self {
        Self {
            parent: None,
            parent_pid: 0,
            has_fork_parent: false,
            name,
            cmdline: Arc::default(),
            first_cmdline: None,
            is_forked: false,
            exec_ns: 0,
            vm_bytes: 0,
            rss_bytes: 0,
            oom_score_adj: 0,
            scan: 0,
            alive_ns: None,
            grown_ns: since_ns,
            gone: None,
            end: None,
            state: EntryState { since_ns, children: 0, eviction_key: None, is_active: false },
        }
    }

    fn eviction_key(&self, key: ProcessKey) -> Option<EvictionKey> {
        match (self.gone, self.state.children) {
            (Some(gone), 0) => Some((EvictionClass::GoneLeaf, gone.at_ns, key)),
            (Some(gone), _) => Some((EvictionClass::GoneParent, gone.at_ns, key)),
            (None, 0) if self.alive_ns.is_none() => Some((EvictionClass::UnseenLeaf, self.state.since_ns, key)),
            (None, 0) => Some((EvictionClass::LivingLeaf, self.weight(key), key)),
            (None, _) => None,
        }
    }

    /// Whether it is young or growing. [`Self::grown_ns`] begins as its start.
    fn is_active(&self, at_ns: u64) -> bool {
        at_ns.saturating_sub(self.grown_ns) < ACTIVE_NS
    }

    /// Priority of a living process. Sizes count by their power of two, so that the key seldom changes.
    fn weight(&self, key: ProcessKey) -> u64 {
        const TICKS_BITS: u32 = 48;
        let size_class = u64::from(u64::BITS - self.rss_bytes.leading_zeros());
        let activity = u64::from(self.state.is_active) << (TICKS_BITS + 8);
        activity | size_class << TICKS_BITS | key.start_ticks & ((1 << TICKS_BITS) - 1)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// Boxed, because a hash table keeps half of its slots empty and copies the others when it grows.
    entries: HashMap<ProcessKey, Box<ProcessEntry>>,
    /// The youngest entry with a PID, living or gone.
    holders: HashMap<u32, ProcessKey>,
    /// Entries that may be evicted, in eviction order.
    evictable: BTreeSet<EvictionKey>,
    cmdlines: CmdlineBudget,
    evicted: u64,
}

impl Table {
    pub(super) fn get(&self, key: ProcessKey) -> Option<&ProcessEntry> {
        self.entries.get(&key).map(Box::as_ref)
    }

    /// For fields that no index depends on. The others are changed by methods of the table.
    pub(super) fn get_mut(&mut self, key: ProcessKey) -> Option<&mut ProcessEntry> {
        self.entries.get_mut(&key).map(Box::as_mut)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ProcessKey, &ProcessEntry)> {
        self.entries.iter().map(|(key, entry)| (*key, entry.as_ref()))
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The process that had this PID at that time, if known.
    pub(super) fn holder_of(&self, pid: u32, at_ns: u64) -> Option<ProcessKey> {
        let key = *self.holders.get(&pid)?;
        let gone = self.entries.get(&key)?.gone;
        gone.is_none_or(|gone| gone.at_ns >= at_ns).then_some(key)
    }

    /// Adds a process that is not in the table yet.
    pub(super) fn insert(&mut self, key: ProcessKey, entry: ProcessEntry, at_ns: u64) {
        self.add(key, entry, at_ns);
        self.shrink();
    }

    /// Adds a process without evicting others. The caller calls [`Self::shrink`] when the batch is complete.
    pub(super) fn add(&mut self, key: ProcessKey, mut entry: ProcessEntry, at_ns: u64) {
        let cmdline = self.fit(std::mem::take(&mut entry.cmdline));
        self.cmdlines.hold(&cmdline);
        entry.cmdline = cmdline;
        let parent = entry.parent;
        self.entries.insert(key, Box::new(entry));
        self.count_child(parent, 1);
        self.update_eviction_key(key);
        let holder = *self.holders.entry(key.pid).or_insert(key);
        if holder.start_ticks < key.start_ticks {
            self.holders.insert(key.pid, key);
            self.mark_gone(holder, Gone::at(at_ns));
        } else if holder != key {
            self.mark_gone(key, Gone::at(at_ns));
        }
    }

    /// Evicts entries until the table is within its limit. Every chain of living processes ends in one without children, so an
    /// entry can always be evicted.
    pub(super) fn shrink(&mut self) {
        while self.entries.len() > MAX_ENTRIES
            && let Some((_, _, first)) = self.evictable.first().copied()
        {
            self.evict(first);
        }
    }

    /// Whether a living process of that size, observed now, would stay in the table.
    pub(super) fn would_keep(&self, key: ProcessKey, rss_bytes: u64, at_ns: u64) -> bool {
        if self.entries.len() < MAX_ENTRIES || self.entries.contains_key(&key) {
            return true;
        }
        let mut entry = ProcessEntry { rss_bytes, ..ProcessEntry::new(Arc::default(), key.start_boot_ns()) };
        entry.state.is_active = entry.is_active(at_ns);
        let eviction_key = (EvictionClass::LivingLeaf, entry.weight(key), key);
        self.evictable.first().is_some_and(|first| *first < eviction_key)
    }

    /// Sets the sizes; 0 means unknown.
    pub(super) fn set_sizes(&mut self, key: ProcessKey, sizes: Sizes) {
        if let Some(entry) = self.entries.get_mut(&key) {
            (entry.vm_bytes, entry.rss_bytes) = (sizes.vm_bytes, sizes.rss_bytes);
            self.update_eviction_key(key);
        }
    }

    /// Notes that the process was alive at that time.
    pub(super) fn set_alive(&mut self, key: ProcessKey, at_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.alive_ns = entry.alive_ns.max(Some(at_ns));
            self.update_eviction_key(key);
        }
    }

    /// Updates the activity of a living process and its eviction key.
    pub(super) fn update_activity(&mut self, key: ProcessKey, at_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state.is_active = entry.is_active(at_ns);
            self.update_eviction_key(key);
        }
    }

    pub(super) fn set_parent(&mut self, key: ProcessKey, parent: Option<ProcessKey>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let before = std::mem::replace(&mut entry.parent, parent);
        self.count_child(before, -1);
        self.count_child(parent, 1);
    }

    /// Sets the command line of a living process.
    pub(super) fn set_cmdline(&mut self, key: ProcessKey, cmdline: Arc<Cmdline>) {
        if self.entries.get(&key).is_none_or(|entry| Arc::ptr_eq(&entry.cmdline, &cmdline)) {
            return;
        }
        let cmdline = self.fit(cmdline);
        if let Some(entry) = self.entries.get_mut(&key) {
            self.cmdlines.hold(&cmdline);
            self.cmdlines.release(&std::mem::replace(&mut entry.cmdline, cmdline));
        }
    }

    /// Sets the original command line of a living process.
    pub(super) fn set_first_cmdline(&mut self, key: ProcessKey, cmdline: Option<Arc<Cmdline>>) {
        let before = self.entries.get(&key).and_then(|entry| entry.first_cmdline.clone());
        if before == cmdline {
            return;
        }
        let cmdline = cmdline.map(|cmdline| self.fit(cmdline));
        if let Some(entry) = self.entries.get_mut(&key) {
            if let Some(cmdline) = &cmdline {
                self.cmdlines.hold(cmdline);
            }
            if let Some(before) = std::mem::replace(&mut entry.first_cmdline, cmdline) {
                self.cmdlines.release(&before);
            }
        }
    }

    pub(super) fn mark_gone(&mut self, key: ProcessKey, gone: Gone) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let before = entry.gone.unwrap_or(gone);
        // Absence is noticed late, so the earlier time is closer.
        let (at_ns, by_ns) = (before.at_ns.min(gone.at_ns), before.by_ns.min(gone.by_ns));
        entry.gone = Some(Gone { at_ns, by_ns, is_certain: before.is_certain || gone.is_certain });
        self.update_eviction_key(key);
    }

    /// Notes that the process exists after all, unless its exit is certain.
    pub(super) fn revive(&mut self, key: ProcessKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.gone = entry.gone.filter(|gone| gone.is_certain);
        self.update_eviction_key(key);
    }

    /// Forgets processes that were gone before that time, unless a descendant needs them.
    pub(super) fn expire(&mut self, before_ns: u64) {
        while let Some((EvictionClass::GoneLeaf, gone_ns, key)) = self.evictable.first().copied()
            && gone_ns < before_ns
        {
            self.remove(key);
        }
    }

    /// The command line, truncated if it does not fit even after evicting exited processes.
    fn fit(&mut self, cmdline: Arc<Cmdline>) -> Arc<Cmdline> {
        while !self.cmdlines.has_room(&cmdline) {
            let Some((EvictionClass::GoneLeaf, _, key)) = self.evictable.first().copied() else {
                let bytes = cmdline.bytes[..SHORT_CMDLINE_BYTES].to_vec();
                return Arc::new(Cmdline { bytes, is_cut: true });
            };
            self.evict(key);
        }
        cmdline
    }

    fn evict(&mut self, key: ProcessKey) {
        self.evicted += 1;
        self.remove(key);
    }

    fn remove(&mut self, key: ProcessKey) {
        let Some(entry) = self.entries.remove(&key) else { return };
        if let Some(eviction_key) = entry.state.eviction_key {
            self.evictable.remove(&eviction_key);
        }
        if self.holders.get(&key.pid) == Some(&key) {
            self.holders.remove(&key.pid);
        }
        self.cmdlines.release(&entry.cmdline);
        if let Some(first) = &entry.first_cmdline {
            self.cmdlines.release(first);
        }
        self.count_child(entry.parent, -1);
    }

    fn count_child(&mut self, parent: Option<ProcessKey>, change: i32) {
        let Some(key) = parent else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        // A parent that was evicted and added again does not count its earlier children.
        entry.state.children = entry.state.children.saturating_add_signed(change);
        self.update_eviction_key(key);
    }

    fn update_eviction_key(&mut self, key: ProcessKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let eviction_key = entry.eviction_key(key);
        if eviction_key == entry.state.eviction_key {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.state.eviction_key, eviction_key) {
            self.evictable.remove(&before);
        }
        self.evictable.extend(eviction_key);
    }
}

/// Bytes of long command lines. A shared one counts once.
#[derive(Debug, Default)]
struct CmdlineBudget {
    bytes: usize,
    /// Reference counts by address. The address is unique because the table holds the value.
    holders: HashMap<usize, u32>,
}

impl CmdlineBudget {
    fn has_room(&self, cmdline: &Arc<Cmdline>) -> bool {
        let length = cmdline.bytes.len();
        length <= SHORT_CMDLINE_BYTES
            || self.bytes + length <= LONG_CMDLINE_BYTES
            || self.holders.contains_key(&Arc::as_ptr(cmdline).addr())
    }

    fn hold(&mut self, cmdline: &Arc<Cmdline>) {
        if cmdline.bytes.len() <= SHORT_CMDLINE_BYTES {
            return;
        }
        let count = self.holders.entry(Arc::as_ptr(cmdline).addr()).or_insert(0);
        self.bytes += if *count == 0 { cmdline.bytes.len() } else { 0 };
        *count += 1;
    }

    fn release(&mut self, cmdline: &Arc<Cmdline>) {
        let address = Arc::as_ptr(cmdline).addr();
        let Some(count) = self.holders.get_mut(&address) else { return };
        *count -= 1;
        if *count == 0 {
            self.holders.remove(&address);
            self.bytes -= cmdline.bytes.len();
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
