//! The rules for what a report says beside the name, with BPF: the victim's memory as the kernel's own log has it, and the
//! cgroup where the scene put it. Pure.

use super::judge::Told;
use super::kernel_log::Logged;

/// What is known of a scene beside its victims.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// What the kernel's log says; `None` where it cannot be read, or numbers processes otherwise than the monitor.
    pub(super) logged: Option<Vec<Logged>>,
    /// The path of the cgroup that all of it happened in, as `/proc/PID/cgroup` has it, and of the one that is charged.
    pub(super) cgroups: [String; 2],
}

/// What is not as it should be.
pub(super) fn problems(told: &[Told], facts: &Facts) -> Vec<String> {
    let cgroups = told.iter().filter(|told| !told.cgroup.as_ref().is_some_and(|path| facts.cgroups.contains(path)));
    let mut problems: Vec<String> = cgroups
        .map(|told| format!("{} was killed in {:?}: {:?} was told", told.pid, facts.cgroups, told.cgroup))
        .collect();
    let Some(logged) = &facts.logged else { return problems };
    let mut logged = logged.clone();
    // All members have a line, the chosen one of a single group the first one.
    let is_one_group = told.iter().filter(|told| told.confidence == "confirmed").count() == 1 && told.len() > 1;
    let everybody: Vec<u32> = told.iter().map(|told| told.pid).collect();
    let chosen = logged.iter().map(|logged| logged.pid).find(|pid| everybody.contains(pid));
    if let Some(chosen) = chosen.filter(|chosen| is_one_group && told[0].pid != *chosen) {
        problems.push(format!("the kernel chose {chosen}: {} was told", told[0].pid));
    }
    for told in told.iter().filter(|told| told.confidence == "confirmed") {
        // One pid may be there twice. Where the first thread has ended the log has the number of another one
        // (`find_lock_task_mm`, mm/oom_kill.c), which nobody else has.
        let is_it = |logged: &Logged| logged.pid == told.pid;
        let is_thread = |logged: &Logged| {
            !everybody.contains(&logged.pid) && told.memory.is_some_and(|memory| memory.agrees_with(logged.memory))
        };
        let Some(index) = logged.iter().position(is_it).or_else(|| logged.iter().position(is_thread)) else {
            problems.push(format!("the kernel's log has no kill of {}", told.pid));
            continue;
        };
        let logged = logged.remove(index);
        if !told.memory.is_some_and(|memory| memory.agrees_with(logged.memory)) {
            problems.push(format!("{}: {:?} was told, {:?} logged", told.pid, told.memory, logged.memory));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::kernel_log::Memory;
    use super::*;

    fn told(pid: u32, anon_kib: Option<u64>, cgroup: Option<&str>) -> Told {
        let memory = anon_kib.map(|anon_kib| Memory { anon_kib, file_kib: 0, shmem_kib: 0 });
        let text = String::new();
        Told {
            pid,
            text,
            confidence: "confirmed".into(),
            heard: Instant::now(),
            memory,
            cgroup: cgroup.map(Into::into),
        }
    }

    fn logged(pid: u32, anon_kib: u64) -> Logged {
        Logged { pid, memory: Memory { anon_kib, file_kib: 0, shmem_kib: 0 } }
    }

    #[test]
    fn memory_and_cgroup_are_as_the_kernel_and_the_scene_have_them() {
        let facts = Facts {
            logged: Some(vec![logged(7, 5000), logged(7, 9000)]),
            cgroups: ["/test/limited", "/test/limited"].map(ToOwned::to_owned),
        };
        let right = told(7, Some(5000), Some("/test/limited"));
        let again = told(7, Some(9100), Some("/test/limited"));
        assert_eq!(problems(&[right.clone(), again], &facts), [""; 0]);
        let by_a_thread = told(6, Some(5000), Some("/test/limited"));
        assert_eq!(problems(&[by_a_thread], &facts), [""; 0]);
        for wrong in [
            told(7, Some(0), Some("/test/limited")),
            told(7, None, Some("/test/limited")),
            told(8, Some(1), Some("/test/limited")),
            told(7, Some(5000), Some("/test")),
            told(7, Some(5000), None),
        ] {
            assert_eq!(problems(std::slice::from_ref(&wrong), &facts).len(), 1, "{wrong:?}");
        }
        let without_log = Facts { logged: None, ..facts };
        assert_eq!(problems(&[told(8, None, Some("/test/limited"))], &without_log), [""; 0]);
        assert_eq!(problems(&[right], &without_log), [""; 0]);
    }
}
