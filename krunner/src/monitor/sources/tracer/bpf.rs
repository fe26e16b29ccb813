//! Loads the eBPF programs and attaches them.
//!
//! ```text
//! loader thread: probe ─▶ offsets from BTF ─▶ load, attach ──Attached──▶ RingReader (`bpf/ring.rs`) ──batches──▶ monitor
//! ```
//!
//! Only this module and its children use aya. Loading requires capabilities, about 50 ms and temporarily about 30 MiB
//! (aya always parses the kernel's whole BTF). It happens once, on a thread that then ends, so that no other thread of
//! the runner has capabilities. Reading the ring buffers requires none: they are shared memory.

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
use krunner_common::{
    ABSENT, CONFIG, Config, KILLS, LEVEL_UNKNOWN, LOST, LOST_ENTRIES, OFFSETS, PROCESSES, config_flag,
};

use super::btf::{self, BtfError, KernelFacts};
use crate::error::chain;
use crate::sys::memory::{self, CounterMap};

pub(crate) use program_log::ProgramLog;
pub(in crate::monitor) use ring::RingReader;

use program_log::LogReader;

/// Number of counters in [`LOST`], one for each CPU and record kind.
const LOST_COUNTERS: NonZeroUsize = NonZeroUsize::new(LOST_ENTRIES as usize).expect("there are CPUs");

/// Inode number of the initial PID namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
pub(crate) const INIT_PID_NAMESPACE: u32 = 0xEFFF_FFFC;

/// Aligns the embedded object: ELF headers are read in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../../krunner-ebpf/krunner-ebpf.o"));

/// The same programs with log lines for rare events.
static OBJECT_WITH_LOG: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../../krunner-ebpf/krunner-ebpf-log.o"));

/// The same programs with the victim's IDs in all PID namespaces.
static OBJECT_OF_NODE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../../krunner-ebpf/krunner-ebpf-node.o"));

/// What to trace, and how to load the programs.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The kernel's BTF: `/sys/kernel/btf/vmlinux`.
    pub btf: PathBuf,
    /// Inode number of our PID namespace.
    pub pid_namespace: u32,
    /// Which processes the programs record.
    pub filter: TraceFilter,
    /// The memory controller is cgroup v1's, which may limit memory and swap together.
    pub counts_memory_and_swap: bool,
    /// Whether the programs log rare events.
    pub log: ProgramLog,
    /// Whether records have the victim's IDs in all PID namespaces.
    pub records_namespaces: bool,
}

/// Which processes the programs record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TraceFilter {
    /// Processes in our PID namespace and its children.
    PidNamespace,
    /// Processes in our PID namespace and in this cgroup or its descendants.
    Cgroup {
        /// Inode number of the cgroup's directory.
        id: u64,
        /// 1: the cgroup is in the v1 memory hierarchy; 2: in the v2 hierarchy, with any controllers.
        version: u8,
    },
    /// All processes on the machine, with their ids in the initial PID namespace.
    None,
}

/// Why the programs are not attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// A trivial bpf(2) call failed.
    #[error("bpf(2) failed")]
    Refused(#[source] io::Error),
    /// The kernel is older than raw tracepoint programs.
    #[error("the kernel does not support raw tracepoint programs")]
    TooOld,
    /// The kernel's BTF cannot be used.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel's BTF lacks members that the cgroup filter requires.
    #[error(
        "cannot locate a task's memory cgroup from the kernel's BTF; in the host's PID namespace krunner needs it to leave out other tenants"
    )]
    NoCgroupFilter,
    /// Parsing the object or creating its maps failed.
    #[error("cannot load the eBPF object")]
    Object(#[source] EbpfError),
    /// The object lacks a program or map, which is a build error.
    #[error("the eBPF object lacks {0}")]
    MissingSymbol(&'static str),
    /// Rejected by the verifier, or for a missing kernel feature.
    #[error("the kernel rejected the eBPF program `{name}`: {reason}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// The kernel's error, with the end of the verifier's log.
        reason: String,
    },
    /// The tracepoint does not exist, or attaching failed.
    #[error("cannot attach to the tracepoint `{tracepoint}`: {reason}")]
    Attach {
        /// The tracepoint's name.
        tracepoint: &'static str,
        /// The kernel's error, with the end of the verifier's log.
        reason: String,
    },
    /// The ring buffer cannot be mapped.
    #[error("cannot open the ring buffer")]
    Ring(#[source] MapError),
    /// The counters of dropped records cannot be mapped.
    #[error("cannot map the counters of dropped records")]
    Counters(#[source] io::Error),
}

/// The attached programs and their ring buffers. Dropping it detaches them.
pub(in crate::monitor) struct Attached {
    kills: RingBuf<MapData>,
    processes: RingBuf<MapData>,
    lost: CounterMap,
    log: Option<LogReader>,
    links: Vec<RawTracePointLink>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// Loads and attaches the programs. Blocks for about 100 ms; see the module documentation for the requirements.
///
/// # Errors
/// With the reason; nothing stays loaded then.
pub(super) fn attach(target: &Target) -> Result<Attached, LoadError> {
    check_bpf()?;
    let attached = load(target);
    memory::trim_heap();
    // Trimming the heap also released the reserve.
    memory::reserve_heap();
    attached
}

/// Fails early and cheaply if bpf(2) does not work.
fn check_bpf() -> Result<(), LoadError> {
    match aya::sys::is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => Ok(()),
        Ok(false) => Err(LoadError::TooOld),
        Err(ProgramError::SyscallError(error)) => Err(LoadError::Refused(error.io_error)),
        Err(error) => Err(LoadError::Refused(io::Error::other(error))),
    }
}

fn load(target: &Target) -> Result<Attached, LoadError> {
    let mut facts = btf::read_kernel_facts(&target.btf)?;
    if !target.counts_memory_and_swap {
        facts.offsets.css_memsw_usage = ABSENT;
    }
    if let TraceFilter::Cgroup { version, .. } = target.filter {
        if version != 1 {
            // Without the memory controller, a cgroup's memory is charged to an ancestor, which is not the filter's
            // cgroup.
            facts.offsets.css_set_memory = facts.css_set_default;
        }
        if !facts.offsets.has_task_cgroup() {
            return Err(LoadError::NoCgroupFilter);
        }
    }
    if target.log == ProgramLog::Debug {
        match load_with(target, &facts, OBJECT_WITH_LOG) {
            Ok(attached) => return Ok(attached),
            Err(error) => tracing::debug!("{}: eBPF program logging is disabled", chain(&error)),
        }
    }
    let object = if target.records_namespaces { OBJECT_OF_NODE } else { OBJECT };
    match load_with(target, &facts, object) {
        // A verifier may reject plain loads, which are an optimization: retry with helper calls.
        Err(LoadError::Program { .. }) if facts.has_direct_reads => {
            load_with(target, &KernelFacts { has_direct_reads: false, ..facts }, object)
        }
        loaded => loaded,
    }
}

fn load_with(target: &Target, facts: &KernelFacts, object: &Aligned<[u8]>) -> Result<Attached, LoadError> {
    let offsets = facts.offsets.to_bytes();
    let config = config(target, facts).to_bytes();
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        // Log only rejected programs.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global(OFFSETS, &offsets[..], true)
        .override_global(CONFIG, &config[..], true)
        .map_max_entries(program_log::MAP, program_log::MAP_BYTES)
        .load(&object.0)
        .map_err(LoadError::Object)?;
    let kills = ring(&mut ebpf, KILLS)?;
    let processes = ring(&mut ebpf, PROCESSES)?;
    let lost = ebpf.take_map(LOST).ok_or(LoadError::MissingSymbol("the map LOST"))?;
    let Map::Array(lost) = lost else { return Err(LoadError::MissingSymbol("the array LOST")) };
    let lost = CounterMap::of_map(lost.fd(), LOST_COUNTERS).map_err(LoadError::Counters)?;
    let log = program_log::reader(&mut ebpf);
    let mut links = program::ALL.iter().map(|program| link(&mut ebpf, program)).collect::<Result<Vec<_>, _>>()?;
    match link(&mut ebpf, &program::CGROUP_MKDIR) {
        Ok(link) => links.push(link),
        Err(error) => tracing::debug!("{}: reports will not name short-lived cgroups", chain(&error)),
    }
    if target.records_namespaces {
        match link(&mut ebpf, &program::DAEMON_SIGKILL) {
            Ok(link) => links.push(link),
            Err(error) => {
                tracing::warn!(
                    "{}: SIGKILLs of user-space OOM killers (earlyoom, systemd-oomd) are not explained",
                    chain(&error)
                );
            }
        }
    }
    Ok(Attached { kills, processes, lost, log, links })
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::MissingSymbol(name))?;
    RingBuf::try_from(map).map_err(LoadError::Ring)
}

fn config(target: &Target, facts: &KernelFacts) -> Config {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    Config {
        filter_cgroup_id: if let TraceFilter::Cgroup { id, .. } = target.filter { id } else { 0 },
        pid_ns_inum: target.pid_namespace,
        pid_ns_level: if target.pid_namespace == INIT_PID_NAMESPACE { 0 } else { LEVEL_UNKNOWN },
        flags: flag(target.filter == TraceFilter::None, config_flag::ALL_NAMESPACES)
            | flag(facts.mark_victim_is_pid, config_flag::MARK_VICTIM_IS_PID)
            | flag(facts.has_direct_reads, config_flag::DIRECT_READS),
        reserved: 0,
    }
}

fn link(ebpf: &mut Ebpf, program: &Program) -> Result<RawTracePointLink, LoadError> {
    let refused = |error: ProgramError| LoadError::Program { name: program.name, reason: reason(&error) };
    let loaded: &mut RawTracePoint =
        ebpf.program_mut(program.name).ok_or(LoadError::MissingSymbol(program.name))?.try_into().map_err(refused)?;
    loaded.load().map_err(refused)?;
    let attach = |error: ProgramError| LoadError::Attach { tracepoint: program.tracepoint, reason: reason(&error) };
    let id = loaded.attach(program.tracepoint).map_err(attach)?;
    loaded.take_link(id).map_err(attach)
}

/// Formats an error in one line. Of the verifier's log, which may be pages long, the last line has the reason.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
            last.map_or_else(|| io_error.to_string(), |last| format!("{io_error}: {last}"))
        }
        other => chain(other),
    }
}

impl Attached {
    /// Converts it into the reader of the ring buffers.
    ///
    /// # Errors
    /// If the ring buffers cannot be registered with tokio.
    pub(in crate::monitor) fn into_reader(self) -> io::Result<RingReader> {
        RingReader::new(self.kills, self.processes, self.lost, self.log, self.links)
    }
}
