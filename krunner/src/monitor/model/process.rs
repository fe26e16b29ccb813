//! Processes: identity, and what `/proc` shows of them at one moment. `sources::procfs` reads them.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mount::MountUsage;

/// Identifies a process even after its PID was reused.
///
/// The start time is field 22 of `/proc/PID/stat` (proc(5)); BPF has it in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ProcessKey {
    /// PID in krunner's PID namespace.
    pub pid: u32,
    /// Start time since boot, in ticks of 10 ms.
    pub start_ticks: u64,
}

impl ProcessKey {
    /// `/proc` counts in `USER_HZ`, which is 100 on every architecture that krunner is built for
    /// (include/asm-generic/param.h).
    const NS_PER_TICK: u64 = 10_000_000;

    /// Converts a start time as the kernel keeps it.
    #[must_use]
    pub(crate) fn from_boot_ns(pid: u32, start_boot_ns: u64) -> Self {
        Self { pid, start_ticks: start_boot_ns / Self::NS_PER_TICK }
    }

    /// Start time, rounded down to a tick.
    #[must_use]
    pub(crate) fn start_boot_ns(self) -> u64 {
        self.start_ticks.saturating_mul(Self::NS_PER_TICK)
    }
}

/// The id of a process in one PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamespacePid {
    /// Inode number of the namespace (`/proc/PID/ns/pid`).
    pub inode: u32,
    /// The process ID there.
    pub pid: u32,
}

/// All processes visible at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Start of the scan, in nanoseconds since boot including suspend. Processes that started later may be missing.
    pub at_boot_ns: u64,
    /// When all PIDs had been listed, in nanoseconds since boot.
    pub listed_boot_ns: u64,
    /// PIDs that were listed, and whose processes were gone when they were read.
    pub vanished: Vec<u32>,
    /// The processes, in no particular order.
    pub processes: Vec<ProcessSample>,
    /// Number of processes beyond the scan limit.
    pub left_out: usize,
    /// tmpfs mounts that are not empty. Empty if mounts were not requested.
    pub mounts: Vec<MountUsage>,
    /// The cost of the scan.
    pub cost: ScanCost,
}

impl Snapshot {
    /// End of the scan, in nanoseconds since boot: what it shows as exiting or not at all had happened by then.
    pub(in crate::monitor) fn end_boot_ns(&self) -> u64 {
        end_boot_ns(self.at_boot_ns, self.cost.wall)
    }
}

fn end_boot_ns(at_boot_ns: u64, took: Duration) -> u64 {
    at_boot_ns.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
}

/// The cost of a [`Snapshot`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScanCost {
    /// Elapsed wall-clock time.
    pub wall: Duration,
    /// CPU time of the scanning thread.
    pub cpu: Duration,
}

/// One process in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessSample {
    /// Identity of the process.
    pub key: ProcessKey,
    /// The current parent; 0 if it is not visible.
    pub parent_pid: u32,
    /// The comm, with invalid UTF-8 replaced. Shared with earlier snapshots.
    pub name: Arc<str>,
    /// The arguments, or the title that the process wrote over them.
    pub cmdline: Arc<Cmdline>,
    /// The original arguments, if the process wrote a title over them.
    pub first_cmdline: Option<Arc<Cmdline>>,
    /// Size of the address space.
    pub vm_bytes: u64,
    /// Resident set size.
    pub rss_bytes: u64,
    /// As in proc(5): added to the size that the OOM killer compares, in thousandths of the available memory. 0 if it was not
    /// read.
    pub oom_score_adj: i16,
    /// The process exited and was not reaped yet.
    pub is_zombie: bool,
    /// The process is exiting.
    pub is_leaving: bool,
    /// How the process exited or is about to exit, if known.
    pub end: Option<ExitKind>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::monitor) struct Sizes {
    pub(in crate::monitor) vm_bytes: u64,
    pub(in crate::monitor) rss_bytes: u64,
}

/// The breakdown of a process's memory (`/proc/PID/status`, proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "names carry their units")]
pub(in crate::monitor) struct SizeSplit {
    /// `RssAnon` of `/proc/PID/status`.
    pub(in crate::monitor) anon_bytes: u64,
    /// `RssFile` of `/proc/PID/status`.
    pub(in crate::monitor) file_bytes: u64,
    /// `RssShmem` of `/proc/PID/status`.
    pub(in crate::monitor) shmem_bytes: u64,
    /// `VmSwap` of `/proc/PID/status`.
    pub(in crate::monitor) swap_bytes: u64,
}

impl SizeSplit {
    /// Parses the file's text. `None` for a process without memory.
    pub(in crate::monitor) fn parse(status: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
        };
        Some(Self {
            anon_bytes: value("RssAnon")?,
            file_bytes: value("RssFile")?,
            shmem_bytes: value("RssShmem")?,
            swap_bytes: value("VmSwap")?,
        })
    }
}

/// Whether SIGKILL ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExitKind {
    /// It exited in another way.
    Other,
    /// SIGKILL ended it, from any sender.
    Killed,
}

/// A scan of selected processes, between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PartialScan {
    /// Start of the scan, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// Elapsed time until its end.
    pub took: Duration,
    /// The scanned processes that exist.
    pub processes: Vec<ProcessSample>,
    /// Processes that existed before and are gone.
    pub absent: Vec<ProcessKey>,
    /// Whether possible victims were searched for: either all PIDs were listed and every known process that is gone is in
    /// `absent`, or a likely victim is.
    pub is_listed: bool,
}

impl PartialScan {
    /// End of the scan, in nanoseconds since boot: see [`Snapshot::end_boot_ns`].
    pub(in crate::monitor) fn end_boot_ns(&self) -> u64 {
        end_boot_ns(self.at_boot_ns, self.took)
    }
}

/// The arguments of a process, possibly truncated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// Each argument ends with NUL; all other bytes may occur.
    pub bytes: Vec<u8>,
    /// Whether the arguments were truncated.
    pub is_cut: bool,
}

/// The arguments separated by spaces, with control characters escaped.
impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A process may pad the title that it gives itself.
        let end = self.bytes.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
        for character in String::from_utf8_lossy(&self.bytes[..end]).chars() {
            match character {
                '\0' => f.write_char(' ')?,
                control if control.is_control() => write!(f, "{}", control.escape_default())?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}
