//! The eBPF tracer: loads the programs, attaches them, and reads what they write.
//!
//! ```text
//! loader thread: gate ─▶ offsets from BTF ─▶ load, attach ──Attached──▶ RingReader (`bpf/ring.rs`) ──batches──▶ monitor
//! ```
//!
//! The only place that knows aya, with `bpf/ring.rs`. Loading needs capabilities, some 50 ms and, for a moment, some 30 MiB
//! (aya parses the whole BTF of the kernel, asked or not); it happens once, on a thread that ends with it,
//! so that no other thread of the runner ever has a capability. Reading the ring buffers needs none: they are
//! shared memory.

mod program_log;
mod ring;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::{fmt, io};

use aya::maps::{Map, MapData, MapError, RingBuf};
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::{ProgramError, ProgramType, RawTracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use krunner_common::program::{self, Program};
use krunner_common::{CONFIG, Config, KILLS, LEVEL_UNKNOWN, LOST, LOST_ENTRIES, OFFSETS, PROCESSES, config_flag};

use super::btf::{self, BtfError, KernelFacts};
use crate::error::chain;
use crate::sys::memory::{self, Words};

pub use program_log::ProgramLog;
pub(in crate::monitor) use ring::RingReader;

use program_log::LogReader;

/// A counter for each CPU and kind of record.
const LOST_WORDS: NonZeroUsize = NonZeroUsize::new(LOST_ENTRIES as usize).expect("there are CPUs");

/// The inode number of the first pid namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
pub const INIT_PID_NAMESPACE: u32 = 0xEFFF_FFFC;

/// ELF headers are read in place, so the bytes have to be aligned as they are.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../krunner-ebpf/krunner-ebpf.o"));

/// The same programs with log lines of rare events.
static OBJECT_WITH_LOG: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../krunner-ebpf/krunner-ebpf-log.o"));

/// What is to be traced, and where the kernel describes itself.
#[derive(Debug, Clone)]
pub struct Target {
    /// The kernel's BTF: `/sys/kernel/btf/vmlinux`.
    pub btf: PathBuf,
    /// Inode number of our pid namespace.
    pub pid_namespace: u32,
    /// Whose processes are told.
    pub reach: Reach,
    /// Whether the programs log rare events.
    pub log: ProgramLog,
}

/// Whose processes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of our pid namespace and of the ones below it.
    PidNamespace,
    /// Of those, the ones in this cgroup and below it.
    Cgroup {
        /// The inode number of its folder.
        id: u64,
        /// 1: of the memory controller's hierarchy; 2: of the one of version 2, whatever is enabled there.
        version: u8,
    },
    /// All of the machine, with the ids of the first namespace.
    Everything,
}

/// Why the programs are not attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// bpf(2) does not work for us at all.
    #[error("the kernel refuses bpf(2)")]
    Refused(#[source] io::Error),
    /// The kernel knows no raw tracepoints.
    #[error("the kernel has no raw tracepoint programs")]
    TooOld,
    /// The kernel does not tell how it is laid out.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel's BTF lacks what tells cgroups apart.
    #[error(
        "the kernel's BTF does not tell how to find a task's memory cgroup, without which a runner in the host's pid namespace would see other tenants"
    )]
    NoFence,
    /// Maps could not be made.
    #[error("the eBPF object was not loaded")]
    Object(#[source] EbpfError),
    /// The object is another than this program was built for.
    #[error("the eBPF object lacks {0}")]
    Lacks(&'static str),
    /// The verifier or a missing feature.
    #[error("the kernel refuses the program `{name}`: {reason}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel says.
        reason: String,
    },
    /// No such tracepoint.
    #[error("cannot attach to the tracepoint `{tracepoint}`: {reason}")]
    Attach {
        /// Its name.
        tracepoint: &'static str,
        /// What the kernel says.
        reason: String,
    },
    /// The ring buffer is there, but not usable.
    #[error("cannot use the ring buffer")]
    Ring(#[source] MapError),
    /// The counters of lost records are there, but not usable.
    #[error("cannot map the counters of lost records")]
    Counters(#[source] io::Error),
}

/// Programs that run until this is dropped, and their ring buffers.
pub(in crate::monitor) struct Attached {
    kills: RingBuf<MapData>,
    processes: RingBuf<MapData>,
    lost: Words,
    log: Option<LogReader>,
    links: Vec<RawTracePointLink>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// Loads and attaches. Blocks for some 100 ms; see the top of this file for what it takes.
///
/// # Errors
/// With what is in the way; nothing stays loaded then.
pub(super) fn attach(target: &Target) -> Result<Attached, LoadError> {
    gate()?;
    let attached = load(target);
    memory::give_back();
    // The reserve went with it.
    memory::reserve_heap();
    attached
}

/// Fails early and cheaply where bpf(2) is refused.
fn gate() -> Result<(), LoadError> {
    match aya::sys::is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => Ok(()),
        Ok(false) => Err(LoadError::TooOld),
        Err(ProgramError::SyscallError(error)) => Err(LoadError::Refused(error.io_error)),
        Err(error) => Err(LoadError::Refused(io::Error::other(error))),
    }
}

fn load(target: &Target) -> Result<Attached, LoadError> {
    let mut facts = btf::read_kernel_facts(&target.btf)?;
    if let Reach::Cgroup { version, .. } = target.reach {
        if version != 1 {
            // A cgroup without the memory controller is charged to one above it, which is not the fence.
            facts.offsets.css_set_memory = facts.css_set_default;
        }
        if !facts.offsets.can_fence() {
            return Err(LoadError::NoFence);
        }
    }
    if target.log == ProgramLog::Debug {
        match load_with(target, &facts, OBJECT_WITH_LOG) {
            Ok(attached) => return Ok(attached),
            Err(error) => tracing::debug!("{}: the eBPF programs run without log lines", chain(&error)),
        }
    }
    match load_with(target, &facts, OBJECT) {
        // Plain loads are an extra that some verifier may not like; then every read is a call.
        Err(LoadError::Program { .. }) if facts.has_direct_reads => {
            load_with(target, &KernelFacts { has_direct_reads: false, ..facts }, OBJECT)
        }
        loaded => loaded,
    }
}

fn load_with(target: &Target, facts: &KernelFacts, object: &Aligned<[u8]>) -> Result<Attached, LoadError> {
    let offsets = facts.offsets.to_bytes();
    let config = config(target, facts).to_bytes();
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        // A log only of what is refused.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global(OFFSETS, &offsets[..], true)
        .override_global(CONFIG, &config[..], true)
        .map_max_entries(program_log::MAP, program_log::MAP_BYTES)
        .load(&object.0)
        .map_err(LoadError::Object)?;
    let kills = ring(&mut ebpf, KILLS)?;
    let processes = ring(&mut ebpf, PROCESSES)?;
    let lost = ebpf.take_map(LOST).ok_or(LoadError::Lacks("the map LOST"))?;
    let Map::Array(lost) = lost else { return Err(LoadError::Lacks("the array LOST")) };
    let lost = Words::of_map(lost.fd(), LOST_WORDS).map_err(LoadError::Counters)?;
    let log = program_log::reader(&mut ebpf);
    let mut links = program::ALL.iter().map(|program| link(&mut ebpf, program)).collect::<Result<Vec<_>, _>>()?;
    match link(&mut ebpf, &program::CGROUP_MKDIR) {
        Ok(link) => links.push(link),
        Err(error) => tracing::debug!("{}: cgroups that are removed at once have no name in reports", chain(&error)),
    }
    Ok(Attached { kills, processes, lost, log, links })
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Lacks(name))?;
    RingBuf::try_from(map).map_err(LoadError::Ring)
}

fn config(target: &Target, facts: &KernelFacts) -> Config {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    Config {
        fence_cgroup_id: if let Reach::Cgroup { id, .. } = target.reach { id } else { 0 },
        pid_ns_inum: target.pid_namespace,
        pid_ns_level: if target.pid_namespace == INIT_PID_NAMESPACE { 0 } else { LEVEL_UNKNOWN },
        flags: flag(target.reach == Reach::Everything, config_flag::ALL_NAMESPACES)
            | flag(facts.mark_victim_is_pid, config_flag::MARK_VICTIM_IS_PID)
            | flag(facts.has_direct_reads, config_flag::DIRECT_READS),
        reserved: 0,
    }
}

fn link(ebpf: &mut Ebpf, program: &Program) -> Result<RawTracePointLink, LoadError> {
    let refused = |error: ProgramError| LoadError::Program { name: program.name, reason: reason(&error) };
    let loaded: &mut RawTracePoint =
        ebpf.program_mut(program.name).ok_or(LoadError::Lacks(program.name))?.try_into().map_err(refused)?;
    loaded.load().map_err(refused)?;
    let attach = |error: ProgramError| LoadError::Attach { tracepoint: program.tracepoint, reason: reason(&error) };
    let id = loaded.attach(program.tracepoint).map_err(attach)?;
    loaded.take_link(id).map_err(attach)
}

/// In one line. Of what the verifier says, which may be pages, the last words are the reason.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let told = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
            told.map_or_else(|| io_error.to_string(), |told| format!("{io_error}: {told}"))
        }
        other => chain(other),
    }
}

impl Attached {
    /// The end at which records are read.
    ///
    /// # Errors
    /// When the ring buffers cannot be waited for.
    pub(in crate::monitor) fn into_reader(self) -> io::Result<RingReader> {
        RingReader::new(self.kills, self.processes, self.lost, self.log, self.links)
    }
}
