//! The state agree whatever happens, and the bounds hold.

use super::*;

impl Table {
    /// Counts everything anew and compares it with the state.
    pub(in crate::monitor::attribution::history) fn check(&self) {
        let mut children: HashMap<ProcessKey, u32> = HashMap::new();
        for parent in self.entries.values().filter_map(|entry| entry.parent) {
            *children.entry(parent).or_default() += 1;
        }
        let mut places = BTreeSet::new();
        for (key, entry) in &self.entries {
            assert_eq!(entry.eviction_key(*key), entry.state.eviction_key, "{key:?}");
            places.extend(entry.state.eviction_key);
            assert!(entry.state.children <= children.get(key).copied().unwrap_or(0), "children of {key:?}");
            if self.evicted == 0 {
                assert_eq!(entry.state.children, children.get(key).copied().unwrap_or(0), "children of {key:?}");
            }
            let is_holder = self.holders.get(&key.pid) == Some(key);
            assert!(is_holder || entry.gone.is_some(), "two living ones with the pid of {key:?}");
        }
        assert_eq!(places, self.evictable);
        assert!(self.holders.values().all(|holder| self.entries.contains_key(holder)));
        let distinct: HashMap<_, _> =
            self.entries.values().map(|entry| (Arc::as_ptr(&entry.cmdline), entry.cmdline.bytes.len())).collect();
        let long: Vec<usize> = distinct.values().copied().filter(|length| *length > SHORT_CMDLINE_BYTES).collect();
        assert_eq!((long.iter().sum(), long.len()), (self.cmdlines.bytes, self.cmdlines.holders.len()));
        assert!(distinct.values().sum::<usize>() <= MAX_CMDLINE_BYTES);
        assert!(self.entries.len() <= MAX_ENTRIES);
    }
}

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_ticks: u64::from(pid) }
}

fn cmdline(bytes: usize) -> Arc<Cmdline> {
    Arc::new(Cmdline { bytes: vec![b'x'; bytes], is_cut: false })
}

fn most() -> u32 {
    u32::try_from(MAX_ENTRIES).unwrap()
}

fn entry(parent: Option<u32>, bytes: usize, since_ns: u64) -> ProcessEntry {
    ProcessEntry { parent: parent.map(key), cmdline: cmdline(bytes), ..ProcessEntry::new("x".into(), since_ns) }
}

fn seen(parent: Option<u32>) -> ProcessEntry {
    ProcessEntry { alive_ns: Some(1), ..entry(parent, 10, 1) }
}

#[test]
fn exited_processes_are_evicted_first_oldest_first() {
    let mut table = Table::default();
    (1..=most()).for_each(|pid| table.insert(key(pid), seen(None), 1));
    table.mark_gone(key(7), Gone::at(20));
    table.mark_gone(key(8), Gone { is_certain: false, ..Gone::at(10) });
    // A parent is evicted last among exited processes.
    table.mark_gone(key(9), Gone::at(1));
    table.set_parent(key(10), Some(key(9)));
    for (newcomer, evicted) in [(most() + 1, 8), (most() + 2, 7), (most() + 3, 9)] {
        table.insert(key(newcomer), seen(None), 30);
        assert!(table.get(key(evicted)).is_none() && table.get(key(newcomer)).is_some());
        table.check();
    }
    assert_eq!(table.evicted(), 3);
}

/// One of that size that was seen to grow last at that time.
fn living(rss_bytes: u64, grown_ns: u64) -> ProcessEntry {
    ProcessEntry { rss_bytes, ..ProcessEntry { alive_ns: Some(1), ..entry(None, 10, grown_ns) } }
}

#[test]
fn large_growing_and_young_processes_stay_with_their_ancestors() {
    const IDLE_BYTES: u64 = 1 << 20;
    let now_ns = 100 * ACTIVE_NS;
    let mut table = Table::default();
    let put = |table: &mut Table, pid: u32, entry: ProcessEntry| {
        table.add(key(pid), entry, now_ns);
        table.update_activity(key(pid), now_ns);
        table.shrink();
    };
    put(&mut table, 1, living(1, 0));
    let [parent, large, growing, young] = [2, 3, 4, 5];
    put(&mut table, parent, living(1, 0));
    put(&mut table, large, ProcessEntry { parent: Some(key(parent)), ..living(64 * IDLE_BYTES, 0) });
    put(&mut table, growing, living(1, now_ns - ACTIVE_NS / 2));
    (10..10 + 2 * most()).for_each(|pid| put(&mut table, pid, living(IDLE_BYTES, 0)));
    put(&mut table, young, living(1, now_ns));
    assert_eq!(table.entries.len(), MAX_ENTRIES);
    for (pid, stays) in [(1, false), (parent, true), (large, true), (growing, true), (young, true), (10, false)] {
        assert_eq!(table.get(key(pid)).is_some(), stays, "{pid}");
    }
    table.check();
    assert!(!table.would_keep(key(10), IDLE_BYTES, now_ns), "no better than those that are there");
    assert!(table.would_keep(key(10), 2 * IDLE_BYTES, now_ns), "larger");
    // Idle for long, it goes like the others.
    table.update_activity(key(growing), now_ns + ACTIVE_NS);
    put(&mut table, 6, living(IDLE_BYTES * 2, now_ns));
    assert!(table.get(key(growing)).is_none());
}

#[test]
fn a_flood_of_forks_leaves_the_living_and_the_youngest() {
    let mut table = Table::default();
    (1..=100).for_each(|pid| table.insert(key(pid), seen((pid > 1).then(|| pid - 1)), 1));
    for pid in 101..=3 * most() {
        table.insert(key(pid), entry(Some(100), 10, u64::from(pid)), u64::from(pid));
    }
    table.check();
    assert!((1..=100).all(|pid| table.get(key(pid)).is_some()));
    assert!(table.get(key(3 * most())).is_some() && table.get(key(101)).is_none());
    assert_eq!(table.entries.len(), MAX_ENTRIES);
}

#[test]
fn long_cmdlines_of_exited_processes_are_evicted_before_others_are_truncated() {
    let mut table = Table::default();
    for pid in 1..=most() {
        table.insert(key(pid), ProcessEntry { alive_ns: Some(1), ..entry(None, 4096, 1) }, 1);
    }
    table.check();
    let last = table.get(key(most())).unwrap();
    assert_eq!((last.cmdline.bytes.len(), last.cmdline.is_cut), (SHORT_CMDLINE_BYTES, true));
    assert_eq!(table.get(key(1)).unwrap().cmdline.bytes.len(), 4096);
    table.mark_gone(key(1), Gone::at(5));
    table.set_cmdline(key(most()), cmdline(4096));
    assert_eq!(table.get(key(most())).unwrap().cmdline.bytes.len(), 4096);
    assert!(table.get(key(1)).is_none());
    table.check();
}

#[test]
fn a_shared_cmdline_counts_once() {
    let mut table = Table::default();
    let shared = cmdline(4096);
    for pid in 1..=1000 {
        let entry = ProcessEntry { cmdline: shared.clone(), ..ProcessEntry::new("x".into(), 1) };
        table.insert(key(pid), entry, 1);
    }
    assert_eq!((table.cmdlines.bytes, table.get(key(1000)).unwrap().cmdline.bytes.len()), (4096, 4096));
    table.check();
}

#[test]
fn ancestors_expire_after_their_descendants() {
    let mut table = Table::default();
    (1..=3).for_each(|pid| table.insert(key(pid), seen((pid > 1).then(|| pid - 1)), 1));
    (1..=2).for_each(|pid| table.mark_gone(key(pid), Gone::at(5)));
    table.expire(100);
    assert_eq!(table.entries.len(), 3, "a living descendant needs them");
    table.mark_gone(key(3), Gone::at(50));
    table.expire(50);
    assert_eq!(table.entries.len(), 3, "not before its time");
    table.expire(51);
    assert_eq!(table.entries.len(), 0);
    table.check();
}
