//! Checks what a BPF report says besides the victim's name: its memory against the kernel log, its cgroup against where the
//! scenario put it, and the limit that was hit. Pure.

use super::kernel_log::Logged;
use super::limit::ExpectedLimit;
use super::scoring::ReportedVictim;

/// The ground truth of a scenario besides its victims.
#[derive(Clone, Debug, Default)]
pub(super) struct ExpectedDetails {
    /// Kills in the kernel log; `None` where it is unreadable or its PIDs are of another namespace than the monitor's.
    pub(super) logged: Option<Vec<Logged>>,
    /// The paths, as in `/proc/PID/cgroup`, of the scenario's cgroup and of the one that is charged.
    pub(super) cgroups: [String; 2],
    /// The limit that was hit.
    pub(super) limit: ExpectedLimit,
}

/// Describes each mismatch between the reports and the ground truth.
pub(super) fn problems(reported: &[ReportedVictim], expected: &ExpectedDetails) -> Vec<String> {
    let cgroups = reported
        .iter()
        .filter(|reported| !reported.cgroup.as_ref().is_some_and(|path| expected.cgroups.contains(path)));
    let mut problems: Vec<String> = cgroups
        .map(|reported| {
            format!("{} was killed in {:?}, reported in {:?}", reported.pid, expected.cgroups, reported.cgroup)
        })
        .collect();
    problems.extend(reported.iter().filter_map(|reported| reported.limit.problem(&expected.limit)));
    let Some(logged) = &expected.logged else { return problems };
    let mut logged = logged.clone();
    // Every member of a group kill is logged. With a single group, the chosen process comes first.
    let is_one_group =
        reported.iter().filter(|reported| reported.confidence == "confirmed").count() == 1 && reported.len() > 1;
    let reported_pids: Vec<u32> = reported.iter().map(|reported| reported.pid).collect();
    let chosen = logged.iter().map(|logged| logged.pid).find(|pid| reported_pids.contains(pid));
    if let Some(chosen) = chosen.filter(|chosen| is_one_group && reported[0].pid != *chosen) {
        problems.push(format!("the kernel chose {chosen}, but {} was reported", reported[0].pid));
    }
    for reported in reported.iter().filter(|reported| reported.confidence == "confirmed") {
        // A PID may be logged twice. After the thread group leader has exited, the kernel logs the TID of another thread
        // (`find_lock_task_mm`, mm/oom_kill.c), which is not the PID of any other victim.
        let is_it = |logged: &Logged| logged.pid == reported.pid;
        let is_thread = |logged: &Logged| {
            !reported_pids.contains(&logged.pid)
                && reported.memory.is_some_and(|memory| memory.agrees_with(logged.memory))
        };
        let Some(index) = logged.iter().position(is_it).or_else(|| logged.iter().position(is_thread)) else {
            problems.push(format!("the kernel log has no kill of {}", reported.pid));
            continue;
        };
        let logged = logged.remove(index);
        if !reported.memory.is_some_and(|memory| memory.agrees_with(logged.memory)) {
            problems.push(format!(
                "{}: reported {:?}, but the kernel logged {:?}",
                reported.pid, reported.memory, logged.memory
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::super::kernel_log::Memory;
    use super::super::limit::ReportedLimit;
    use super::*;

    fn reported(pid: u32, anon_kib: Option<u64>, cgroup: Option<&str>) -> ReportedVictim {
        let memory = anon_kib.map(|anon_kib| Memory { anon_kib, file_kib: 0, shmem_kib: 0 });
        let text = String::new();
        let limit = json!({ "scope": "inner", "limit_bytes": 9, "usage_bytes": 9, "is_exact": true });
        ReportedVictim {
            pid,
            text,
            confidence: "confirmed".into(),
            received_at: Instant::now(),
            memory,
            cgroup: cgroup.map(Into::into),
            limit: ReportedLimit::read(&json!({ "explanation": { "limit": limit } })),
        }
    }

    fn logged(pid: u32, anon_kib: u64) -> Logged {
        Logged { pid, name: "victim".to_owned(), memory: Memory { anon_kib, file_kib: 0, shmem_kib: 0 } }
    }

    #[test]
    fn memory_and_cgroup_must_match_the_kernel_log_and_the_scenario() {
        let expected = ExpectedDetails {
            logged: Some(vec![logged(7, 5000), logged(7, 9000)]),
            cgroups: ["/test/limited", "/test/limited"].map(ToOwned::to_owned),
            limit: ExpectedLimit { scope: "inner", limit_bytes: None },
        };
        let correct = reported(7, Some(5000), Some("/test/limited"));
        let again = reported(7, Some(9100), Some("/test/limited"));
        assert_eq!(problems(&[correct.clone(), again], &expected), [""; 0]);
        let logged_as_thread = reported(6, Some(5000), Some("/test/limited"));
        assert_eq!(problems(&[logged_as_thread], &expected), [""; 0]);
        for wrong in [
            reported(7, Some(0), Some("/test/limited")),
            reported(7, None, Some("/test/limited")),
            reported(8, Some(1), Some("/test/limited")),
            reported(7, Some(5000), Some("/test")),
            reported(7, Some(5000), None),
        ] {
            assert_eq!(problems(std::slice::from_ref(&wrong), &expected).len(), 1, "{wrong:?}");
        }
        let machine_limit =
            ExpectedDetails { limit: ExpectedLimit { scope: "machine", limit_bytes: None }, ..expected.clone() };
        assert_eq!(problems(std::slice::from_ref(&correct), &machine_limit).len(), 1);
        let without_log = ExpectedDetails { logged: None, ..expected };
        assert_eq!(problems(&[reported(8, None, Some("/test/limited"))], &without_log), [""; 0]);
        assert_eq!(problems(&[correct], &without_log), [""; 0]);
    }
}
