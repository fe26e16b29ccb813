//! Explains why memory ran out: which limit was reached, what used the memory, how it grew, how much would have been enough.
//!
//! Pure: readings in, findings out. Sources take the readings; `report` formats the findings. Unknown values are `None`.
//!
//! ```text
//!  limits and usage of cgroups, failed-charge counters ─▶ limit   ─┐
//!  memory.stat, mounts, processes ─────────────────────▶ usage   ─┤
//!  samples of the last 60 s ───────────────────────────▶ growth  ─┼─▶ Explanation, a part of the report
//!  all of these ───────────────────────────────────────▶ advice  ─┘
//! ```

mod advice;
mod combine;
mod count;
mod explanation;
mod growth;
mod limit;
mod samples;
mod throttle;
mod trend;
mod usage;
mod warning;

pub(crate) use advice::{Advice, Remedy};
pub(in crate::monitor) use count::{Count, GroupKill, Kills};
pub(crate) use explanation::Explanation;
pub(crate) use explanation::MemoryFacts;
pub(crate) use growth::{Growth, GrowthShape};
pub(in crate::monitor) use limit::{CgroupView, FailedCharges, MachineMemory};
pub(crate) use limit::{LimitHit, LimitScope};
pub(super) use samples::SampleSeries;
pub(super) use throttle::{ThrottleReading, ThrottleRule, Throttled};
pub(super) use trend::Trend;
pub(crate) use usage::{KernelMemory, MemoryUsage, TreeUsage};
pub(in crate::monitor) use usage::{ProcessUsage, UsageText};
pub(crate) use warning::GrowingProcess;
pub(super) use warning::{WarningRule, fastest_growing};
