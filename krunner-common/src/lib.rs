//! The interface between the eBPF programs and user space: ring buffer records, globals that the loader sets, and the
//! names of maps and programs.
//!
//! `no_std`, because the kernel side is built for `bpfel-unknown-none`. The crate does no I/O and has no `unsafe` code:
//! records are decoded field by field.
//!
//! The object itself is `krunner-ebpf/krunner-ebpf.o` (and `krunner-ebpf-log.o` with log lines, for `--debug`), which
//! `cargo xtask build-ebpf` writes and the repository keeps, so that a plain build needs no BPF tools. The krunner
//! crate embeds it with
//! `include_bytes!`, wrapped in a `#[repr(align(8))]` struct: ELF headers are read in place, and
//! `include_bytes!` alone promises no alignment.
#![no_std]

mod kernel;
mod layout;
mod oom_daemon;
pub mod program;
mod record;

pub use kernel::{ABSENT, CHARGE_BATCH_PAGES, Config, LEVEL_UNKNOWN, Offsets, WINDOW_BYTES, config_flag, upid};
pub use layout::Layout;
pub use oom_daemon::OomDaemon;
pub use record::{
    CGROUP_NAME_BYTES, CMDLINE_BYTES, COMM_BYTES, CgroupMade, Exec, Exit, Fork, Kill, Kind, Mark, Memory, NamespaceId,
    NamespaceIds, Task, exec_flag, limit_kind, outcome, source,
};

/// Ring buffer for the records that an OOM report cannot do without, see [`Kind::is_of_kill`].
pub const KILLS: &str = "KILLS";

/// Size of [`KILLS`]: holds 840 unread OOM kills (SIGKILL, mark and exit). The kernel maps the pages of a ring
/// buffer twice but allocates them once, and charges them to the loader's memory cgroup.
pub const KILLS_BYTES: u32 = 256 * 1024;

/// Ring buffer for all other records, which identify processes. It is separate so that a flood of forks cannot cause an OOM
/// kill to be lost.
pub const PROCESSES: &str = "PROCESSES";

/// Size of [`PROCESSES`]: holds 800 unread execs or 8,000 unread forks.
pub const PROCESSES_BYTES: u32 = 256 * 1024;

/// When [`PROCESSES`] holds more than this, a fork or exec wakes the reader. Otherwise the reader picks these records
/// up at the next kill or timer tick.
pub const PROCESSES_WAKE_BYTES: u64 = PROCESSES_BYTES as u64 / 4;

/// Array of `u64` with a row of [`LOST_KINDS`] counters for each CPU, indexed by [`Kind`]: the records that were
/// dropped because a ring buffer was full. User space maps it, because the reader has dropped the capabilities that a
/// bpf(2) lookup may require.
pub const LOST: &str = "LOST";

/// Counters in a row of [`LOST`]. Kinds start at 1, so entry 0 is unused.
pub const LOST_KINDS: u32 = 8;

/// Rows of [`LOST`], one page in total. CPUs with higher numbers share rows.
pub const LOST_CPUS: u32 = 64;

/// Number of `u64` entries in [`LOST`].
pub const LOST_ENTRIES: u32 = LOST_KINDS * LOST_CPUS;

/// Hash map of the last kernel SIGKILL of each sender. Used only on kernels whose `mark_victim` passes a bare thread
/// id.
pub const PENDING: &str = "PENDING";

/// Entries of [`PENDING`]; the oldest are evicted. A sender marks its victim right after the SIGKILL, so only
/// concurrent OOM kills need an entry, and the kernel's `oom_lock` admits one memory cgroup at a time.
pub const PENDING_ENTRIES: u32 = 64;

/// Name of the global of type [`Offsets`], for aya's `EbpfLoader::override_global`.
pub const OFFSETS: &str = "OFFSETS";

/// Name of the global of type [`Config`], for aya's `EbpfLoader::override_global`.
pub const CONFIG: &str = "CONFIG";
