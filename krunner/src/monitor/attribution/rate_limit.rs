//! Rate limit for OOM reports: the first ones are emitted in full, the rest counted by name. Pure.
//!
//! A token bucket of [`BURST`] reports that refills at [`PER_SECOND`]: a thousand kills in a second become about a hundred
//! reports and one summary line per second.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

const SECOND_NS: u64 = 1_000_000_000;

/// Reports that may be emitted back to back. At about 2 KiB each, they fill a quarter of the queue for log lines to the agent.
const BURST: u64 = 128;

/// Reports per second after the burst.
const PER_SECOND: u64 = 10;

/// Names counted separately in a summary.
const MAX_NAMES: usize = 16;

/// Counts all names beyond [`MAX_NAMES`]. No comm equals it, because the kernel truncates comms to 15 bytes.
const OTHERS: &str = "(all other commands)";

/// A token bucket for OOM reports.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Credit in nanoseconds. A report costs [`COST_NS`].
    credit_ns: u64,
    filled_at_ns: u64,
    suppressed: BTreeMap<String, u64>,
    since_ns: u64,
}

/// OOM kills that were counted instead of reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suppressed {
    /// Number of kills by comm.
    pub by_name: BTreeMap<String, u64>,
}

const COST_NS: u64 = SECOND_NS / PER_SECOND;

impl RateLimiter {
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { credit_ns: BURST * COST_NS, filled_at_ns: 0, suppressed: BTreeMap::new(), since_ns: 0 }
    }

    /// Whether to emit a report in full. Counts it otherwise.
    pub(crate) fn admit(&mut self, now_ns: u64, name: &str) -> bool {
        let earned_ns = now_ns.saturating_sub(self.filled_at_ns);
        self.credit_ns = self.credit_ns.saturating_add(earned_ns).min(BURST * COST_NS);
        self.filled_at_ns = now_ns;
        if let Some(left) = self.credit_ns.checked_sub(COST_NS) {
            self.credit_ns = left;
            return true;
        }
        if self.suppressed.is_empty() {
            self.since_ns = now_ns;
        }
        let known = self.suppressed.contains_key(name) || self.suppressed.len() < MAX_NAMES - 1;
        *self.suppressed.entry(if known { name } else { OTHERS }.to_owned()).or_default() += 1;
        false
    }

    /// The counts, one second after the first suppressed report.
    pub(crate) fn summary(&mut self, now_ns: u64) -> Option<Suppressed> {
        let due = self.is_busy() && now_ns.saturating_sub(self.since_ns) >= SECOND_NS;
        due.then(|| Suppressed { by_name: std::mem::take(&mut self.suppressed) })
    }

    /// Whether a summary is pending.
    #[must_use]
    pub(crate) fn is_busy(&self) -> bool {
        !self.suppressed.is_empty()
    }
}

impl Suppressed {
    /// The total number of suppressed kills.
    #[must_use]
    pub(crate) fn count(&self) -> u64 {
        self.by_name.values().sum()
    }
}

/// The JSON form of [`Suppressed`].
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Suppressed")]
struct SuppressedObject<'a> {
    event: &'static str,
    /// Total number of kills.
    count: u64,
    /// Number of kills by comm.
    by_name: &'a BTreeMap<String, u64>,
}

impl Serialize for Suppressed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        SuppressedObject { event: "oom_kills_suppressed", count: self.count(), by_name: &self.by_name }
            .serialize(serializer)
    }
}

impl JsonSchema for Suppressed {
    fn schema_name() -> Cow<'static, str> {
        SuppressedObject::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        SuppressedObject::json_schema(generator)
    }
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} more oom-killed processes:", self.count())?;
        for (index, (name, count)) in self.by_name.iter().enumerate() {
            let gap = if index == 0 { " " } else { ", " };
            write!(f, "{gap}{count} x {}", name.escape_debug())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn burst_of_kills_is_summed_up() {
        let mut limiter = RateLimiter::new();
        let start = 5 * SECOND_NS;
        let told = (0..1000).filter(|_| limiter.admit(start, "hog")).count();
        assert_eq!(told as u64, BURST);
        assert_eq!(limiter.summary(start), None, "more may come");
        let summary = limiter.summary(start + SECOND_NS).unwrap();
        assert_eq!(summary.to_string(), "872 more oom-killed processes: 872 x hog");
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json, json!({"event": "oom_kills_suppressed", "count": 872, "by_name": {"hog": 872}}));
        assert!(!limiter.is_busy() && limiter.admit(start + SECOND_NS, "hog"));
    }

    proptest! {
        #[test]
        fn every_kill_is_reported_or_counted(kills in prop::collection::vec((0..2 * SECOND_NS, 0..40_u32), 0..400)) {
            let mut limiter = RateLimiter::new();
            let (mut now, mut told, mut counted) = (0, 0, 0);
            for (gap, name) in &kills {
                now += gap / 50;
                told += u64::from(limiter.admit(now, &format!("p{name}")));
                counted += limiter.summary(now).map_or(0, |summary| summary.count());
                prop_assert!(limiter.suppressed.len() <= MAX_NAMES);
            }
            counted += limiter.summary(now + SECOND_NS).map_or(0, |summary| summary.count());
            prop_assert_eq!(told + counted, kills.len() as u64);
            prop_assert!(told <= BURST + now * PER_SECOND / SECOND_NS);
        }
    }
}
