//! How close our own cgroup is to its limit, asked at the worst moment: nothing is opened and nothing allocated.
//!
//! Right after an OOM kill the victim's memory is not back yet, but the kernel no longer counts the victim as one
//! (`MMF_OOM_SKIP`, `mm/oom_kill.c`), so whoever is charged for one more page makes it choose again. A file that is opened is such a
//! charge (`alloc_empty_file`, `fs/file_table.c`), and so is the first read of a file that the kernel makes up (`seq_read_iter`,
//! `fs/seq_file.c`). Reading a file again that was read before is none.
//!
//! Version 1 only. Under version 2 the hold was tried, on Linux 7.3 in a virtual machine (`cargo xtask vm --kernel 7 --only
//! pid-reused`), and made it worse: a process beside the victim was killed in 3 of 3 runs, and in none without. Why is not known; there
//! the runner has its rank alone.
//!
//! Only a limit that we are charged to matters: where the victim's limit is another one, [`OwnCharge::is_at_limit`] says no, and all
//! may be looked at.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant};

use super::{Cgroup, NO_LIMIT_BYTES, V1};

/// The longest that a victim's memory is waited for: `exit_mmap` of some GiB takes this long. After that the limit is full of
/// something else, mostly page cache, which gives way.
pub(in crate::monitor) const HOLD_PATIENCE: Duration = Duration::from_millis(60);

/// Between two readings. One takes 1 to 2 us.
const POLL: Duration = Duration::from_millis(1);

/// With less than this left the next page may be too much: a look at `/proc` and the report take some 100 KiB, and each
/// processor keeps up to 256 KiB of charge in stock (`MEMCG_CHARGE_BATCH`, `mm/memcontrol.c`).
const RESERVE_BYTES: u64 = 1 << 20;

/// Three lines of a word and a number.
const CONTROL_BYTES: usize = 128;

/// A number in decimal.
const NUMBER_BYTES: usize = 32;

/// The smallest limit that applies to us, and what is charged to it.
#[derive(Debug)]
pub(crate) struct OwnCharge {
    usage: File,
    limit: File,
    /// Where the file says that there is none: one above that cannot be seen.
    hidden_limit_bytes: u64,
    /// v1: whether the kernel may kill, and whether somebody waits for memory.
    control: Option<File>,
}

impl OwnCharge {
    /// `None` without a limit, where it cannot be read, and under version 2.
    #[must_use]
    pub(in crate::monitor) fn open(cgroup: &Cgroup) -> Option<Self> {
        if cgroup.version != 1 {
            return None;
        }
        let files = &V1;
        let (hidden_limit_bytes, level) = cgroup.limited_level()?;
        let open = |name: &str| File::open(level.join(name)).ok();
        let control = open(files.events);
        let charge = Self { usage: open(files.usage)?, limit: open(files.limit)?, hidden_limit_bytes, control };
        // The first reading allocates what later ones use.
        let _ = charge.is_stuck();
        let _ = number(&charge.limit);
        number(&charge.usage).map(|_| charge)
    }

    /// Whether processes wait for memory that the kernel may not free by a kill (`oom_kill_disable`,
    /// Documentation/admin-guide/cgroup-v1/memory.rst). Whoever touches a new page then waits, too.
    #[must_use]
    pub(crate) fn is_stuck(&self) -> bool {
        let mut buffer = [0; CONTROL_BYTES];
        let length = self.control.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
        ["oom_kill_disable 1", "under_oom 1"].iter().all(|wanted| text.lines().any(|line| line == *wanted))
    }

    /// Whether the next page may be one too many.
    #[must_use]
    pub(crate) fn is_at_limit(&self) -> bool {
        let limit_bytes = number(&self.limit).filter(|bytes| *bytes < NO_LIMIT_BYTES);
        let limit_bytes = limit_bytes.unwrap_or(self.hidden_limit_bytes);
        number(&self.usage).is_some_and(|usage| limit_bytes.saturating_sub(usage) < RESERVE_BYTES)
    }

    /// Blocks until there is room again, at most [`HOLD_PATIENCE`].
    pub(in crate::monitor) fn block_until_room(&self) {
        let begun = Instant::now();
        while self.is_at_limit() && begun.elapsed() < HOLD_PATIENCE {
            thread::sleep(POLL);
        }
    }

    /// Waits until there is room again, at most [`HOLD_PATIENCE`].
    pub(crate) async fn room(&self) {
        let begun = Instant::now();
        while self.is_at_limit() && begun.elapsed() < HOLD_PATIENCE {
            tokio::time::sleep(POLL).await;
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

    #[test]
    fn limit_is_near_when_less_than_the_reserve_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let open = |name: &str| File::open(folder.path().join(name)).unwrap();
        write("limit", "67108864\n");
        write("usage", "1\n");
        let charge =
            OwnCharge { usage: open("usage"), limit: open("limit"), hidden_limit_bytes: 1 << 40, control: None };
        assert!(!charge.is_at_limit());
        write("usage", "66666666\n");
        assert!(charge.is_at_limit());
        write("usage", "67108999\n");
        assert!(charge.is_at_limit(), "more than the limit is charged for a moment");
        write("limit", "9223372036854771712\n");
        assert!(!charge.is_at_limit(), "no limit");
    }

    #[test]
    fn stuck_is_who_waits_and_may_not_be_helped() {
        let stuck = |text: &[u8]| {
            let control = tempfile::tempfile().unwrap();
            control.write_at(text, 0).unwrap();
            let empty = || tempfile::tempfile().unwrap();
            OwnCharge { usage: empty(), limit: empty(), hidden_limit_bytes: 0, control: Some(control) }.is_stuck()
        };
        assert!(stuck(b"oom_kill_disable 1\nunder_oom 1\noom_kill 0\n"));
        assert!(!stuck(b"oom_kill_disable 1\nunder_oom 0\noom_kill 0\n"));
        assert!(!stuck(b"oom_kill_disable 0\nunder_oom 1\noom_kill 0\n"), "a kill is under way");
        assert!(!stuck(b""), "masked");
    }

    #[test]
    fn waiting_ends_although_there_is_no_room() {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.write_at(b"100\n", 0).unwrap();
            file
        };
        let charge = OwnCharge { usage: file(), limit: file(), hidden_limit_bytes: 100, control: None };
        let begun = Instant::now();
        charge.block_until_room();
        assert!(begun.elapsed() >= HOLD_PATIENCE);
    }
}
