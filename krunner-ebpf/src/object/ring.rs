//! The two ring buffers, and what becomes of a record that finds no room: it is counted.

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

/// One record out of so many that need not wake the reader looks how full the ring is. The positions
/// are on pages that all CPUs write, so that a look costs as much as all else in a record. Chance picks them,
/// which takes no memory and no note of how many CPUs there are: that 600 execs, which fill what is
/// left when it should be noticed, go by without a look has a probability of 5 * 10^-9.
const LOOK_EVERY: u64 = 32;

/// When the reader learns of a record.
#[derive(Clone, Copy)]
pub(super) enum Wake {
    /// At once.
    Now,
    /// With the next one that wakes it, unless the ring fills up. Its time is what chance is taken from.
    Later { time_boot_ns: u64 },
}

impl Wake {
    #[inline(always)]
    pub(super) fn flags(self) -> u64 {
        match self {
            Self::Later { time_boot_ns } if !is_filling(time_boot_ns) => u64::from(BPF_RB_NO_WAKEUP),
            // Without a flag the kernel wakes only a reader who has read everything before this record.
            Self::Now | Self::Later { .. } => u64::from(BPF_RB_FORCE_WAKEUP),
        }
    }
}

#[inline(always)]
fn is_filling(time_boot_ns: u64) -> bool {
    // In quarters of microseconds: finer than that some clocks are not, and no two forks are as close.
    let looks = (time_boot_ns >> 8).is_multiple_of(LOOK_EVERY);
    looks && PROCESSES.query(u64::from(BPF_RB_AVAIL_DATA)) > PROCESSES_WAKE_BYTES
}

/// Copies a record to the ring, which is one call to the kernel where a reservation is two.
#[inline(always)]
pub(super) fn send<T: Layout + 'static>(kind: Kind, record: &T, wake: Wake) {
    if of(kind).output::<T>(record, wake.flags()).is_err() {
        count_lost(kind);
    }
}

/// Room for a record; counts it as lost if there is none.
#[inline(always)]
pub(super) fn reserve<T: Layout + 'static>(kind: Kind) -> Option<RingBufEntry<T>> {
    let entry = of(kind).reserve(0);
    if entry.is_none() {
        count_lost(kind);
    }
    entry
}

/// The ring buffer for records of that kind.
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
