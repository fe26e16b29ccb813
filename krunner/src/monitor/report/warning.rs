//! Formats a warning: one line for people, one object for programs and the hook.

use std::fmt;

use super::explanation::{in_seconds, mib_per_s};
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
        match self.processes.first() {
            Some(ProcessMemory { key, name, rss_bytes }) => {
                write!(f, "; the largest process is {} ({}, rss {})", name.escape_debug(), key.pid, mib(*rss_bytes))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
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
    fn object_has_units_in_its_names() {
        let growing = GrowingProcess { memory: process("a", 1), rate_bytes_per_s: 2.0 };
        let value = serde_json::to_value(warning(Some((2.0, 4.0)), Some(growing))).unwrap();
        assert_eq!(value["event"], "memory_warning");
        assert_eq!(value["working_set_bytes"], 210 * MIB);
        assert_eq!((&value["growing"]["pid"], &value["growing"]["rate_bytes_per_s"]), (&12.into(), &2.0.into()));
        assert_eq!(value["processes"][0]["name"], "large");
    }
}
