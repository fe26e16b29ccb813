//! The node's own log: a JSON line for each kill, with its owner. A container in a kill loop has its own budget.
//!
//! Command lines may contain secrets, so they are left out unless the operator wants them.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::names::Owner;
use crate::monitor::{Journal, OomReport, RateLimiter};
use crate::writer::Writer;

/// Containers with a budget of their own. Beyond that, all budgets start anew.
const MAX_BUDGETS: usize = 512;

/// The log with the budgets of containers.
pub(super) struct NodeLog {
    pub(super) stdout: Writer,
    pub(super) journal: Option<Journal>,
    pub(super) shows_command_lines: bool,
    budgets: BTreeMap<String, Budget>,
}

struct Budget {
    limiter: RateLimiter,
    owner: Owner,
}

impl NodeLog {
    pub(super) fn new(stdout: Writer, journal: Option<Journal>, shows_command_lines: bool) -> Self {
        Self { stdout, journal, shows_command_lines, budgets: BTreeMap::new() }
    }

    /// Logs a kill, or counts it if its cgroup has used up its budget. Returns whether it was logged.
    pub(super) fn kill(&mut self, report: &OomReport, owner: &Owner, now_ns: u64) -> bool {
        let path = report.cgroup.as_ref().map_or("", |cgroup| cgroup.path.as_str());
        if self.budgets.len() >= MAX_BUDGETS && !self.budgets.contains_key(path) {
            self.summaries(u64::MAX);
            self.budgets.clear();
        }
        let budget = self.budgets.entry(path.to_owned());
        let budget = budget.or_insert_with(|| Budget { limiter: RateLimiter::new(), owner: owner.clone() });
        let is_admitted = budget.limiter.admit(now_ns, &report.victim.process.name);
        if is_admitted && let Ok(mut line) = serde_json::to_value(report) {
            if !self.shows_command_lines {
                without_command_lines(&mut line);
            }
            line["owner"] = json!(owner);
            self.write(&line);
        }
        is_admitted
    }

    /// Logs the kills that were only counted, if that is due.
    pub(super) fn summaries(&mut self, now_ns: u64) {
        let due: Vec<Value> = self
            .budgets
            .iter_mut()
            .filter_map(|(path, budget)| {
                let suppressed = budget.limiter.summary(now_ns)?;
                let mut line = serde_json::to_value(suppressed).ok()?;
                line["cgroup"] = json!(path);
                line["owner"] = json!(budget.owner);
                Some(line)
            })
            .collect();
        for line in &due {
            self.write(line);
        }
    }

    /// Logs another event.
    pub(super) fn write(&self, line: &Value) {
        let line = line.to_string();
        if let Some(journal) = &self.journal {
            journal.add(line.clone());
        }
        if !self.stdout.try_write(Bytes::from(line + "\n")) {
            tracing::warn!("a line of the log was dropped: stdout is blocked");
        }
    }
}

/// Removes the command lines of all processes in a report.
fn without_command_lines(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !matches!(name.as_str(), "cmdline" | "first_cmdline" | "cmdline_is_cut"));
            fields.values_mut().for_each(without_command_lines);
        }
        Value::Array(values) => values.iter_mut().for_each(without_command_lines),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_go_wherever_they_are() {
        let mut value = json!({"victim": {"pid": 1, "cmdline": "a secret"}, "ancestors": [{"first_cmdline": "b", "cmdline_is_cut": false}]});
        without_command_lines(&mut value);
        assert_eq!(value, json!({"victim": {"pid": 1}, "ancestors": [{}]}));
    }
}
