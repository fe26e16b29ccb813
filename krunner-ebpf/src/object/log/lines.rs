//! Log lines for rare events, sent to the runner's debug log through aya-log.
//!
//! Each line is a non-inlined function, so that the calling program barely changes and the object contains the line
//! once. Lines do not identify processes, because those may belong to another tenant.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use aya_log_ebpf::debug;
use krunner_common::{Kind, WINDOW_BYTES};

/// Dropped records that are less than this apart form one series, and only the first is logged. All are counted in
/// `LOST`.
const SERIES_GAP_NS: u64 = 1_000_000_000;

/// When the last record was dropped, in ns since boot.
static LAST_DROP: Word = Word::new();

static LEVEL_UNKNOWN_LOGGED: Word = Word::new();
static NO_WINDOW: Word = Word::new();
static MEMBER_OUTSIDE: Word = Word::new();

/// A word that CPUs read and write atomically, initially 0. CPUs that race may both log their line.
struct Word(UnsafeCell<u64>);

// SAFETY: only volatile accesses of an aligned word.
unsafe impl Sync for Word {}

impl Word {
    const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// Stores `value` and returns the previous one.
    #[inline(always)]
    fn replace(&self, value: u64) -> u64 {
        // SAFETY: see `Sync`.
        unsafe {
            let before = self.0.get().read_volatile();
            self.0.get().write_volatile(value);
            before
        }
    }

    /// True on the first call only.
    #[inline(always)]
    fn is_first(&self) -> bool {
        self.replace(1) == 0
    }
}

/// Logs that a record was dropped because its ring buffer is full.
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
                debug!(&(), "dropped the record of {} on CPU {}: ring buffer {} is full", $record, cpu, $map);
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

/// Logs that the level of our PID namespace is still unknown, because the task seen is outside of it. `deepest` is the
/// level of the task's own namespace.
#[inline(never)]
pub(in crate::object) fn namespace_level_unknown(deepest: u32) {
    if LEVEL_UNKNOWN_LOGGED.is_first() {
        debug!(
            &(),
            "a task at PID namespace level {} is not ours: the level of our PID namespace is still unknown", deepest
        );
    }
}

/// Logs that the `task_struct` members that a fork record needs do not fit into the window.
#[inline(never)]
pub(in crate::object) fn no_window() {
    if NO_WINDOW.is_first() {
        debug!(
            &(),
            "the task_struct members needed for a fork record span more than {} bytes: reading them one by one",
            WINDOW_BYTES
        );
    }
}

/// Logs that a member that a fork record needs is outside the window that begins at `first`.
#[inline(never)]
pub(in crate::object) fn member_outside_window(first: u32) {
    if MEMBER_OUTSIDE.is_first() {
        debug!(
            &(),
            "a task_struct member needed for a fork record is outside the {} bytes at offset {}: forks are not recorded",
            WINDOW_BYTES,
            first
        );
    }
}
