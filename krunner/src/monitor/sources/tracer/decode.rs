//! Decodes ring buffer records into events. Pure.
//!
//! The programs read the clock of the initial time namespace. In another namespace `CLOCK_BOOTTIME` and the start times
//! in `/proc/PID/stat` are shifted by its offset (`timens_add_boottime_ns` in `include/linux/time_namespace.h`). So all
//! times are shifted here. Start times are shifted before they are rounded to ticks, as the kernel does, so that
//! process keys are equal.

use krunner_common::{self as record, Layout as _, OomDaemon};

use crate::monitor::model::event::{
    Actor, CgroupMade, Exec, Fork, Kill, KillSource, Mark, MemoryAtKill, ProcessExit, Trace, TraceEvent,
};
use crate::monitor::model::process::{NamespacePid, ProcessKey};
use crate::monitor::model::{LimitAtKill, LimitKind};

/// A record that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The programs have a different version than the runner, or the record is corrupt.
    #[error("a record of unknown kind ({bytes} bytes)")]
    UnknownKind {
        /// Length of the record.
        bytes: usize,
    },
    /// The record is shorter than its kind requires.
    #[error("a truncated {kind:?} record ({bytes} bytes)")]
    Short {
        /// The kind in its first word.
        kind: record::Kind,
        /// Length of the record.
        bytes: usize,
    },
}

/// Units of the kernel's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelUnits {
    /// The page size.
    pub page_bytes: u64,
    /// Offset of our time namespace's boot clock from the initial one.
    pub boottime_offset_ns: i64,
}

impl KernelUnits {
    fn bytes(self, pages: u64) -> u64 {
        pages.saturating_mul(self.page_bytes)
    }

    /// Converts a time since boot to our time namespace. Negative times wrap around, as in `/proc`.
    fn boot_ns(self, initial_ns: u64) -> u64 {
        initial_ns.wrapping_add_signed(self.boottime_offset_ns)
    }

    fn process(self, task: &record::Task) -> ProcessKey {
        ProcessKey::from_boot_ns(task.tgid, self.boot_ns(task.start_boot_ns))
    }
}

/// Decodes one record.
///
/// # Errors
/// If the record is malformed.
pub(crate) fn decode(bytes: &[u8], units: KernelUnits) -> Result<TraceEvent, DecodeError> {
    let kind = record::Kind::of(bytes).ok_or(DecodeError::UnknownKind { bytes: bytes.len() })?;
    let event = match kind {
        record::Kind::Kill => record::Kill::decode(bytes).map(|kill| (kill.time_boot_ns, self::kill(&kill, units))),
        record::Kind::Mark => record::Mark::decode(bytes).map(|mark| (mark.time_boot_ns, self::mark(&mark, units))),
        record::Kind::Exit => record::Exit::decode(bytes).map(|exit| (exit.time_boot_ns, self::exit(&exit, units))),
        record::Kind::Fork => record::Fork::decode(bytes).map(|fork| (fork.start_boot_ns, self::fork(&fork, units))),
        record::Kind::Exec => record::Exec::decode(bytes).map(|exec| (exec.time_boot_ns, self::exec(&exec, units))),
        record::Kind::CgroupMade => {
            record::CgroupMade::decode(bytes).map(|made| (made.time_boot_ns, self::cgroup_made(&made)))
        }
    };
    let (at_boot_ns, what) = event.ok_or(DecodeError::Short { kind, bytes: bytes.len() })?;
    Ok(TraceEvent { at_boot_ns: units.boot_ns(at_boot_ns), what })
}

fn kill(kill: &record::Kill, units: KernelUnits) -> Trace {
    let pages = |count: u64| units.bytes(count);
    Trace::Kill(Kill {
        victim: units.process(&kill.victim),
        name: name(kill.comm),
        uid: kill.uid,
        oom_score_adj: kill.oom_score_adj,
        source: if kill.source == record::source::KERNEL { KillSource::Kernel } else { KillSource::User },
        sender: actor(kill.sender_tgid, kill.sender_comm),
        daemon: OomDaemon::of_code(kill.sender_daemon).map(|daemon| daemon.name()),
        memory: MemoryAtKill {
            vm_bytes: pages(kill.memory.total_vm_pages),
            anon_bytes: pages(kill.memory.anon_pages),
            file_bytes: pages(kill.memory.file_pages),
            shmem_bytes: pages(kill.memory.shmem_pages),
            swap_bytes: pages(kill.memory.swap_pages),
            pgtables_bytes: kill.memory.pgtables_bytes,
        },
        memory_map: kill.memory_map,
        cgroup_id: (kill.cgroup_id != 0).then_some(kill.cgroup_id),
        limit: limit(kill, units),
        already_pending: kill.outcome == record::outcome::ALREADY_PENDING,
        namespaces: kill.namespaces.iter().map(|id| NamespacePid { inode: id.inum, pid: id.pid }).collect(),
    })
}

fn limit(kill: &record::Kill, units: KernelUnits) -> Option<LimitAtKill> {
    let kind = match kill.limit_kind {
        record::limit_kind::MEMORY => LimitKind::Memory,
        record::limit_kind::MEMORY_AND_SWAP => LimitKind::MemoryAndSwap,
        _ => return None,
    };
    Some(LimitAtKill {
        cgroup_id: (kill.limit_cgroup_id != 0).then_some(kill.limit_cgroup_id),
        kind,
        limit_bytes: units.bytes(kill.limit_pages),
        usage_bytes: units.bytes(kill.limit_usage_pages),
    })
}

fn mark(mark: &record::Mark, units: KernelUnits) -> Trace {
    Trace::Mark(Mark { victim: units.process(&mark.victim), trigger: actor(mark.trigger_tgid, mark.trigger_comm) })
}

fn exit(exit: &record::Exit, units: KernelUnits) -> Trace {
    Trace::Exit(ProcessExit { process: units.process(&exit.task) })
}

fn fork(fork: &record::Fork, units: KernelUnits) -> Trace {
    Trace::Fork(Fork {
        child: ProcessKey::from_boot_ns(fork.child_tgid, units.boot_ns(fork.start_boot_ns)),
        parent_pid: (fork.parent_tgid != 0).then_some(fork.parent_tgid),
    })
}

fn exec(exec: &record::Exec, units: KernelUnits) -> Trace {
    Trace::Exec(Exec {
        process: units.process(&exec.task),
        name: name(exec.comm),
        cmdline: exec.cmdline().to_vec(),
        cmdline_is_cut: exec.flags & record::exec_flag::TRUNCATED != 0,
    })
}

fn cgroup_made(made: &record::CgroupMade) -> Trace {
    Trace::CgroupMade(CgroupMade { id: made.id, parent_id: made.parent_id, name: made.name().to_vec() })
}

fn actor(tgid: u32, comm: [u8; record::COMM_BYTES]) -> Option<Actor> {
    (tgid != 0).then(|| Actor { pid: tgid, name: name(comm) })
}

/// The text before the first NUL; bytes that are not UTF-8 become replacement characters.
fn name(comm: [u8; record::COMM_BYTES]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const UNITS: KernelUnits = KernelUnits { page_bytes: PAGE, boottime_offset_ns: 0 };

    fn comm(text: &[u8]) -> [u8; record::COMM_BYTES] {
        let mut comm = [0; record::COMM_BYTES];
        comm[..text.len()].copy_from_slice(text);
        comm
    }

    #[test]
    fn pages_become_bytes_and_nanoseconds_ticks() {
        let memory = record::Memory { anon_pages: 3, pgtables_bytes: 5, ..record::Memory::decode(&[0; 48]).unwrap() };
        let kill = record::Kill {
            kind: record::Kind::Kill as u32,
            source: record::source::KERNEL,
            outcome: record::outcome::DELIVERED,
            oom_score_adj: -5,
            time_boot_ns: 77,
            victim: record::Task { tgid: 10, tid: 11, start_boot_ns: 1_239_999_999 },
            sender_tgid: 0,
            uid: 1000,
            memory,
            comm: comm(b"hog\xff"),
            memory_map: 0xFFFF_8881_0000_0000,
            cgroup_id: 1 << 33,
            limit_cgroup_id: 7,
            limit_pages: 512,
            limit_usage_pages: 511,
            limit_kind: record::limit_kind::MEMORY_AND_SWAP,
            sender_daemon: 1,
            sender_comm: comm(b""),
            namespaces: record::NamespaceIds {
                deepest: 2,
                first: record::NamespaceId { inum: 40, pid: 7 },
                second: record::NamespaceId { inum: 41, pid: 1 },
                // What lies behind the entries of that process.
                third: record::NamespaceId { inum: 0x6b6b, pid: 0x6b6b },
                ..record::NamespaceIds::NONE
            },
        };
        let event = decode(&kill.to_bytes(), UNITS).unwrap();
        let Trace::Kill(kill) = event.what else { panic!("not a kill") };
        assert_eq!((event.at_boot_ns, kill.victim), (77, ProcessKey { pid: 10, start_ticks: 123 }));
        assert_eq!((kill.memory.anon_bytes, kill.memory.pgtables_bytes), (3 * PAGE, 5));
        assert_eq!(kill.cgroup_id, Some(1 << 33));
        let namespaces = [(40, 7), (41, 1)].map(|(inode, pid)| NamespacePid { inode, pid });
        assert_eq!(kill.namespaces, namespaces);
        let limit = LimitAtKill {
            cgroup_id: Some(7),
            kind: LimitKind::MemoryAndSwap,
            limit_bytes: 512 * PAGE,
            usage_bytes: 511 * PAGE,
        };
        assert_eq!(kill.limit, Some(limit));
        let sender = (kill.sender, kill.daemon);
        assert_eq!((kill.name.as_str(), sender, kill.oom_score_adj), ("hog\u{fffd}", (None, Some("earlyoom")), -5));
    }

    #[test]
    fn times_are_those_of_our_time_namespace() {
        let fork = record::Fork {
            kind: record::Kind::Fork as u32,
            start_boot_ns: 1_239_999_999,
            ..record::Fork::decode(&[0; size_of::<record::Fork>()]).unwrap()
        };
        let forked = |boottime_offset_ns| {
            let event = decode(&fork.to_bytes(), KernelUnits { boottime_offset_ns, ..UNITS }).unwrap();
            let Trace::Fork(fork) = event.what else { panic!("not a fork") };
            (event.at_boot_ns, fork.child.start_ticks)
        };
        // Shifted first, then rounded: 1.239999999 s and 1 ns are 1.24 s.
        assert_eq!(forked(1), (1_240_000_000, 124));
        assert_eq!(forked(100_000_000_000_000), (100_001_239_999_999, 10_000_123));
        assert_eq!(forked(-1_000_000_000), (239_999_999, 23));
        let task = record::Task { tgid: 10, tid: 11, start_boot_ns: 1_239_999_999 };
        let units = KernelUnits { boottime_offset_ns: 1, ..UNITS };
        assert_eq!(units.process(&task), ProcessKey { pid: 10, start_ticks: 124 });
    }

    #[test]
    fn new_cgroup_has_ids_and_a_name() {
        let mut name = [b'x'; record::CGROUP_NAME_BYTES];
        name[..4].copy_from_slice(b"job\0");
        let kind = record::Kind::CgroupMade as u32;
        let made = record::CgroupMade { kind, name_bytes: 3, time_boot_ns: 5, id: 9, parent_id: 1, name };
        let expected = CgroupMade { id: 9, parent_id: 1, name: b"job".to_vec() };
        let event = decode(&made.to_bytes(), UNITS).unwrap();
        assert_eq!(event, TraceEvent { at_boot_ns: 5, what: Trace::CgroupMade(expected) });
    }

    #[test]
    fn a_short_or_unknown_record_is_named() {
        let short = decode(&4_u32.to_ne_bytes(), UNITS).unwrap_err();
        assert_eq!(short.to_string(), "a truncated Fork record (4 bytes)");
        assert_eq!(decode(b"\xff\xff\xff\xff", UNITS).unwrap_err(), DecodeError::UnknownKind { bytes: 4 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(kind in 0u32..8, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&[&kind.to_ne_bytes()[..], &bytes].concat(), UNITS);
        }
    }
}
