//! Kill storms: the first reports in full, the rest as counts by name. Pure.
//!
//! A bucket of [`BURST`] reports that fills up again with [`PER_SECOND`]: a thousand kills in a second
//! come to some hundred reports and a line a second, whoever reads them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::json;

const SECOND_NS: u64 = 1_000_000_000;

/// Reports told in full, one right after the other. At some 2 KiB each, a quarter of what log lines may have
/// waiting for the agent.
const BURST: u64 = 128;

/// And after that.
const PER_SECOND: u64 = 10;

/// Names that are told apart in a count.
const MAX_NAMES: usize = 16;

/// What the others are called. No command has this name: it would be cut at 15 bytes.
const OTHERS: &str = "(all other commands)";

/// Decides which reports are told in full.
#[derive(Debug)]
pub(super) struct Storm {
    /// Time that is worth a report each [`SECOND_NS`] / [`PER_SECOND`].
    credit_ns: u64,
    filled_at_ns: u64,
    suppressed: BTreeMap<String, u64>,
    since_ns: u64,
}

/// Kills that were not told one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppressed {
    /// How many, by command name.
    pub by_name: BTreeMap<String, u64>,
}

const COST_NS: u64 = SECOND_NS / PER_SECOND;

impl Storm {
    /// All is quiet.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { credit_ns: BURST * COST_NS, filled_at_ns: 0, suppressed: BTreeMap::new(), since_ns: 0 }
    }

    /// Whether a report is told in full; otherwise it is counted.
    pub(super) fn admit(&mut self, now_ns: u64, name: &str) -> bool {
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

    /// What was counted, a second after the first that was.
    pub(super) fn summary(&mut self, now_ns: u64) -> Option<Suppressed> {
        let due = self.is_busy() && now_ns.saturating_sub(self.since_ns) >= SECOND_NS;
        due.then(|| Suppressed { by_name: std::mem::take(&mut self.suppressed) })
    }

    /// Whether there is something to sum up.
    #[must_use]
    pub(super) fn is_busy(&self) -> bool {
        !self.suppressed.is_empty()
    }
}

impl Suppressed {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.by_name.values().sum()
    }
}

impl Serialize for Suppressed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({ "event": "oom_kills_suppressed", "count": self.count(), "by_name": self.by_name }).serialize(serializer)
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

    use super::*;

    #[test]
    fn a_storm_is_summed_up() {
        let mut storm = Storm::new();
        let start = 5 * SECOND_NS;
        let told = (0..1000).filter(|_| storm.admit(start, "hog")).count();
        assert_eq!(told as u64, BURST);
        assert_eq!(storm.summary(start), None, "more may come");
        let summary = storm.summary(start + SECOND_NS).unwrap();
        assert_eq!(summary.to_string(), "872 more oom-killed processes: 872 x hog");
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json, json!({"event": "oom_kills_suppressed", "count": 872, "by_name": {"hog": 872}}));
        assert!(!storm.is_busy() && storm.admit(start + SECOND_NS, "hog"));
    }

    proptest! {
        #[test]
        fn every_kill_is_told_or_counted(kills in prop::collection::vec((0..2 * SECOND_NS, 0..40_u32), 0..400)) {
            let mut storm = Storm::new();
            let (mut now, mut told, mut counted) = (0, 0, 0);
            for (gap, name) in &kills {
                now += gap / 50;
                told += u64::from(storm.admit(now, &format!("p{name}")));
                counted += storm.summary(now).map_or(0, |summary| summary.count());
                prop_assert!(storm.suppressed.len() <= MAX_NAMES);
            }
            counted += storm.summary(now + SECOND_NS).map_or(0, |summary| summary.count());
            prop_assert_eq!(told + counted, kills.len() as u64);
            prop_assert!(told <= BURST + now * PER_SECOND / SECOND_NS);
        }
    }
}
