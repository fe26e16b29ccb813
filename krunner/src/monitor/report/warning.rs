//! Formats a warning: one line for people, one object for programs and the hook. The same for the report that memory is throttled.

use std::fmt;

use super::explanation::{in_seconds, mib_per_s};
use crate::monitor::attribution::memory_throttled::MemoryThrottled;
use crate::monitor::attribution::memory_warning::{GrowthPace, MemoryWarning};
use crate::monitor::explain::GrowingProcess;
use crate::monitor::model::ProcessMemory;
use crate::monitor::model::units::mib;

impl MemoryWarning {
    /// One line with the JSON object.
    #[must_use]
    pub(crate) fn to_json(&self) -> String {
        // Cannot fail: it has only strings and finite numbers.
        serde_json::to_string(self).map_or_else(|_| String::new(), |json| json + "\n")
    }

    /// The rate and the time left, if the limit is close enough to mention.
    fn pace(&self) -> Option<GrowthPace> {
        const TOLD_S: f64 = 60.0;
        self.rate_bytes_per_s.zip(self.seconds_to_limit).filter(|(_, seconds)| *seconds <= TOLD_S)
    }
}

/// `memory is running out: working set 210m of 256m (82 %), +52m/s, limit reached in 0.9 s; python3 (1234, rss 180m) is growing by 51m/s`
impl fmt::Display for MemoryWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = u128::from(self.working_set_bytes) * 100 / u128::from(self.limit_bytes.max(1));
        let (needed, limit) = (mib(self.working_set_bytes), mib(self.limit_bytes));
        write!(f, "memory is running out: working set {needed} of {limit} ({percent} %)")?;
        if let Some((rate, seconds)) = self.pace() {
            write!(f, ", +{}, limit reached in {}", mib_per_s(rate), in_seconds(seconds))?;
        }
        if let Some(GrowingProcess { memory, rate_bytes_per_s }) =
            self.growing.as_ref().filter(|_| self.pace().is_some())
        {
            let (pid, name, rss) = (memory.key.pid, memory.name.escape_debug(), mib(memory.rss_bytes));
            return write!(f, "; {name} ({pid}, rss {rss}) is growing by {}", mib_per_s(*rate_bytes_per_s));
        }
        write_largest(f, &self.processes)
    }
}

/// `memory is throttled: 60m in use, memory.high is 56m; the kernel slows programs down instead of killing one (waiting for memory 87 % of the time); the largest process is python3 (12, rss 50m)`
impl fmt::Display for MemoryThrottled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (usage, high) = (mib(self.usage_bytes), mib(self.high_bytes));
        let of_which = if self.levels_above == 0 { "" } else { " of a cgroup above" };
        write!(f, "memory is throttled: {usage} in use, memory.high{of_which} is {high}; ")?;
        write!(f, "the kernel slows programs down instead of killing one")?;
        if let Some(percent) = self.stalled_percent {
            write!(f, " (waiting for memory {percent} % of the time)")?;
        }
        write_largest(f, &self.processes)
    }
}

fn write_largest(f: &mut fmt::Formatter<'_>, processes: &[ProcessMemory]) -> fmt::Result {
    let Some(ProcessMemory { key, name, rss_bytes }) = processes.first() else { return Ok(()) };
    write!(f, "; the largest process is {} ({}, rss {})", name.escape_debug(), key.pid, mib(*rss_bytes))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::monitor::explain::{ThrottleReading, Throttled};
    use crate::monitor::model::process::ProcessKey;

    const MIB: u64 = 1 << 20;

    fn process(name: &str, rss_mib: u64) -> ProcessMemory {
        ProcessMemory { key: ProcessKey { pid: 12, start_ticks: 34 }, name: name.into(), rss_bytes: rss_mib * MIB }
    }

    fn warning(pace: Option<GrowthPace>, growing: Option<GrowingProcess>) -> MemoryWarning {
        let processes = vec![process("large", 200)];
        MemoryWarning::new(SystemTime::UNIX_EPOCH, 5, 250 * MIB, 210 * MIB, 256 * MIB, pace, growing, processes)
    }

    #[test]
    fn growing_process_is_named_in_one_line() {
        let rate = 51.0 * 1_048_576.0;
        let growing = GrowingProcess { memory: process("a\nb", 180), rate_bytes_per_s: rate };
        let text = warning(Some((rate, 0.9)), Some(growing.clone())).to_string();
        assert_eq!(
            text,
            "memory is running out: working set 210m of 256m (82 %), +51m/s, limit reached in 0.9 s; a\\nb (12, rss 180m) is growing by \
             51m/s"
        );
        let slow = warning(Some((1.0, 48e6)), Some(growing)).to_string();
        assert_eq!(
            slow,
            "memory is running out: working set 210m of 256m (82 %); the largest process is large (12, rss 200m)"
        );
    }

    #[test]
    fn slow_programs_know_why() {
        let mut reading = ThrottleReading {
            at_boot_ns: 5,
            level: 0,
            usage_bytes: 60 * MIB,
            high_bytes: 56 * MIB,
            times: 3,
            stalled_us: None,
            needed_bytes: None,
        };
        let text = |reading: &ThrottleReading, stalled_percent| {
            let processes = vec![process("large", 50)];
            MemoryThrottled::new(SystemTime::UNIX_EPOCH, reading, Throttled { stalled_percent }, processes).to_string()
        };
        assert_eq!(
            text(&reading, Some(87)),
            "memory is throttled: 60m in use, memory.high is 56m; the kernel slows programs down instead of killing one \
             (waiting for memory 87 % of the time); the largest process is large (12, rss 50m)"
        );
        reading.level = 1;
        assert_eq!(
            text(&reading, None),
            "memory is throttled: 60m in use, memory.high of a cgroup above is 56m; the kernel slows programs down instead \
             of killing one; the largest process is large (12, rss 50m)"
        );
    }

    #[test]
    fn object_has_units_in_its_names() {
        let growing = GrowingProcess { memory: process("a", 1), rate_bytes_per_s: 2.0 };
        let value = serde_json::to_value(warning(Some((2.0, 4.0)), Some(growing))).unwrap();
        assert_eq!(value["event"], "memory_warning");
        assert_eq!(value["working_set_bytes"], 210 * MIB);
        assert_eq!((&value["growing"]["pid"], &value["growing"]["rate_bytes_per_s"]), (&12.into(), &2.0.into()));
        assert_eq!(value["processes"][0]["name"], "large");
    }
}
