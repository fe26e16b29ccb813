//! Whether the kernel slows our cgroup down at `memory.high` (cgroup v2). Reads only files that are open and were read before.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{ChargeLevel, EVENTS_BYTES, OwnCharge};
use crate::monitor::explain::ThrottleReading;
use crate::monitor::model::clock;
use crate::monitor::sources::cgroup::files::{number_in, open, value};

/// Buffer for a pressure file: two lines of five numbers.
const PRESSURE_BYTES: usize = 256;

/// The open files of a level that can be throttled.
#[derive(Debug)]
pub(super) struct ThrottleFiles {
    high: File,
    /// `memory.pressure`; `None` if the kernel does not measure pressure (`CONFIG_PSI`, `psi=`).
    pressure: Option<File>,
}

impl ThrottleFiles {
    /// `None` in cgroup v1, which has no `memory.high`.
    pub(super) fn open(dir: &Path) -> Option<Self> {
        let open = |name: &str| open(&dir.join(name));
        Some(Self { high: open("memory.high")?, pressure: open("memory.pressure") })
    }

    /// `memory.high`; `None` if it is `max`.
    fn high_bytes(&self) -> Option<u64> {
        number_in(&self.high)
    }

    /// Microseconds in which at least one task waited for memory (Documentation/accounting/psi.rst).
    fn stalled_us(&self) -> Option<u64> {
        let mut buffer = [0; PRESSURE_BYTES];
        let length = self.pressure.as_ref()?.read_at(&mut buffer, 0).ok()?;
        stalled_us(std::str::from_utf8(&buffer[..length]).ok()?)
    }
}

fn stalled_us(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("total="))?.parse().ok()
}

impl OwnCharge {
    /// The level that is closest to its `memory.high`, or furthest beyond it; `None` if no level has any. Reads a file per level, and
    /// four of that level.
    #[must_use]
    pub(in crate::monitor) fn throttle(&self) -> Option<ThrottleReading> {
        let readings = self.levels.iter().enumerate().filter_map(|(index, level)| level.throttle(index));
        readings.min_by_key(|reading| i128::from(reading.high_bytes) - i128::from(reading.usage_bytes))
    }
}

impl ChargeLevel {
    fn throttle(&self, level: usize) -> Option<ThrottleReading> {
        let files = self.throttle.as_ref()?;
        let high_bytes = files.high_bytes()?;
        let usage_bytes = number_in(&self.usage)?;
        let stalled_us = files.stalled_us();
        // Takes longer than the rest. Not needed where pressure is measured.
        let stat = if stalled_us.is_none() { self.stat() } else { None };
        Some(ThrottleReading {
            at_boot_ns: clock::boot_ns(),
            level,
            usage_bytes,
            high_bytes,
            times: value(self.events(&mut [0; EVENTS_BYTES]), "high")?,
            stalled_us,
            needed_bytes: stat.map(|stat| stat.needed_bytes(usage_bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::monitor::sources::cgroup::{Cgroup, CgroupRoot};

    #[test]
    fn stall_is_that_of_some_task() {
        let text =
            "some avg10=1.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n";
        assert_eq!(stalled_us(text), Some(1234));
        assert_eq!(stalled_us(""), None, "psi=0");
    }

    #[test]
    fn closest_level_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "0::/pod/own\n");
        write("proc/self/mountinfo", "33 31 0:29 /pod /m/pod rw - cgroup2 cgroup2 rw\n");
        for (dir, high) in [("m/pod", "900"), ("m/pod/own", "max")] {
            write(&format!("{dir}/memory.max"), "max\n");
            write(&format!("{dir}/memory.current"), "1000\n");
            write(&format!("{dir}/memory.events"), "low 0\nhigh 7\nmax 0\noom 0\noom_kill 0\n");
            write(&format!("{dir}/memory.stat"), "anon 600\ninactive_file 300\nslab_reclaimable 100\n");
            write(&format!("{dir}/memory.high"), &format!("{high}\n"));
        }
        let cgroup = Cgroup::find(&CgroupRoot::below(folder.path())).unwrap();
        let read = || OwnCharge::open(Some(&cgroup)).throttle().unwrap();
        let pod = read();
        assert_eq!((pod.level, pod.usage_bytes, pod.high_bytes, pod.times), (1, 1000, 900, 7));
        assert_eq!((pod.stalled_us, pod.needed_bytes), (None, Some(600)), "pressure is not measured");
        write("m/pod/own/memory.high", "800\n");
        write("m/pod/own/memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n");
        let own = read();
        assert_eq!((own.level, own.high_bytes, own.stalled_us, own.needed_bytes), (0, 800, Some(5), None));
    }
}
