//! The facts of the report that the kernel slows programs down at `memory.high`. `report` formats it.

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Serialize;

use crate::monitor::explain::{ThrottleReading, Throttled};
use crate::monitor::model::{ProcessMemory, json};

/// The kernel slows programs down because more than `memory.high` (cgroup v2) is in use. It kills none.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(crate) struct MemoryThrottled {
    event: &'static str,
    /// Wall-clock time of the report.
    #[serde(serialize_with = "json::rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub time: SystemTime,
    /// Time of the report, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// Memory in use, including file pages.
    pub usage_bytes: u64,
    /// `memory.high` of our cgroup or of one above it.
    pub high_bytes: u64,
    /// Levels from our cgroup up to that one; 0 is our own.
    pub levels_above: usize,
    /// The part of the last seconds in which programs waited for memory; null if the kernel does not measure it.
    pub stalled_percent: Option<u64>,
    /// The largest processes, largest first.
    pub processes: Vec<ProcessMemory>,
}

impl MemoryThrottled {
    pub(in crate::monitor) fn new(
        time: SystemTime,
        reading: &ThrottleReading,
        throttled: Throttled,
        processes: Vec<ProcessMemory>,
    ) -> Self {
        Self {
            event: "memory_throttled",
            time,
            at_boot_ns: reading.at_boot_ns,
            usage_bytes: reading.usage_bytes,
            high_bytes: reading.high_bytes,
            levels_above: reading.level,
            stalled_percent: throttled.stalled_percent,
            processes,
        }
    }
}
