//! Memory usage of a cgroup, read from files that stay open.
//!
//! The files are read once when opened, and later into a buffer that is kept: right after an OOM kill at our own limit, a first
//! read or a newly touched page may cause the next kill, see `charge`. In cgroup v2, reading `memory.stat` makes the
//! kernel sum per-CPU counters (`mem_cgroup_flush_stats`, mm/memcontrol.c), which takes about 100 us: it is used at OOM
//! kills, not for polling.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::MemcgFiles;
use super::files::{inode, number_in, open, text};
use crate::monitor::explain::{MemoryUsage, UsageText};

/// Buffer for `memory.stat`, which has about 2 KiB in v1 and 3 KiB in v2 on Linux 7.3.
const STAT_BYTES: usize = 8 * 1024;

/// The open usage files of one cgroup.
#[derive(Debug)]
pub(in crate::monitor) struct UsageFiles {
    version: u8,
    id: u64,
    stat: File,
    usage: File,
    kernel: Option<File>,
    tcp: Option<File>,
    /// Has [`STAT_BYTES`] bytes.
    buffer: Mutex<Box<[u8]>>,
}

/// Where to read the usage of a cgroup from. Separate from finding the cgroup, because reading is slow on some machines
/// and must not delay the search for the victim.
#[derive(Debug)]
pub(in crate::monitor) enum UsageSource {
    /// Files that are already open.
    Open(Arc<UsageFiles>),
    /// Files of a descendant of our cgroup, to be opened.
    Closed {
        /// Directory of the cgroup.
        dir: PathBuf,
        /// Cgroup version, 1 or 2.
        version: u8,
    },
}

impl UsageSource {
    /// Reads the current usage.
    #[must_use]
    pub(in crate::monitor) fn read(&self) -> Option<MemoryUsage> {
        match self {
            Self::Open(files) => files.read(),
            Self::Closed { dir, version } => UsageFiles::open(dir, *version)?.read(),
        }
    }
}

impl UsageFiles {
    /// Opens the files in this directory; `None` if the memory controller has none there.
    #[must_use]
    pub(in crate::monitor) fn open(dir: &Path, version: u8) -> Option<Self> {
        let open = |name: &str| open(&dir.join(name));
        let of_v1 = |name: &str| if version == 1 { open(name) } else { None };
        Some(Self {
            version,
            id: inode(dir),
            stat: open("memory.stat")?,
            usage: open(MemcgFiles::of(version).usage)?,
            kernel: of_v1("memory.kmem.usage_in_bytes"),
            tcp: of_v1("memory.kmem.tcp.usage_in_bytes"),
            // Written to, so that its pages are allocated.
            buffer: Mutex::new(vec![b' '; STAT_BYTES].into()),
        })
    }

    /// The kernel's id of this cgroup.
    #[must_use]
    pub(in crate::monitor) fn id(&self) -> u64 {
        self.id
    }

    /// Reads the current composition of the memory.
    #[must_use]
    pub(in crate::monitor) fn read(&self) -> Option<MemoryUsage> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let total_bytes = self.usage_bytes()?;
        let number = |file: &Option<File>| file.as_ref().and_then(number_in);
        let (kernel_bytes, tcp_bytes) = (number(&self.kernel), number(&self.tcp));
        let stat = text(&self.stat, &mut buffer).ok()?;
        Some(MemoryUsage::read(UsageText { version: self.version, stat, total_bytes, kernel_bytes, tcp_bytes }))
    }

    /// Reads the current charge.
    #[must_use]
    pub(in crate::monitor) fn usage_bytes(&self) -> Option<u64> {
        number_in(&self.usage)
    }
}
