//! Checks the limit in a BPF report: its scope, its value, and the memory usage at the kill. Pure.

use serde_json::Value;

use crate::proc;

/// Usage at a kill may differ from the limit by 1 / this: an allocation fails when less than the requested size is left.
const TOLERANCE: u64 = 50;

/// And by as many pages for each processor, which caches charges (`MEMCG_CHARGE_BATCH`, include/linux/memcontrol.h).
const CACHED_PAGES: u64 = 64;

/// The limit as the report states it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReportedLimit {
    scope: String,
    limit_bytes: Option<u64>,
    usage_bytes: Option<u64>,
    is_exact: bool,
}

/// The limit that the scenario hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExpectedLimit {
    /// Spelled as in reports.
    pub(super) scope: &'static str,
    /// `None` when no cgroup limit was hit, or when the limit changed during the scenario.
    pub(super) limit_bytes: Option<u64>,
}

impl ReportedLimit {
    /// Parses the JSON of a report.
    pub(super) fn read(report: &Value) -> Self {
        let limit = &report["explanation"]["limit"];
        Self {
            scope: limit["scope"].as_str().unwrap_or_default().to_owned(),
            limit_bytes: limit["limit_bytes"].as_u64(),
            usage_bytes: limit["usage_bytes"].as_u64(),
            is_exact: limit["is_exact"] == true,
        }
    }

    /// Whether the usage is known and shows that the limit was reached.
    pub(super) fn is_usage_near(&self) -> bool {
        let Some((limit, usage)) = self.limit_bytes.zip(self.usage_bytes) else { return false };
        self.is_exact && limit.abs_diff(usage) <= (limit / TOLERANCE).max(cached_bytes())
    }

    /// Describes how the reported limit differs from the expected one; `None` if it does not.
    pub(super) fn problem(&self, expected: &ExpectedLimit) -> Option<String> {
        let is_machine = expected.scope == "machine";
        if self.scope.is_empty() && expected.limit_bytes.is_none() && !is_machine {
            // A group whose memory was released before its last SIGKILL: the report says that the limit is unknown.
            return None;
        }
        let is_right = self.scope == expected.scope
            && self.is_exact
            && (is_machine || self.is_usage_near())
            && expected.limit_bytes.is_none_or(|bytes| self.limit_bytes == Some(bytes));
        (!is_right).then(|| format!("expected limit {expected:?}, reported {self:?}"))
    }
}

/// What all processors may have charged in advance.
fn cached_bytes() -> u64 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    processors * CACHED_PAGES * proc::page_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Limit and usage in GiB: more than the caches of a machine with many processors.
    fn reported(scope: &str, limit: u64, usage: u64) -> ReportedLimit {
        let limit = json!({ "scope": scope, "limit_bytes": limit << 30, "usage_bytes": usage << 30, "is_exact": true });
        ReportedLimit::read(&json!({ "explanation": { "limit": limit } }))
    }

    #[test]
    fn scope_limit_and_usage_match_the_scenario() {
        let expected = ExpectedLimit { scope: "inner", limit_bytes: Some(1000 << 30) };
        assert_eq!(reported("inner", 1000, 980).problem(&expected), None);
        assert_eq!(reported("inner", 1000, 1020).problem(&expected), None);
        let wrong = [
            reported("inner", 1000, 979),
            reported("inner", 900, 900),
            reported("machine", 1000, 1000),
            ReportedLimit { is_exact: false, ..reported("inner", 1000, 1000) },
            ReportedLimit::read(&json!({})),
        ];
        for wrong in wrong {
            assert!(wrong.problem(&expected).is_some(), "{wrong:?}");
        }
        let varied = ExpectedLimit { limit_bytes: None, ..expected };
        assert_eq!(reported("inner", 900, 900).problem(&varied), None);
    }

    #[test]
    fn machine_has_no_limit_to_be_near() {
        let expected = ExpectedLimit { scope: "machine", limit_bytes: None };
        assert_eq!(reported("machine", 1000, 500).problem(&expected), None);
        assert!(reported("inner", 1000, 1000).problem(&expected).is_some());
    }
}
