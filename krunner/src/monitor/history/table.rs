//! The entries of the history, and the bounds on them.
//!
//! Owns the books that have to agree with each other: who holds a pid, how many entries have this one as
//! their parent, who may be forgotten first, and how many bytes the command lines take. Does not know
//! what a snapshot or an event is.
//!
//! When the table is full, entries are dropped in this order: those that are gone and nobody's parent; those that only a
//! fork or exec event told of and that have no children (most short-lived ones end untold); the other gone ones; living
//! ones that have no children here. The oldest goes first in each of the first three groups. Of the living the idle go
//! first, the smaller before the larger and the older before the younger: the kernel kills the large, and what was idle
//! for long is no victim. So with 32,000 processes the large, the growing, the young and all their ancestors are known.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::monitor::event::ProcessKey;
use crate::monitor::process::{Cmdline, End, Sizes};

/// Entries: 2,000 living processes and 60 s of a busy build; some 9 MiB when all of it is in use, with names,
/// arguments and all the books.
const MAX_ENTRIES: usize = 16_384;

/// Bytes of command lines; those shared by several entries count once.
const MAX_CMDLINE_BYTES: usize = 2 << 20;

/// What an entry may always keep of its command line.
const SHORT_CMDLINE_BYTES: usize = 32;

/// For those that are longer; what is left is for the short ones.
const LONG_CMDLINE_BYTES: usize = MAX_CMDLINE_BYTES - MAX_ENTRIES * SHORT_CMDLINE_BYTES;

/// A living process stays in the table for so long after its birth, or after it was seen to grow, whatever its size: some
/// looks at `/proc`.
const LIVELY_NS: u64 = 10 * 1_000_000_000;

/// A process.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) parent: Option<ProcessKey>,
    /// The parent that the fork event named, whether it was known or not; 0 if none did.
    pub(super) parent_pid: u32,
    /// The parent is the fork event's.
    pub(super) is_parent_told: bool,
    pub(super) name: Arc<str>,
    pub(super) cmdline: Arc<Cmdline>,
    /// What a title was written over.
    pub(super) first_cmdline: Option<Arc<Cmdline>>,
    /// Its arguments were its parent's at the fork.
    pub(super) is_forked: bool,
    /// When an exec event told name and command line; 0 if none did.
    pub(super) exec_ns: u64,
    /// Both are changed by [`Table::set_sizes`].
    pub(super) vm_bytes: u64,
    pub(super) rss_bytes: u64,
    pub(super) oom_score_adj: i16,
    /// The last snapshot that shows it, by number; 0 if none does.
    pub(super) scan: u64,
    /// The time of the last snapshot that shows it alive.
    pub(super) alive_ns: Option<u64>,
    /// When it was last seen to have grown, or its birth.
    pub(super) grown_ns: u64,
    pub(super) gone: Option<Gone>,
    /// How it ends, if that was seen, and when.
    pub(super) end: Option<(End, u64)>,
    pub(super) books: Books,
}

/// What [`Table`] keeps about an entry.
#[derive(Debug)]
pub(super) struct Books {
    /// When it was first told of, or born.
    since_ns: u64,
    /// Entries that have it as their parent.
    children: u32,
    /// Its place among those that may be forgotten.
    place: Option<Place>,
    /// It was young or growing when it was last seen.
    is_lively: bool,
}

/// That a process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone {
    /// Since when, or when that was noticed.
    pub(super) at_ns: u64,
    /// It was not just absent.
    pub(super) is_certain: bool,
}

/// Whom to forget first: the group, the order in it (a time in nanoseconds, or for the living [`Entry::weight`]).
type Place = (Rank, u64, ProcessKey);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    GoneLeaf,
    UnseenLeaf,
    GoneParent,
    LivingLeaf,
}

impl Entry {
    pub(super) fn new(name: Arc<str>, since_ns: u64) -> Self {
        Self {
            parent: None,
            parent_pid: 0,
            is_parent_told: false,
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
            books: Books { since_ns, children: 0, place: None, is_lively: false },
        }
    }

    fn place(&self, key: ProcessKey) -> Option<Place> {
        match (self.gone, self.books.children) {
            (Some(gone), 0) => Some((Rank::GoneLeaf, gone.at_ns, key)),
            (Some(gone), _) => Some((Rank::GoneParent, gone.at_ns, key)),
            (None, 0) if self.alive_ns.is_none() => Some((Rank::UnseenLeaf, self.books.since_ns, key)),
            (None, 0) => Some((Rank::LivingLeaf, self.weight(key), key)),
            (None, _) => None,
        }
    }

    /// Young, or growing: at its birth [`Self::grown_ns`] is its start.
    fn is_lively(&self, at_ns: u64) -> bool {
        at_ns.saturating_sub(self.grown_ns) < LIVELY_NS
    }

    /// How much a living process matters. Sizes count by their power of two, so that the place seldom changes.
    fn weight(&self, key: ProcessKey) -> u64 {
        const TICKS_BITS: u32 = 48;
        let size_class = u64::from(u64::BITS - self.rss_bytes.leading_zeros());
        let liveliness = u64::from(self.books.is_lively) << (TICKS_BITS + 8);
        liveliness | size_class << TICKS_BITS | key.start_ticks & ((1 << TICKS_BITS) - 1)
    }
}

/// All entries.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Boxed, because a hash table keeps half of its slots empty and copies the others when it grows.
    entries: HashMap<ProcessKey, Box<Entry>>,
    /// The youngest entry with a pid, living or gone.
    holders: HashMap<u32, ProcessKey>,
    /// Who may be forgotten, in that order.
    spare: BTreeSet<Place>,
    ledger: Ledger,
    evicted: u64,
}

impl Table {
    pub(super) fn get(&self, key: ProcessKey) -> Option<&Entry> {
        self.entries.get(&key).map(Box::as_ref)
    }

    /// For what no book depends on; the rest has methods here.
    pub(super) fn get_mut(&mut self, key: ProcessKey) -> Option<&mut Entry> {
        self.entries.get_mut(&key).map(Box::as_mut)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ProcessKey, &Entry)> {
        self.entries.iter().map(|(key, entry)| (*key, entry.as_ref()))
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Who held a pid at that time, as far as is known.
    pub(super) fn holder_of(&self, pid: u32, at_ns: u64) -> Option<ProcessKey> {
        let key = *self.holders.get(&pid)?;
        let gone = self.entries.get(&key)?.gone;
        gone.is_none_or(|gone| gone.at_ns >= at_ns).then_some(key)
    }

    /// Adds a process, told of at that time, which is not in the table yet.
    pub(super) fn insert(&mut self, key: ProcessKey, entry: Entry, at_ns: u64) {
        self.add(key, entry, at_ns);
        self.shrink();
    }

    /// The same; the caller calls [`Self::shrink`] when all that belongs together is there.
    pub(super) fn add(&mut self, key: ProcessKey, mut entry: Entry, at_ns: u64) {
        let cmdline = self.fit(std::mem::take(&mut entry.cmdline));
        self.ledger.hold(&cmdline);
        entry.cmdline = cmdline;
        let parent = entry.parent;
        self.entries.insert(key, Box::new(entry));
        self.count_child(parent, 1);
        self.refile(key);
        let holder = *self.holders.entry(key.pid).or_insert(key);
        if holder.start_ticks < key.start_ticks {
            self.holders.insert(key.pid, key);
            self.mark_gone(holder, Gone { at_ns, is_certain: true });
        } else if holder != key {
            self.mark_gone(key, Gone { at_ns, is_certain: true });
        }
    }

    /// Drops entries until there are not too many. Every chain of living processes ends with one that has no children, so
    /// there always is one to drop.
    pub(super) fn shrink(&mut self) {
        while self.entries.len() > MAX_ENTRIES
            && let Some((_, _, first)) = self.spare.first().copied()
        {
            self.evict(first);
        }
    }

    /// Whether a living process of that size that is seen now would stay in the table.
    pub(super) fn would_keep(&self, key: ProcessKey, rss_bytes: u64, at_ns: u64) -> bool {
        if self.entries.len() < MAX_ENTRIES || self.entries.contains_key(&key) {
            return true;
        }
        let mut entry = Entry { rss_bytes, ..Entry::new(Arc::default(), key.start_boot_ns()) };
        entry.books.is_lively = entry.is_lively(at_ns);
        let place = (Rank::LivingLeaf, entry.weight(key), key);
        self.spare.first().is_some_and(|first| *first < place)
    }

    /// How large it is; 0 is not known.
    pub(super) fn set_sizes(&mut self, key: ProcessKey, sizes: Sizes) {
        if let Some(entry) = self.entries.get_mut(&key) {
            (entry.vm_bytes, entry.rss_bytes) = (sizes.vm_bytes, sizes.rss_bytes);
            self.refile(key);
        }
    }

    /// It was seen alive at that time.
    pub(super) fn set_alive(&mut self, key: ProcessKey, at_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.alive_ns = entry.alive_ns.max(Some(at_ns));
            self.refile(key);
        }
    }

    /// Files a living process by its size and by whether it is young or growing at that time.
    pub(super) fn weigh(&mut self, key: ProcessKey, at_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.books.is_lively = entry.is_lively(at_ns);
            self.refile(key);
        }
    }

    pub(super) fn set_parent(&mut self, key: ProcessKey, parent: Option<ProcessKey>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let before = std::mem::replace(&mut entry.parent, parent);
        self.count_child(before, -1);
        self.count_child(parent, 1);
    }

    /// For a living process.
    pub(super) fn set_cmdline(&mut self, key: ProcessKey, cmdline: Arc<Cmdline>) {
        if self.entries.get(&key).is_none_or(|entry| Arc::ptr_eq(&entry.cmdline, &cmdline)) {
            return;
        }
        let cmdline = self.fit(cmdline);
        if let Some(entry) = self.entries.get_mut(&key) {
            self.ledger.hold(&cmdline);
            self.ledger.release(&std::mem::replace(&mut entry.cmdline, cmdline));
        }
    }

    /// As above.
    pub(super) fn set_first_cmdline(&mut self, key: ProcessKey, cmdline: Option<Arc<Cmdline>>) {
        let before = self.entries.get(&key).and_then(|entry| entry.first_cmdline.clone());
        if before == cmdline {
            return;
        }
        let cmdline = cmdline.map(|cmdline| self.fit(cmdline));
        if let Some(entry) = self.entries.get_mut(&key) {
            if let Some(cmdline) = &cmdline {
                self.ledger.hold(cmdline);
            }
            if let Some(before) = std::mem::replace(&mut entry.first_cmdline, cmdline) {
                self.ledger.release(&before);
            }
        }
    }

    pub(super) fn mark_gone(&mut self, key: ProcessKey, gone: Gone) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let before = entry.gone.unwrap_or(gone);
        // Absence is noticed late, so the earlier time is the better one.
        let at_ns = before.at_ns.min(gone.at_ns);
        entry.gone = Some(Gone { at_ns, is_certain: before.is_certain || gone.is_certain });
        self.refile(key);
    }

    /// It is there after all, unless its end is certain.
    pub(super) fn revive(&mut self, key: ProcessKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.gone = entry.gone.filter(|gone| gone.is_certain);
        self.refile(key);
    }

    /// Forgets who was gone before that time, unless descendants need it.
    pub(super) fn expire(&mut self, before_ns: u64) {
        while let Some((Rank::GoneLeaf, gone_ns, key)) = self.spare.first().copied()
            && gone_ns < before_ns
        {
            self.remove(key);
        }
    }

    /// The command line, shortened if there is no room for it even without those that are gone.
    fn fit(&mut self, cmdline: Arc<Cmdline>) -> Arc<Cmdline> {
        while !self.ledger.has_room(&cmdline) {
            let Some((Rank::GoneLeaf, _, key)) = self.spare.first().copied() else {
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
        if let Some(place) = entry.books.place {
            self.spare.remove(&place);
        }
        if self.holders.get(&key.pid) == Some(&key) {
            self.holders.remove(&key.pid);
        }
        self.ledger.release(&entry.cmdline);
        if let Some(first) = &entry.first_cmdline {
            self.ledger.release(first);
        }
        self.count_child(entry.parent, -1);
    }

    fn count_child(&mut self, parent: Option<ProcessKey>, change: i32) {
        let Some(key) = parent else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        // A parent that was evicted and seen again does not know of its earlier children.
        entry.books.children = entry.books.children.saturating_add_signed(change);
        self.refile(key);
    }

    fn refile(&mut self, key: ProcessKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let place = entry.place(key);
        if place == entry.books.place {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.books.place, place) {
            self.spare.remove(&before);
        }
        self.spare.extend(place);
    }
}

/// Bytes of long command lines, each counted once however many entries share it.
#[derive(Debug, Default)]
struct Ledger {
    bytes: usize,
    /// By address: it is that of a value we hold, so nobody else's.
    holders: HashMap<usize, u32>,
}

impl Ledger {
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
