//! The node's own log: a JSON line for each kill, with its owner. Each container has its own budget, whatever cgroups it makes, so
//! that one in a kill loop silences no other.
//!
//! Command lines may contain secrets, so they are left out unless the operator wants them.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::names::{Owner, accountable};
use crate::monitor::{DaemonKill, Journal, OomReport, RateLimiter};
use crate::writer::Writer;

/// Containers with a budget of their own. Beyond that, the one whose last kill is the oldest starts anew.
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
    /// For the kills of user-space OOM killers.
    daemon_limiter: RateLimiter,
    owner: Owner,
    last_kill_ns: u64,
}

impl NodeLog {
    pub(super) fn new(stdout: Writer, journal: Option<Journal>, shows_command_lines: bool) -> Self {
        Self { stdout, journal, shows_command_lines, budgets: BTreeMap::new() }
    }

    /// Logs a kill, or counts it if its container has used up its budget. Returns whether it was logged.
    pub(super) fn kill(&mut self, report: &OomReport, owner: &Owner, now_ns: u64) -> bool {
        let is_admitted = self.budget(report, owner, now_ns).limiter.admit(now_ns, &report.victim.process.name);
        if is_admitted && let Ok(line) = serde_json::to_value(report) {
            self.write_kill(line, owner);
        }
        is_admitted
    }

    /// Logs a kill by a user-space OOM killer. The budget is another one: such a killer may end all processes of a container.
    pub(super) fn daemon_kill(&mut self, kill: &DaemonKill, owner: &Owner, now_ns: u64) {
        let report = &kill.report;
        let budget = self.budget(report, owner, now_ns);
        if budget.daemon_limiter.admit(now_ns, &report.victim.process.name)
            && let Ok(all) = serde_json::to_value(report)
        {
            let mut line = json!({ "event": "user_space_oom_kill", "daemon": kill.daemon });
            for field in ["time", "victim", "ancestors", "cgroup"] {
                line[field] = all[field].clone();
            }
            self.write_kill(line, owner);
        }
    }

    fn write_kill(&self, mut line: Value, owner: &Owner) {
        if !self.shows_command_lines {
            without_command_lines(&mut line);
        }
        line["owner"] = json!(owner);
        self.write(&line);
    }

    fn budget(&mut self, report: &OomReport, owner: &Owner, now_ns: u64) -> &mut Budget {
        let path = report.cgroup.as_ref().map_or("", |cgroup| cgroup.path.as_str());
        let container = accountable(path);
        if self.budgets.len() >= MAX_BUDGETS && !self.budgets.contains_key(container) {
            self.remove_oldest();
        }
        let budget = self.budgets.entry(container.to_owned());
        let budget = budget.or_insert_with(|| Budget::of(owner.clone()));
        budget.last_kill_ns = now_ns;
        budget
    }

    /// Logs the kills that were only counted, if that is due.
    pub(super) fn summaries(&mut self, now_ns: u64) {
        let due: Vec<Value> =
            self.budgets.iter_mut().flat_map(|(container, budget)| budget.summaries(container, now_ns)).collect();
        for line in &due {
            self.write(line);
        }
    }

    fn remove_oldest(&mut self) {
        let oldest = self.budgets.iter().min_by_key(|(_, budget)| budget.last_kill_ns);
        let Some((container, mut budget)) =
            oldest.map(|(container, _)| container.clone()).and_then(|oldest| self.budgets.remove_entry(&oldest))
        else {
            return;
        };
        for line in budget.summaries(&container, u64::MAX) {
            self.write(&line);
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

impl Budget {
    fn of(owner: Owner) -> Self {
        Self { limiter: RateLimiter::new(), daemon_limiter: RateLimiter::new(), owner, last_kill_ns: 0 }
    }

    /// The lines about the kills that were only counted, as far as they are due.
    fn summaries(&mut self, container: &str, now_ns: u64) -> Vec<Value> {
        let of_kernel = self.limiter.summary(now_ns).and_then(|suppressed| serde_json::to_value(suppressed).ok());
        let of_daemons = self.daemon_limiter.summary(now_ns).and_then(|suppressed| {
            let mut line = serde_json::to_value(suppressed).ok()?;
            line["event"] = json!("user_space_oom_kills_suppressed");
            Some(line)
        });
        let lines = of_kernel.into_iter().chain(of_daemons);
        lines
            .map(|mut line| {
                line["cgroup"] = json!(container);
                line["owner"] = json!(self.owner);
                line
            })
            .collect()
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
    use crate::node::scope::tests::report;

    fn log() -> NodeLog {
        NodeLog::new(Writer::discard(), None, false)
    }

    fn path_of(number: usize) -> String {
        format!("/system.slice/docker-{number:064x}.scope")
    }

    fn kill(log: &mut NodeLog, path: &str, now_ns: u64) -> bool {
        let mut report = report();
        report.cgroup.as_mut().unwrap().path = path.to_owned();
        log.kill(&report, &Owner::of_path(path), now_ns)
    }

    /// It makes a cgroup for each of its processes, and names them like another container's.
    #[test]
    fn container_in_a_kill_loop_has_one_budget_and_uses_up_no_other() {
        let mut log = log();
        let loops = |log: &mut NodeLog| {
            let below = (0..3 * MAX_BUDGETS).map(|number| format!("{}{}", path_of(1), path_of(number)));
            below.filter(|path| kill(log, path, 1)).count()
        };
        let logged = loops(&mut log);
        assert!((1..MAX_BUDGETS).contains(&logged), "{logged}");
        assert_eq!((loops(&mut log), log.budgets.len()), (0, 1));
        assert!(kill(&mut log, &path_of(2), 1));
    }

    #[test]
    fn kills_of_a_user_space_oom_killer_have_a_budget_of_their_own() {
        let mut log = log();
        let owner = Owner::of_path(&path_of(1));
        let mut report = report();
        report.cgroup.as_mut().unwrap().path = path_of(1);
        let daemon_kill = DaemonKill { daemon: "systemd-oomd", report };
        (0..1000).for_each(|_| log.daemon_kill(&daemon_kill, &owner, 1));
        assert!(kill(&mut log, &path_of(1), 1));
        let budget = log.budgets.values_mut().next().unwrap();
        let lines = budget.summaries("", u64::MAX);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["event"], "user_space_oom_kills_suppressed");
        assert!(lines[0]["count"].as_u64() > Some(500) && budget.summaries("", u64::MAX).is_empty(), "{lines:?}");
    }

    #[test]
    fn budgets_are_bounded_and_a_used_up_one_stays_used_up() {
        let mut log = log();
        while kill(&mut log, &path_of(0), 1) {}
        for number in 1..3 * MAX_BUDGETS {
            assert!(kill(&mut log, &path_of(number), 1 + number as u64));
            assert!(!kill(&mut log, &path_of(0), 1 + number as u64));
        }
        assert_eq!(log.budgets.len(), MAX_BUDGETS);
    }

    #[test]
    fn command_lines_go_wherever_they_are() {
        let mut value = json!({"victim": {"pid": 1, "cmdline": "a secret"}, "ancestors": [{"first_cmdline": "b", "cmdline_is_cut": false}]});
        without_command_lines(&mut value);
        assert_eq!(value, json!({"victim": {"pid": 1}, "ancestors": [{}]}));
    }
}
