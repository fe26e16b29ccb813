//! Lookups of single processes in `/proc`. They take no lock that a process could hold for long.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::stat::Stat;
use crate::monitor::model::cgroup::CgroupFilter;
use crate::monitor::model::event::ChildExit;
use crate::monitor::model::process::{ExitKind, ProcessKey, SizeSplit, Sizes};
use crate::monitor::sources::page_size::page_bytes;

/// The mount point of `/proc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcRoot(PathBuf);

/// Maximum length of a stat line: 52 numbers of at most 20 digits, and a name of 64 bytes (proc(5)).
const STAT_BYTES: usize = 1536;

/// The memory lines are within the first 1,500 bytes of a status file, unless the user is in hundreds of groups.
const STATUS_BYTES: usize = 4096;

/// Reads a small file with a single read, which takes a third of the time of reading to its end.
fn read_start<'a>(path: &Path, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let length = io::Read::read(&mut fs::File::open(path).ok()?, buffer).ok()?;
    buffer.get(..length)
}

impl ProcRoot {
    /// Another directory than `/proc`, for tests.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// A directory without processes, used if `/proc` shows another PID namespace. `/` always exists.
    #[must_use]
    pub(in crate::monitor) fn without_processes() -> Self {
        Self::new("/")
    }

    /// The directory itself.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether this process, not a later one with the same pid, exists and is not a zombie. Takes no lock that a
    /// process could hold for long, so any thread may call it for a few processes.
    #[must_use]
    pub(in crate::monitor) fn has(&self, key: ProcessKey) -> bool {
        self.stat_of(key).is_some_and(|stat| !stat.is_zombie())
    }

    /// The process that has this pid now, zombies included.
    #[must_use]
    pub(crate) fn key_of(&self, pid: u32) -> Option<ProcessKey> {
        self.stat(pid).map(|stat| ProcessKey { pid, start_ticks: stat.start_ticks })
    }

    /// Current size of this process; `None` if it is gone or has released its memory. Same cost as [`Self::has`].
    #[must_use]
    pub(in crate::monitor) fn sizes_of(&self, key: ProcessKey) -> Option<Sizes> {
        let stat = self.stat_of(key).filter(|stat| stat.vm_bytes > 0)?;
        Some(Sizes { vm_bytes: stat.vm_bytes, rss_bytes: stat.rss_pages.saturating_mul(page_bytes()) })
    }

    /// Composition of this process's memory. Same cost as [`Self::has`].
    #[must_use]
    pub(in crate::monitor) fn split_of(&self, key: ProcessKey) -> Option<SizeSplit> {
        let mut status = [0; STATUS_BYTES];
        let status = read_start(&self.0.join(format!("{}/status", key.pid)), &mut status)?;
        // Check after the read: a process that still exists was the one that was read.
        self.has(key).then(|| SizeSplit::parse(&String::from_utf8_lossy(status)))?
    }

    /// The controlling terminal of this process, as a device number.
    #[must_use]
    pub(crate) fn terminal_of(&self, key: ProcessKey) -> Option<u64> {
        self.stat_of(key)?.terminal()
    }

    /// The stat line of this process; `None` if the pid was reused.
    fn stat_of(&self, key: ProcessKey) -> Option<Stat> {
        self.stat(key.pid).filter(|stat| stat.start_ticks == key.start_ticks)
    }

    fn stat(&self, pid: u32) -> Option<Stat> {
        let mut line = [0; STAT_BYTES];
        let line = read_start(&self.0.join(format!("{pid}/stat")), &mut line)?;
        Stat::parse(line).map(|(_, stat)| stat)
    }

    /// Whether a process passes a cgroup filter.
    #[must_use]
    pub(in crate::monitor) fn is_in_cgroup(&self, pid: u32, cgroup_filter: &CgroupFilter) -> bool {
        std::fs::read(self.0.join(format!("{pid}/cgroup")))
            .is_ok_and(|cgroups| cgroup_filter.contains(&String::from_utf8_lossy(&cgroups)))
    }

    /// Describes the exit of a process that has not been reaped yet.
    #[must_use]
    pub(in crate::monitor) fn death_of(&self, pid: u32, end: ExitKind, at_boot_ns: u64) -> Option<ChildExit> {
        let line = std::fs::read(self.0.join(format!("{pid}/stat"))).ok()?;
        let (comm, stat) = Stat::parse(&line)?;
        let process = ProcessKey { pid, start_ticks: stat.start_ticks };
        let name = String::from_utf8_lossy(comm).into_owned();
        Some(ChildExit { process, name, parent_pid: stat.parent_pid, end, at_boot_ns })
    }
}

impl Default for ProcRoot {
    fn default() -> Self {
        Self::new("/proc")
    }
}
