//! Headroom of our own cgroup and of the machine. It is queried when memory is exhausted, so queries open and allocate
//! nothing.
//!
//! Right after an OOM kill, the victim's memory has not been freed yet, but the kernel no longer considers the victim
//! (`MMF_OOM_SKIP`, `mm/oom_kill.c`). The next page charged to the same limit therefore causes another kill. Opening a
//! file is such a charge (`alloc_empty_file`, `fs/file_table.c`), and so is the first read of a `seq_file`
//! (`seq_read_iter`, `fs/seq_file.c`). Reading a file again is not. A new page of the heap or the stack is one, too: until memory
//! has been freed, the kill is only noted, in memory from the reserve (`sys::memory::reserve_heap`).
//!
//! Processes that share their memory are the worst case. The last of them frees it, and while it does, it has no memory to be chosen
//! for (`exit_mm`, `kernel/exit.c`), and the victim is gone whose presence would stop the search for another one
//! (`oom_evaluate_task`, `mm/oom_kill.c`).
//!
//! The sampler thread may be in the middle of a scan, and its own page may have been the one that exceeded the limit.
//! So it checks before each file whether an OOM kill was counted since ([`Hold`]); a pause requested by the monitor
//! task would come too late.
//!
//! Only limits that we are charged to matter: if the victim's limit is a different one, [`OwnCharge::is_short`] is
//! false and files may be opened.

mod memory;
mod throttle;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::files::{available_bytes, max_levels, number_in, open, value};
use super::{Cgroup, MemcgFiles, NO_LIMIT_BYTES, OOM_GROUP};
pub(in crate::monitor) use memory::{ChargedMemory, MemoryStat};
use throttle::ThrottleFiles;

/// Maximum time to wait for a victim's memory: `exit_mmap` of several GiB takes this long. After that the limit is
/// filled by something else, mostly reclaimable page cache.
const HOLD_PATIENCE: Duration = Duration::from_millis(60);

/// The same for a global OOM, whose victims are larger.
const MACHINE_PATIENCE: Duration = Duration::from_millis(250);

/// A charge at the limit is retried several times, and each retry may kill, even once the first victim is skipped
/// (`try_charge_memcg`, `mm/memcontrol.c`). So a process close to the limit gets this long to free memory or to be
/// killed.
const STAND_OFF: Duration = Duration::from_millis(20);

/// Minimum time between two stand-offs. A limit filled by page cache stays that way, and scans must continue.
const STAND_OFF_AGAIN: Duration = Duration::from_millis(500);

/// With less memory available than this, the machine is short of memory.
pub(super) const MACHINE_RESERVE_BYTES: u64 = 32 << 20;

/// Polling interval. A read takes 1 to 2 us.
const POLL: Duration = Duration::from_millis(1);

/// With less headroom than this, the next page may exceed the limit: a scan and the report take about 100 KiB, and each
/// CPU caches up to 256 KiB of charge (`MEMCG_CHARGE_BATCH`, `mm/memcontrol.c`).
pub(super) const RESERVE_BYTES: u64 = 1 << 20;

/// Buffer for the events file, at most seven lines of a word and a number.
const EVENTS_BYTES: usize = 256;

/// The limits that apply to us and their charge. Limits may change later (`docker update`).
#[derive(Debug)]
pub(crate) struct OwnCharge {
    levels: Vec<ChargeLevel>,
    /// v1: the limit of an invisible ancestor, compared with the usage of the innermost level, the closest that can be read;
    /// `u64::MAX` if there is none. See [`Self::read_hidden_limit`].
    hidden_limit_bytes: AtomicU64,
    meminfo: Option<File>,
}

/// The open files of our cgroup or an ancestor.
#[derive(Debug)]
struct ChargeLevel {
    usage: File,
    limit: File,
    /// OOM kill count; in v1 also whether the OOM killer is disabled, and whether tasks wait for memory.
    events: Option<File>,
    /// The file `memory.oom.group` (v2).
    oom_group: Option<File>,
    /// `memory.stat`, the composition of the memory.
    stat: Option<File>,
    /// v2: where `memory.high` applies.
    throttle: Option<ThrottleFiles>,
}

impl OwnCharge {
    /// Opens the files. Levels that cannot be read count as not short.
    #[must_use]
    pub(in crate::monitor) fn open(cgroup: Option<&Cgroup>) -> Self {
        let meminfo = cgroup.map_or_else(|| PathBuf::from("/proc/meminfo"), |cgroup| cgroup.root.proc("meminfo"));
        let levels = cgroup.map_or_else(Vec::new, ChargeLevel::all);
        let charge = Self { levels, hidden_limit_bytes: AtomicU64::new(u64::MAX), meminfo: open(&meminfo) };
        charge.read_hidden_limit();
        charge
    }

    /// Reads the limit of invisible ancestors again, which may have changed. v1 shows the smallest limit of all levels
    /// (`hierarchical_memory_limit`, Documentation/admin-guide/cgroup-v1/memory.rst); it is a hidden one only if it is smaller
    /// than all visible ones. Reads one file per level, and `memory.stat`, which was read before.
    pub(in crate::monitor) fn read_hidden_limit(&self) {
        let smallest_bytes = self.levels.first().and_then(ChargeLevel::smallest_limit_bytes);
        let visible_bytes = self.levels.iter().filter_map(ChargeLevel::visible_limit_bytes).min();
        let hidden_bytes = smallest_bytes.filter(|bytes| visible_bytes.is_none_or(|visible| *bytes < visible));
        self.hidden_limit_bytes.store(hidden_bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The limit of a level; `None` if unlimited.
    fn limit_bytes(&self, level: usize) -> Option<u64> {
        let visible_bytes = self.levels.get(level)?.visible_limit_bytes();
        let hidden_bytes = self.hidden_limit_bytes.load(Ordering::Relaxed);
        let hidden_bytes = (level == 0 && hidden_bytes < NO_LIMIT_BYTES).then_some(hidden_bytes);
        visible_bytes.into_iter().chain(hidden_bytes).min()
    }

    /// Whether tasks wait for memory because the OOM killer is disabled (`oom_kill_disable`,
    /// Documentation/admin-guide/cgroup-v1/memory.rst). A thread that touches a new page then blocks as well.
    #[must_use]
    pub(crate) fn is_stuck(&self) -> bool {
        self.levels.iter().any(ChargeLevel::is_stuck)
    }

    /// Whether an OOM kill here may kill all members (`memory.oom.group`).
    pub(in crate::monitor) fn kills_groups(&self) -> bool {
        self.levels.iter().any(ChargeLevel::kills_group)
    }

    /// Whether the next OOM kill here, at the innermost limit that is reached, ends all members. What is set above it does not matter
    /// (`mem_cgroup_get_oom_group`, mm/memcontrol.c).
    pub(in crate::monitor) fn next_kill_is_ours(&self) -> bool {
        for (index, level) in self.levels.iter().enumerate() {
            if level.kills_group() {
                return true;
            }
            if self.is_level_at_limit(index) {
                return false;
            }
        }
        false
    }

    /// How long to hold after an OOM kill; `None` if there is headroom.
    #[must_use]
    pub(in crate::monitor) fn patience(&self) -> Option<Duration> {
        if self.is_at_limit() {
            return Some(HOLD_PATIENCE);
        }
        self.is_machine_short().then_some(MACHINE_PATIENCE)
    }

    /// Whether the next page may cause an OOM kill, at a cgroup limit or globally.
    #[must_use]
    pub(in crate::monitor) fn is_short(&self) -> bool {
        self.is_at_limit() || self.is_machine_short()
    }

    /// Whether one of our cgroups is at its limit. Takes 2 us per level.
    fn is_at_limit(&self) -> bool {
        (0..self.levels.len()).any(|level| self.is_level_at_limit(level))
    }

    fn is_level_at_limit(&self, level: usize) -> bool {
        let Some(limit_bytes) = self.limit_bytes(level) else { return false };
        number_in(&self.levels[level].usage).is_some_and(|usage| limit_bytes.saturating_sub(usage) < RESERVE_BYTES)
    }

    /// Whether the machine is short of memory. Takes about 20 us.
    fn is_machine_short(&self) -> bool {
        self.meminfo.as_ref().and_then(available_bytes).is_some_and(|bytes| bytes < MACHINE_RESERVE_BYTES)
    }

    /// OOM kill count of our own cgroup.
    #[must_use]
    pub(in crate::monitor) fn own_kills(&self) -> Option<u64> {
        self.levels.first().and_then(ChargeLevel::kills)
    }

    /// Sum of the OOM kill counts of all levels; in v1 without descendants.
    fn kills(&self) -> u64 {
        self.levels.iter().filter_map(ChargeLevel::kills).sum()
    }

    /// Blocks until there is headroom, at most [`HOLD_PATIENCE`].
    pub(in crate::monitor) fn block_until_room(&self) {
        self.block_while(Self::is_short, HOLD_PATIENCE);
    }

    fn block_while(&self, goes_on: impl Fn(&Self) -> bool, patience: Duration) {
        let begun = Instant::now();
        while goes_on(self) && begun.elapsed() < patience {
            thread::sleep(POLL);
        }
    }

    /// Waits until there is headroom, with a timeout.
    pub(crate) async fn room(&self) {
        let Some(patience) = self.patience() else { return };
        let begun = Instant::now();
        while self.is_short() && begun.elapsed() < patience {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl ChargeLevel {
    /// Opens our cgroup and its readable ancestors, innermost first.
    fn all(cgroup: &Cgroup) -> Vec<Self> {
        let files = MemcgFiles::of(cgroup.version);
        let open = |dir: &PathBuf| {
            let open = |name: &str| open(&dir.join(name));
            let level = Self {
                usage: open(files.usage)?,
                limit: open(files.limit)?,
                events: open(files.events),
                oom_group: open(OOM_GROUP),
                stat: open("memory.stat"),
                throttle: ThrottleFiles::open(dir),
            };
            number_in(&level.usage).map(|_| level)
        };
        cgroup.visible().iter().take(max_levels()).filter_map(open).collect()
    }

    fn kills_group(&self) -> bool {
        self.oom_group.as_ref().and_then(number_in) == Some(1)
    }

    fn is_stuck(&self) -> bool {
        let mut buffer = [0; EVENTS_BYTES];
        let text = self.events(&mut buffer);
        ["oom_kill_disable 1", "under_oom 1"].iter().all(|wanted| text.lines().any(|line| line == *wanted))
    }

    /// The limit that the level's file shows; `None` if unlimited.
    fn visible_limit_bytes(&self) -> Option<u64> {
        number_in(&self.limit).filter(|bytes| *bytes < NO_LIMIT_BYTES)
    }

    fn kills(&self) -> Option<u64> {
        let mut buffer = [0; EVENTS_BYTES];
        value(self.events(&mut buffer), "oom_kill")
    }

    fn events<'a>(&self, buffer: &'a mut [u8; EVENTS_BYTES]) -> &'a str {
        let length = self.events.as_ref().and_then(|file| file.read_at(buffer, 0).ok()).unwrap_or(0);
        std::str::from_utf8(&buffer[..length]).unwrap_or_default()
    }
}

/// Makes a thread wait before it opens files after an OOM kill.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Hold {
    /// Set by the monitor task on an OOM kill.
    is_ordered: Arc<AtomicBool>,
    charge: Option<Arc<OwnCharge>>,
    seen_kills: u64,
    stood_off: Option<Instant>,
}

impl Hold {
    pub(in crate::monitor) fn new(is_ordered: Arc<AtomicBool>, charge: Arc<OwnCharge>) -> Self {
        let seen_kills = charge.kills();
        Self { is_ordered, charge: Some(charge), seen_kills, stood_off: None }
    }

    /// Blocks while files must not be opened; a requested hold lasts at most [`MACHINE_PATIENCE`]. Costs 2 us
    /// otherwise.
    pub(in crate::monitor) fn wait(&mut self) {
        self.wait_for_order();
        let Some(charge) = self.charge.as_ref().filter(|charge| charge.is_at_limit()) else { return };
        if self.stood_off.is_none_or(|at| at.elapsed() >= STAND_OFF_AGAIN) {
            let seen_kills = self.seen_kills;
            charge.block_while(|charge| charge.is_at_limit() && charge.kills() == seen_kills, STAND_OFF);
            self.stood_off = Some(Instant::now());
        }
        let kills = charge.kills();
        if std::mem::replace(&mut self.seen_kills, kills) != kills {
            charge.block_until_room();
        }
    }

    fn wait_for_order(&self) {
        let begun = Instant::now();
        while self.is_ordered.load(Ordering::Relaxed) {
            thread::sleep(POLL);
            if begun.elapsed() >= MACHINE_PATIENCE {
                // Clear it, so that the next file does not wait again.
                self.is_ordered.store(false, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Fake files of a cgroup.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new(usage_bytes: u64, events: &str) -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            files.write("limit", "67108864\n");
            files.write("usage", &format!("{usage_bytes}\n"));
            files.write("events", events);
            files
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).unwrap();
        }

        fn charge(&self) -> OwnCharge {
            let open = |name: &str| File::open(self.0.path().join(name)).unwrap();
            let events = Some(open("events"));
            let (usage, limit) = (open("usage"), open("limit"));
            let level = ChargeLevel { usage, limit, events, oom_group: None, stat: None, throttle: None };
            OwnCharge {
                levels: vec![level],
                hidden_limit_bytes: AtomicU64::new(u64::MAX),
                meminfo: File::open(self.0.path().join("meminfo")).ok(),
            }
        }
    }

    #[test]
    fn limit_is_near_when_less_than_the_reserve_is_left() {
        let files = Files::new(1, "");
        let charge = files.charge();
        assert!(!charge.is_at_limit());
        files.write("usage", "66666666\n");
        assert!(charge.is_at_limit());
        files.write("usage", "67108999\n");
        assert!(charge.is_at_limit(), "more than the limit is charged for a moment");
        files.write("limit", "9223372036854771712\n");
        assert!(!charge.is_at_limit(), "no limit");
        files.write("limit", "max\n");
        assert!(!charge.is_at_limit(), "none under version 2");
        files.write("limit", "67108864\n");
        assert!(charge.is_at_limit(), "one that was set later");
    }

    /// A hierarchy of version 1 or 2 with our cgroup `/pod/own`, which uses 66 MB and has a limit of 64 MiB.
    fn hierarchy(version: u8) -> (tempfile::TempDir, Cgroup) {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        for dir in ["proc/self", "m/pod/own"] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        let (own, mount) = match version {
            1 => ("4:memory:/pod/own\n", "33 31 0:29 /pod /m/pod rw - cgroup cgroup rw,memory\n"),
            _ => ("0::/pod/own\n", "33 31 0:29 /pod /m/pod rw - cgroup2 cgroup2 rw\n"),
        };
        write("proc/self/cgroup", own);
        write("proc/self/mountinfo", mount);
        let files = MemcgFiles::of(version);
        for (dir, limit) in [("m/pod", "99999999"), ("m/pod/own", "67108864")] {
            write(&format!("{dir}/{}", files.limit), &format!("{limit}\n"));
            write(&format!("{dir}/{}", files.usage), "67000000\n");
            write(&format!("{dir}/{}", files.events), "oom_kill 0\n");
            let smallest = if version == 1 { "hierarchical_memory_limit 67108864\n" } else { "" };
            write(&format!("{dir}/memory.stat"), &format!("inactive_file 1\n{smallest}"));
        }
        let cgroup = Cgroup::find(&crate::monitor::sources::cgroup::CgroupRoot::below(folder.path())).unwrap();
        (folder, cgroup)
    }

    #[test]
    fn limit_that_was_removed_is_not_in_force() {
        for (version, none) in [(1, "9223372036854771712\n"), (2, "max\n")] {
            let (folder, cgroup) = hierarchy(version);
            let charge = OwnCharge::open(Some(&cgroup));
            assert!(charge.is_at_limit());
            let file = MemcgFiles::of(version).limit;
            fs::write(folder.path().join("m/pod/own").join(file), none).unwrap();
            assert!(!charge.is_at_limit(), "cgroup version {version}");
            if version == 1 {
                let text = "inactive_file 1\nhierarchical_memory_limit 99999999\n";
                fs::write(folder.path().join("m/pod/own/memory.stat"), text).unwrap();
            }
            assert_eq!(charge.nearest_limit().unwrap().limit_bytes, Some(99_999_999), "that of the pod");
        }
    }

    #[test]
    fn hidden_limit_is_read_again() {
        let (folder, cgroup) = hierarchy(1);
        let show = |bytes: u64| {
            let text = format!("hierarchical_memory_limit {bytes}\ntotal_inactive_file 1\n");
            fs::write(folder.path().join("m/pod/own/memory.stat"), text).unwrap();
        };
        fs::write(folder.path().join("m/pod/own/memory.limit_in_bytes"), "90000000\n").unwrap();
        show(67_200_000);
        let charge = OwnCharge::open(Some(&cgroup));
        assert!(charge.is_at_limit(), "of an ancestor that is not visible");
        show(80_000_000);
        let nearest = charge.nearest_limit().unwrap();
        assert_eq!((nearest.level, nearest.limit_bytes), (0, Some(80_000_000)), "raised");
        assert!(!charge.is_at_limit());
        show(90_000_000);
        assert_eq!(charge.nearest_limit().unwrap().limit_bytes, Some(90_000_000), "raised above our own");
        fs::write(folder.path().join("m/pod/own/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(
            charge.nearest_limit().unwrap().limit_bytes,
            Some(90_000_000),
            "our own is removed, that one is not"
        );
    }

    #[test]
    fn stuck_if_tasks_wait_and_the_oom_killer_is_disabled() {
        let is_stuck = |events| Files::new(0, events).charge().is_stuck();
        assert!(is_stuck("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n"));
        assert!(!is_stuck("oom_kill_disable 1\nunder_oom 0\noom_kill 0\n"));
        assert!(!is_stuck("oom_kill_disable 0\nunder_oom 1\noom_kill 0\n"), "a kill is under way");
        assert!(!is_stuck(""), "masked");
    }

    #[test]
    fn machine_short_of_memory_counts_as_short() {
        let files = Files::new(1, "");
        files.write("meminfo", "MemTotal: 4000000 kB\nMemFree: 100 kB\nMemAvailable:    30000 kB\n");
        let charge = files.charge();
        assert!(charge.is_short() && !charge.is_at_limit());
        files.write("meminfo", "MemTotal: 4000000 kB\nMemFree: 100 kB\nMemAvailable:   900000 kB\n");
        assert_eq!(charge.patience(), None);
    }

    #[test]
    fn opening_files_waits_once_for_each_kill_at_the_limit() {
        let kills = |count| format!("low 0\nhigh 0\nmax 9\noom 9\noom_kill {count}\noom_group_kill 7\n");
        let files = Files::new(67_108_864, &kills(1));
        let mut hold = Hold::new(Arc::default(), Arc::new(files.charge()));
        let mut waited = || {
            let begun = Instant::now();
            hold.wait();
            begun.elapsed()
        };
        let first = waited();
        assert!(first >= STAND_OFF && first < HOLD_PATIENCE, "{first:?}: that kill was before");
        files.write("events", &kills(2));
        assert!(waited() >= HOLD_PATIENCE);
        assert!(waited() < STAND_OFF, "full of something else");
        files.write("events", &kills(3));
        files.write("usage", "1\n");
        assert!(waited() < STAND_OFF, "there is room");
    }

    #[test]
    fn requested_hold_times_out() {
        let ordered = Arc::new(AtomicBool::new(true));
        let begun = Instant::now();
        Hold::new(Arc::clone(&ordered), Arc::new(OwnCharge::open(None))).wait();
        assert!(begun.elapsed() >= MACHINE_PATIENCE);
        assert!(!ordered.load(Ordering::Relaxed));
    }
}
