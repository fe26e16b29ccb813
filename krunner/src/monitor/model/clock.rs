//! The clock of all events: nanoseconds since boot, suspend included, as the kernel keeps start times.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// The current time: nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
#[must_use]
pub(crate) fn boot_ns() -> u64 {
    // The clock has existed since Linux 2.6.39; the call cannot fail.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Offset of our time namespace's boot clock from the initial one (`time_namespaces(7)`); 0 without time namespaces.
#[must_use]
pub(in crate::monitor) fn boottime_offset_ns() -> i64 {
    let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).ok();
    // The file shows the offsets of the namespace for children (`proc_timens_show_offsets`, kernel/time/namespace.c),
    // which differs from ours between unshare(2) and the next exec.
    if namespace("time") != namespace("time_for_children") {
        return 0;
    }
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    parse_boottime_offset(&offsets).unwrap_or(0)
}

/// Parses lines of clock name, seconds and nanoseconds.
fn parse_boottime_offset(offsets: &str) -> Option<i64> {
    const NS_PER_S: i64 = 1_000_000_000;
    let mut fields = offsets.lines().find_map(|line| line.strip_prefix("boottime"))?.split_whitespace();
    let mut number = || fields.next()?.parse::<i64>().ok();
    let (seconds, ns) = (number()?, number()?);
    seconds.checked_mul(NS_PER_S)?.checked_add(ns)
}

/// CPU time used by the calling thread.
#[must_use]
pub(in crate::monitor) fn thread_cpu() -> Duration {
    // Cannot fail either.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The time of day of a moment of that clock.
#[must_use]
pub(crate) fn time_of_day(at_boot_ns: u64) -> SystemTime {
    let ago = Duration::from_nanos(boot_ns().saturating_sub(at_boot_ns));
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::parse_boottime_offset;

    #[test]
    fn boottime_offset_has_seconds_and_nanoseconds() {
        let offsets = |line: &str| parse_boottime_offset(&format!("monotonic          7         0\n{line}\n"));
        assert_eq!(offsets("boottime      100000         5"), Some(100_000_000_000_005));
        assert_eq!(offsets("boottime          -1 900000000"), Some(-100_000_000));
        assert_eq!((offsets("boottime"), parse_boottime_offset("")), (None, None));
    }
}
