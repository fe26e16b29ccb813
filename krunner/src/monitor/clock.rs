//! The clock of all events: nanoseconds since boot, suspend included, as the kernel keeps start times.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Now.
#[must_use]
pub fn boot_ns() -> u64 {
    // The clock has existed since Linux 2.6.39; the call cannot fail.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// What this thread has had of a processor.
#[must_use]
pub(super) fn thread_cpu() -> Duration {
    // As above.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The time of day of a moment of that clock.
#[must_use]
pub fn time_of_day(at_boot_ns: u64) -> SystemTime {
    let ago = Duration::from_nanos(boot_ns().saturating_sub(at_boot_ns));
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}
