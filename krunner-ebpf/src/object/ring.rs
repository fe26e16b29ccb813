//! The two ring buffers, and the counters of records dropped because a buffer was full.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, RingBuf};
use krunner_common::{
    KILLS_BYTES, Kind, LOST_CPUS, LOST_ENTRIES, LOST_KINDS, Layout, PROCESSES_BYTES, PROCESSES_WAKE_BYTES,
};

use super::log::log_line;

#[map]
static KILLS: RingBuf = RingBuf::with_byte_size(KILLS_BYTES, 0);

#[map]
static PROCESSES: RingBuf = RingBuf::with_byte_size(PROCESSES_BYTES, 0);

#[map]
static LOST: Array<u64> = Array::with_max_entries(LOST_ENTRIES, BPF_F_MMAPABLE);

/// One in this many records that do not wake the reader queries how full the ring is. The ring's positions are on pages
/// that all CPUs write, so a query costs as much as the rest of a record. The choice is pseudo-random (by time), which
/// needs no per-CPU state: the probability that 600 execs, enough to fill the remaining space, pass without a query is
/// 5 * 10^-9.
const QUERY_INTERVAL: u64 = 32;

/// When the reader is woken for a record.
#[derive(Clone, Copy)]
pub(super) enum Wake {
    /// Wakes it immediately.
    Now,
    /// With the next record that wakes it, or earlier if the ring fills up. The time decides pseudo-randomly whether to
    /// query the fill level.
    Later { time_boot_ns: u64 },
}

impl Wake {
    #[inline(always)]
    pub(super) fn flags(self) -> u64 {
        match self {
            Self::Later { time_boot_ns } if !is_filling(time_boot_ns) => u64::from(BPF_RB_NO_WAKEUP),
            // Without a flag the kernel wakes only a reader that has consumed all previous records.
            Self::Now | Self::Later { .. } => u64::from(BPF_RB_FORCE_WAKEUP),
        }
    }
}

#[inline(always)]
fn is_filling(time_boot_ns: u64) -> bool {
    // In units of 256 ns: some clocks are no finer, and two forks are never that close.
    let is_due = (time_boot_ns >> 8).is_multiple_of(QUERY_INTERVAL);
    is_due && PROCESSES.query(u64::from(BPF_RB_AVAIL_DATA)) > PROCESSES_WAKE_BYTES
}

/// Copies a record to the ring: one helper call, where a reservation takes two.
#[inline(always)]
pub(super) fn send<T: Layout + 'static>(kind: Kind, record: &T, wake: Wake) {
    if of(kind).output::<T>(record, wake.flags()).is_err() {
        count_lost(kind);
    }
}

/// Reserves space for a record; counts the record as dropped if the ring is full.
#[inline(always)]
pub(super) fn reserve<T: Layout + 'static>(kind: Kind) -> Option<RingBufEntry<T>> {
    let entry = of(kind).reserve(0);
    if entry.is_none() {
        count_lost(kind);
    }
    entry
}

/// The ring buffer that records of this kind go to.
#[inline(always)]
fn of(kind: Kind) -> &'static RingBuf {
    if kind.is_of_kill() { &KILLS } else { &PROCESSES }
}

#[inline(always)]
fn count_lost(kind: Kind) {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } % LOST_CPUS;
    if let Some(lost) = LOST.get_ptr_mut(cpu * LOST_KINDS + kind as u32) {
        // SAFETY: the element is this CPU's own, and programs of one CPU that interrupt each other
        // could at worst count two losses as one.
        unsafe { *lost += 1 };
    }
    log_line!(record_dropped(kind));
}
