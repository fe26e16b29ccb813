//! The parts of an explanation and the readings behind them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Advice, Growth, LimitHit, MemoryUsage};
use crate::monitor::model::cgroup::CgroupFacts;

/// The memory readings right after a kill.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MemoryFacts {
    /// The victim's memory cgroup.
    pub cgroup: Option<CgroupFacts>,
    /// The limit that was reached.
    pub limit: Option<LimitHit>,
    /// The memory of that limit's cgroup at the reading.
    pub usage: Option<MemoryUsage>,
    /// Without a tracer: memory in swap there at the last reading before the kill, which the victim's size may include; 0 if it is
    /// unknown.
    pub swap_bytes: u64,
}

/// Why a process was killed, as far as known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Explanation {
    /// Which limit was reached.
    pub limit: Option<LimitHit>,
    /// What used the memory.
    pub usage: Option<MemoryUsage>,
    /// Growth before the kill.
    pub growth: Option<Growth>,
    /// How much would have been enough, and what to change.
    pub advice: Option<Advice>,
}
