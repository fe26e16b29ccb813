//! The facts of the warning that memory is running out. `report` formats it.

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Serialize;

use crate::monitor::explain::GrowingProcess;
use crate::monitor::model::{ProcessMemory, json};

/// Memory is running out.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(crate) struct MemoryWarning {
    event: &'static str,
    /// Wall-clock time of the warning.
    #[serde(serialize_with = "json::rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub time: SystemTime,
    /// Time of the warning, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// Memory in use, including file pages.
    pub usage_bytes: u64,
    /// The part of it that cannot be reclaimed.
    pub working_set_bytes: u64,
    /// The memory limit.
    pub limit_bytes: u64,
    /// Growth rate of the working set in the last second, if it grew.
    pub rate_bytes_per_s: Option<f64>,
    /// Seconds until it reaches the limit at this rate.
    pub seconds_to_limit: Option<f64>,
    /// The fastest growing process.
    pub growing: Option<GrowingProcess>,
    /// The largest processes, largest first.
    pub processes: Vec<ProcessMemory>,
}

/// Growth rate in bytes per second, and the seconds left until the limit.
pub(in crate::monitor) type GrowthPace = (f64, f64);

impl MemoryWarning {
    #[expect(clippy::too_many_arguments, reason = "each is one field")]
    pub(in crate::monitor) fn new(
        time: SystemTime,
        at_boot_ns: u64,
        usage_bytes: u64,
        working_set_bytes: u64,
        limit_bytes: u64,
        pace: Option<GrowthPace>,
        growing: Option<GrowingProcess>,
        processes: Vec<ProcessMemory>,
    ) -> Self {
        Self {
            event: "memory_warning",
            time,
            at_boot_ns,
            usage_bytes,
            working_set_bytes,
            limit_bytes,
            rate_bytes_per_s: pace.map(|(rate, _)| rate),
            seconds_to_limit: pace.map(|(_, seconds)| seconds),
            growing,
            processes,
        }
    }
}
