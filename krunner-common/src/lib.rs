//! What the eBPF programs and user space agree on: the records that cross the ring buffer, the
//! globals that the loader hands over, and the names of maps and programs.
//!
//! `no_std`, because the kernel side is built for `bpfel-unknown-none`. Nothing here reads a clock, a
//! file or the kernel, and nothing here is `unsafe`: a record is decoded field by field.
//!
//! The object itself is `krunner-ebpf/krunner-ebpf.o` (and `krunner-ebpf-log.o` with log lines, for `--debug`), which
//! `cargo xtask build-ebpf` writes and the repository keeps, so that a plain build needs no BPF tools. The krunner crate embeds it with
//! `include_bytes!`, wrapped in a `#[repr(align(8))]` struct: ELF headers are read in place, and
//! `include_bytes!` alone promises no alignment.
#![no_std]

mod kernel;
mod layout;
pub mod program;
mod record;

pub use kernel::{ABSENT, Config, LEVEL_UNKNOWN, Offsets, WINDOW_BYTES, config_flag, upid};
pub use layout::Layout;
pub use record::{
    CGROUP_NAME_BYTES, CMDLINE_BYTES, COMM_BYTES, CgroupMade, Exec, Exit, Fork, Kill, Kind, Mark, Memory, Task,
    exec_flag, outcome, source,
};

/// Map: the ring buffer of the records without which a kill goes unreported, see [`Kind::is_of_kill`].
pub const KILLS: &str = "KILLS";

/// Size of [`KILLS`]: 1,000 OOM kills (SIGKILL, mark and exit) while nobody reads. The kernel maps the pages of a ring
/// buffer twice but allocates them once, and charges them to the loader's memory cgroup.
pub const KILLS_BYTES: u32 = 256 * 1024;

/// Map: the ring buffer of all other records, which tell who is who. A flood of them costs no kill.
pub const PROCESSES: &str = "PROCESSES";

/// Size of [`PROCESSES`]: 800 execs or 8,000 forks while nobody reads.
pub const PROCESSES_BYTES: u32 = 256 * 1024;

/// With more than this in [`PROCESSES`], a fork or exec wakes the reader, who otherwise picks them up with
/// the next kill or in its own time.
pub const PROCESSES_WAKE_BYTES: u64 = PROCESSES_BYTES as u64 / 4;

/// Map: array of `u64` that user space can map, a row of [`LOST_KINDS`] for each CPU; in it, entry [`Kind`]
/// counts the records of that kind that found no room. Mapped, because bpf(2) may be refused to a reader
/// who has dropped his capabilities.
pub const LOST: &str = "LOST";

/// Entries in a row of [`LOST`]: the kinds start at 1.
pub const LOST_KINDS: u32 = 8;

/// Rows of [`LOST`]; CPUs beyond share them. Together they are one page.
pub const LOST_CPUS: u32 = 64;

/// Entries of [`LOST`].
pub const LOST_ENTRIES: u32 = LOST_KINDS * LOST_CPUS;

/// Map: the last kernel SIGKILL per sender; used only where `mark_victim` gives a bare thread id.
pub const PENDING: &str = "PENDING";

/// Entries of [`PENDING`]; the oldest give way. A sender marks right after it kills, so what counts is
/// how many OOM kills go on at once, and the kernel's `oom_lock` lets one memory cgroup at a time.
pub const PENDING_ENTRIES: u32 = 64;

/// Global of type [`Offsets`]; for aya's `EbpfLoader::override_global`.
pub const OFFSETS: &str = "OFFSETS";

/// Global of type [`Config`]; for aya's `EbpfLoader::override_global`.
pub const CONFIG: &str = "CONFIG";
