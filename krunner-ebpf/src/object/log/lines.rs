//! Rare events as lines of the runner's debug log, by aya-log.
//!
//! Each line is a function that is called, so that the programs around it stay nearly as they are and the line is in the
//! object once. Lines say nothing about whose process it was: it may be another tenant's.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use aya_log_ebpf::debug;
use krunner_common::{Kind, WINDOW_BYTES};

/// Dropped records that are closer together than this are one series, of which the first has a line. All are counted
/// in `LOST`.
const SERIES_GAP_NS: u64 = 1_000_000_000;

/// When the last record was dropped, in ns since boot.
static LAST_DROP: Word = Word::new();

static NOTHING_LEARNT: Word = Word::new();
static NO_WINDOW: Word = Word::new();
static MEMBER_OUTSIDE: Word = Word::new();

/// A word that all CPUs read and write as a whole, 0 at first. CPUs that do so at once may both log their line.
struct Word(UnsafeCell<u64>);

// SAFETY: only volatile accesses of an aligned word.
unsafe impl Sync for Word {}

impl Word {
    const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// What was there before.
    #[inline(always)]
    fn replace(&self, value: u64) -> u64 {
        // SAFETY: see `Sync`.
        unsafe {
            let before = self.0.get().read_volatile();
            self.0.get().write_volatile(value);
            before
        }
    }

    /// Whether this is the first time.
    #[inline(always)]
    fn is_first(&self) -> bool {
        self.replace(1) == 0
    }
}

/// A record found no room in its ring buffer.
#[inline(always)]
pub(in crate::object) fn record_dropped(kind: Kind) {
    // The kind is a constant where this is inlined, and so is the name, whose length the verifier has to know.
    match kind {
        Kind::Kill => kill(),
        Kind::Mark => mark(),
        Kind::Exit => exit(),
        Kind::Fork => fork(),
        Kind::Exec => exec(),
        Kind::CgroupMade => cgroup(),
    }
}

macro_rules! dropped {
    ($function:ident, $record:literal, $map:literal) => {
        #[inline(never)]
        fn $function() {
            // SAFETY: helpers without arguments.
            let (now, cpu) = unsafe { (bpf_ktime_get_boot_ns(), bpf_get_smp_processor_id()) };
            if now.wrapping_sub(LAST_DROP.replace(now)) > SERIES_GAP_NS {
                debug!(&(), "the record of {} was dropped on CPU {}: the ring buffer {} is full", $record, cpu, $map);
            }
        }
    };
}

dropped!(kill, "a SIGKILL", "KILLS");
dropped!(mark, "an OOM mark", "KILLS");
dropped!(exit, "an exit", "KILLS");
dropped!(fork, "a fork", "PROCESSES");
dropped!(exec, "an exec", "PROCESSES");
dropped!(cgroup, "a new cgroup", "PROCESSES");

/// The level of our pid namespace is not known yet, and cannot be learnt from a task that is outside of it. `deepest` is
/// the level of the task's own.
#[inline(never)]
pub(in crate::object) fn nothing_learnt(deepest: u32) {
    if NOTHING_LEARNT.is_first() {
        debug!(
            &(),
            "a task of PID namespace level {} is not ours: the level of our PID namespace is still unknown", deepest
        );
    }
}

/// The members that a fork needs are further apart than the window is long.
#[inline(never)]
pub(in crate::object) fn no_window() {
    if NO_WINDOW.is_first() {
        debug!(
            &(),
            "the members of task_struct that a fork needs do not fit into {} bytes: each is read by itself",
            WINDOW_BYTES
        );
    }
}

/// A member that a fork needs is not in the window that begins there.
#[inline(never)]
pub(in crate::object) fn member_outside_window(first: u32) {
    if MEMBER_OUTSIDE.is_first() {
        debug!(
            &(),
            "a member of task_struct that a fork needs is not in the {} bytes from offset {}: forks are not recorded",
            WINDOW_BYTES,
            first
        );
    }
}
