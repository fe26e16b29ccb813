//! How close our own cgroup is to its limit, and the machine to having nothing left, asked at the worst moment: nothing is opened and
//! nothing allocated.
//!
//! Right after an OOM kill the victim's memory is not back yet, but the kernel no longer counts the victim as one
//! (`MMF_OOM_SKIP`, `mm/oom_kill.c`), so whoever is charged for one more page makes it choose again. A file that is opened is such a
//! charge (`alloc_empty_file`, `fs/file_table.c`), and so is the first read of a file that the kernel makes up (`seq_read_iter`,
//! `fs/seq_file.c`). Reading a file again that was read before is none.
//!
//! The thread that reads `/proc` is often in the middle of it, and may be the one whose page was too much. So it asks before each
//! file whether a kill was counted since ([`Hold`]); that its reports would have the monitor order a pause comes too late.
//!
//! Only what we are charged to matters: where the victim's limit is another one, [`OwnCharge::is_short`] says no, and all may be
//! looked at.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::counter::{available_bytes, value};
use super::{Cgroup, Files, NO_LIMIT_BYTES, OOM_GROUP};

/// The longest that a victim's memory is waited for: `exit_mmap` of some GiB takes this long. After that the limit is full of
/// something else, mostly page cache, which gives way.
const HOLD_PATIENCE: Duration = Duration::from_millis(60);

/// The same where the machine had no memory left: such victims are larger.
const MACHINE_PATIENCE: Duration = Duration::from_millis(250);

/// A page that is asked for at the limit is refused several times, and each time the kernel may kill: also once the first victim
/// counts no more (`try_charge_memcg`, `mm/memcontrol.c`). So who comes near the limit is left so long to get over it or to be killed.
const STAND_OFF: Duration = Duration::from_millis(20);

/// A limit that is full of page cache stays so: looks go on, and stand off again after this time.
const STAND_OFF_AGAIN: Duration = Duration::from_millis(500);

/// With less than this available the machine is short of memory: the kernel kills when it has nothing left.
const MACHINE_RESERVE_BYTES: u64 = 32 << 20;

/// Between two readings. One takes 1 to 2 us.
const POLL: Duration = Duration::from_millis(1);

/// With less than this left the next page may be too much: a look at `/proc` and the report take some 100 KiB, and each
/// processor keeps up to 256 KiB of charge in stock (`MEMCG_CHARGE_BATCH`, `mm/memcontrol.c`).
const RESERVE_BYTES: u64 = 1 << 20;

/// Seven lines at most of a word and a number.
const EVENTS_BYTES: usize = 256;

/// Cgroups above each other that are asked.
const MOST_LEVELS: usize = 8;

/// A number in decimal.
const NUMBER_BYTES: usize = 32;

/// The limits that apply to us, and what is charged to them. One may be set later (`docker update`).
#[derive(Debug)]
pub(crate) struct OwnCharge {
    levels: Vec<Level>,
    meminfo: Option<File>,
}

/// Our cgroup, or one above it.
#[derive(Debug)]
struct Level {
    usage: File,
    limit: File,
    /// Where the limit's file says that there is none: one above what can be seen.
    hidden_limit_bytes: u64,
    /// How often it killed here. v1: and whether it may, and whether somebody waits for memory.
    events: Option<File>,
    /// v2: whether all members die together.
    oom_group: Option<File>,
}

impl OwnCharge {
    /// What cannot be read is never short.
    #[must_use]
    pub(in crate::monitor) fn open(cgroup: Option<&Cgroup>) -> Self {
        let meminfo = cgroup.map_or_else(|| PathBuf::from("/proc/meminfo"), |cgroup| cgroup.root.proc("meminfo"));
        let levels = cgroup.map_or_else(Vec::new, Level::all);
        let charge = Self { levels, meminfo: File::open(meminfo).ok() };
        // The first reading allocates what later ones use.
        let _ = (charge.is_stuck(), charge.is_at_limit(), charge.is_machine_short(), charge.kills_groups());
        charge
    }

    /// Whether processes wait for memory that the kernel may not free by a kill (`oom_kill_disable`,
    /// Documentation/admin-guide/cgroup-v1/memory.rst). Whoever touches a new page then waits, too.
    #[must_use]
    pub(crate) fn is_stuck(&self) -> bool {
        self.levels.iter().any(Level::is_stuck)
    }

    /// Whether a kill here may be one of all members (`memory.oom.group`).
    pub(in crate::monitor) fn kills_groups(&self) -> bool {
        self.levels.iter().filter_map(|level| number(level.oom_group.as_ref()?)).any(|set| set == 1)
    }

    /// How long to leave it alone after a kill; `None` if the next page will do no harm.
    #[must_use]
    pub(in crate::monitor) fn patience(&self) -> Option<Duration> {
        if self.is_at_limit() {
            return Some(HOLD_PATIENCE);
        }
        self.is_machine_short().then_some(MACHINE_PATIENCE)
    }

    /// Whether the next page may be one too many, here or for the machine.
    #[must_use]
    pub(in crate::monitor) fn is_short(&self) -> bool {
        self.is_at_limit() || self.is_machine_short()
    }

    /// Whether it may be for one of our cgroups. Takes 2 us each.
    fn is_at_limit(&self) -> bool {
        self.levels.iter().any(Level::is_at_limit)
    }

    /// Takes some 20 us.
    fn is_machine_short(&self) -> bool {
        self.meminfo.as_ref().and_then(available_bytes).is_some_and(|bytes| bytes < MACHINE_RESERVE_BYTES)
    }

    /// Kills that are counted here; under v1 those of the cgroups below are not.
    fn kills(&self) -> u64 {
        self.levels.iter().filter_map(Level::kills).sum()
    }

    /// Blocks until there is room again, at most [`HOLD_PATIENCE`].
    pub(in crate::monitor) fn block_until_room(&self) {
        self.block_while(Self::is_short, HOLD_PATIENCE);
    }

    fn block_while(&self, goes_on: impl Fn(&Self) -> bool, patience: Duration) {
        let begun = Instant::now();
        while goes_on(self) && begun.elapsed() < patience {
            thread::sleep(POLL);
        }
    }

    /// Waits until there is room again, not for ever.
    pub(crate) async fn room(&self) {
        let Some(patience) = self.patience() else { return };
        let begun = Instant::now();
        while self.is_short() && begun.elapsed() < patience {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Level {
    /// Our cgroup and those above it, as far as they can be read: innermost first.
    fn all(cgroup: &Cgroup) -> Vec<Self> {
        let smallest = cgroup.limited_level();
        let hidden_limit_bytes = |dir: &Path| match &smallest {
            Some((bytes, at)) if at == dir => *bytes,
            _ => u64::MAX,
        };
        let files = Files::of(cgroup.version);
        let open = |dir: &Path| {
            let open = |name: &str| File::open(dir.join(name)).ok();
            let level = Self {
                usage: open(files.usage)?,
                limit: open(files.limit)?,
                hidden_limit_bytes: hidden_limit_bytes(dir),
                events: open(files.events),
                oom_group: open(OOM_GROUP),
            };
            number(&level.usage).map(|_| level)
        };
        cgroup.visible().iter().take(MOST_LEVELS).filter_map(|dir| open(dir)).collect()
    }

    fn is_stuck(&self) -> bool {
        let mut buffer = [0; EVENTS_BYTES];
        let text = self.events(&mut buffer);
        ["oom_kill_disable 1", "under_oom 1"].iter().all(|wanted| text.lines().any(|line| line == *wanted))
    }

    fn is_at_limit(&self) -> bool {
        let limit_bytes = number(&self.limit).filter(|bytes| *bytes < NO_LIMIT_BYTES);
        let limit_bytes = limit_bytes.unwrap_or(self.hidden_limit_bytes);
        limit_bytes < NO_LIMIT_BYTES
            && number(&self.usage).is_some_and(|usage| limit_bytes.saturating_sub(usage) < RESERVE_BYTES)
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

/// One thread's stop after a kill: it asks before each file that it opens.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Hold {
    /// By whoever knows of a kill.
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

    /// Blocks while files are not to be opened; an order holds for [`MACHINE_PATIENCE`] at most. Costs 2 us where nothing happened.
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
                // Once, and not for each file again.
                self.is_ordered.store(false, Ordering::Relaxed);
            }
        }
    }
}

fn number(file: &File) -> Option<u64> {
    let mut buffer = [0; NUMBER_BYTES];
    let length = file.read_at(&mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A cgroup's files.
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
            let level = Level {
                usage: open("usage"),
                limit: open("limit"),
                hidden_limit_bytes: u64::MAX,
                events,
                oom_group: None,
            };
            OwnCharge { levels: vec![level], meminfo: File::open(self.0.path().join("meminfo")).ok() }
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

    #[test]
    fn stuck_is_who_waits_and_may_not_be_helped() {
        let is_stuck = |events| Files::new(0, events).charge().is_stuck();
        assert!(is_stuck("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n"));
        assert!(!is_stuck("oom_kill_disable 1\nunder_oom 0\noom_kill 0\n"));
        assert!(!is_stuck("oom_kill_disable 0\nunder_oom 1\noom_kill 0\n"), "a kill is under way");
        assert!(!is_stuck(""), "masked");
    }

    #[test]
    fn machine_with_nothing_left_is_waited_for_as_well() {
        let files = Files::new(1, "");
        files.write("meminfo", "MemTotal: 4000000 kB\nMemFree: 100 kB\nMemAvailable:    30000 kB\n");
        let charge = files.charge();
        assert!(charge.is_short() && !charge.is_at_limit());
        files.write("meminfo", "MemTotal: 4000000 kB\nMemFree: 100 kB\nMemAvailable:   900000 kB\n");
        assert_eq!(charge.patience(), None);
    }

    #[test]
    fn who_opens_files_waits_once_for_each_kill_at_the_limit() {
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
    fn order_to_wait_ends_by_itself() {
        let ordered = Arc::new(AtomicBool::new(true));
        let begun = Instant::now();
        Hold::new(Arc::clone(&ordered), Arc::new(OwnCharge::open(None))).wait();
        assert!(begun.elapsed() >= MACHINE_PATIENCE);
        assert!(!ordered.load(Ordering::Relaxed));
    }
}
