//! A process as `/proc` showed it at one moment. Plain values; who reads them is `procfs`.

use std::sync::Arc;

use super::event::ProcessKey;

/// All processes that could be seen at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// When the reading began, in nanoseconds since boot, suspend included. What was born later may be
    /// missing.
    pub at_boot_ns: u64,
    /// In no order.
    pub processes: Vec<Observed>,
}

/// One process in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Which.
    pub key: ProcessKey,
    /// Whose child it is now; 0 for none that we can see.
    pub parent_pid: u32,
    /// Its comm; bytes that are not UTF-8 are replaced.
    pub name: Arc<str>,
    /// Its arguments.
    pub cmdline: Arc<Cmdline>,
    /// Address space.
    pub vm_bytes: u64,
    /// Resident.
    pub rss_bytes: u64,
    /// It has exited and nobody has waited for it yet.
    pub is_zombie: bool,
}

/// The arguments of a process, as far as they are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// Separated and ended by NUL, any other bytes in between.
    pub bytes: Vec<u8>,
    /// There was more.
    pub is_cut: bool,
}
