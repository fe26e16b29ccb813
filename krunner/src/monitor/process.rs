//! A process as `/proc` showed it at one moment. Plain values; who reads them is `procfs`.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::ProcessKey;

/// All processes that could be seen at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// When the reading began, in nanoseconds since boot, suspend included. What was born later may be
    /// missing.
    pub at_boot_ns: u64,
    /// In no order.
    pub processes: Vec<Observed>,
    /// Processes that were there beyond the most that are read.
    pub left_out: usize,
    /// What the reading took.
    pub cost: ScanCost,
}

/// What it took to read a [`Snapshot`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanCost {
    /// By the clock.
    pub wall: Duration,
    /// Of one processor.
    pub cpu: Duration,
}

/// One process in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Which.
    pub key: ProcessKey,
    /// Whose child it is now; 0 for none that we can see.
    pub parent_pid: u32,
    /// Its comm; bytes that are not UTF-8 are replaced. Shared with the snapshots before.
    pub name: Arc<str>,
    /// Its arguments, or the title that it wrote over them.
    pub cmdline: Arc<Cmdline>,
    /// Those that its program began with, if it wrote over them.
    pub first_cmdline: Option<Arc<Cmdline>>,
    /// Address space.
    pub vm_bytes: u64,
    /// Resident.
    pub rss_bytes: u64,
    /// What the OOM killer adds to its size, in thousandths of the memory it may have (proc(5)); 0 where nobody asked.
    pub oom_score_adj: i16,
    /// It has exited and nobody has waited for it yet.
    pub is_zombie: bool,
    /// It is about to end, one way or another.
    pub is_leaving: bool,
    /// How it has ended or is about to, if that can be seen.
    pub end: Option<End>,
}

/// How large a process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Address space.
    pub(super) vm_bytes: u64,
    /// Resident.
    pub(super) rss_bytes: u64,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Not by SIGKILL.
    Other,
    /// By SIGKILL, whoever sent it.
    Killed,
}

/// A look at a few processes, between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glance {
    /// When the looking began, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// Those who are there.
    pub processes: Vec<Observed>,
    /// Those who were there before and are not.
    pub absent: Vec<ProcessKey>,
    /// All processes were listed: every known one that is gone is in `absent`.
    pub is_listed: bool,
}

/// The arguments of a process, as far as they are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// Separated and ended by NUL, any other bytes in between.
    pub bytes: Vec<u8>,
    /// There was more.
    pub is_cut: bool,
}
