//! What is known of the memory of victims whose reports are not made yet. It is read at the kill, since the cgroup may be removed
//! before the report.

use std::collections::VecDeque;

use crate::monitor::explain::MemoryFacts;
use crate::monitor::model::process::ProcessKey;

/// Victims whose facts are kept.
pub(super) const MAX_FACTS: usize = 256;

/// Whether the facts of a process may still be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FactsNeed {
    /// It is reported or was not an OOM kill.
    Gone,
    /// The kernel killed it, but has not marked it as a victim so far.
    Possible,
    /// It will be reported.
    Certain,
}

/// The facts of the last [`MAX_FACTS`] victims, oldest first.
#[derive(Debug, Default)]
pub(super) struct KeptFacts(VecDeque<(ProcessKey, MemoryFacts)>);

impl KeptFacts {
    /// Removes and returns the facts of a process.
    pub(super) fn take(&mut self, victim: ProcessKey) -> Option<MemoryFacts> {
        let at = self.0.iter().position(|(process, _)| *process == victim)?;
        self.0.remove(at).map(|(_, facts)| facts)
    }

    /// Keeps the facts of a process. Without space, those that nobody needs go first, then the oldest of a process that may be no
    /// victim: the kernel kills all processes of a PID namespace whose init process ends. The first victim of a large group
    /// keeps its facts, which are those of the whole group.
    pub(super) fn keep(&mut self, victim: ProcessKey, facts: MemoryFacts, need: impl Fn(ProcessKey) -> FactsNeed) {
        self.take(victim);
        if self.0.len() >= MAX_FACTS {
            self.0.retain(|(process, _)| need(*process) > FactsNeed::Gone);
        }
        if self.0.len() >= MAX_FACTS {
            let Some(at) = self.0.iter().position(|(process, _)| need(*process) < FactsNeed::Certain) else { return };
            self.0.remove(at);
        }
        self.0.push_back((victim, facts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::model::cgroup::CgroupFacts;

    fn process(pid: usize) -> ProcessKey {
        ProcessKey { pid: u32::try_from(pid).unwrap(), start_ticks: 1 }
    }

    fn facts(number: usize) -> MemoryFacts {
        let path = format!("/{number}");
        let cgroup = CgroupFacts { path, version: 2, limit_bytes: None, usage_bytes: None, oom_kill_count: None };
        MemoryFacts { cgroup: Some(cgroup), ..MemoryFacts::default() }
    }

    fn full() -> KeptFacts {
        let mut kept = KeptFacts::default();
        (0..MAX_FACTS).for_each(|pid| kept.keep(process(pid), facts(pid), |_| FactsNeed::Certain));
        kept
    }

    #[test]
    fn facts_that_nobody_needs_make_space() {
        let mut kept = full();
        let need = |other: ProcessKey| if other.pid == 9 { FactsNeed::Gone } else { FactsNeed::Certain };
        kept.keep(process(900), facts(900), need);
        assert_eq!((kept.take(process(9)), kept.take(process(900))), (None, Some(facts(900))));
        assert_eq!(kept.take(process(0)), Some(facts(0)));
    }

    #[test]
    fn certain_victims_outlast_processes_that_end_with_their_namespace() {
        let mut kept = full();
        let need = |other: ProcessKey| if other.pid < 3 { FactsNeed::Certain } else { FactsNeed::Possible };
        (1000..1000 + MAX_FACTS).for_each(|pid| kept.keep(process(pid), facts(pid), need));
        assert_eq!([0, 1, 2].map(|pid| kept.take(process(pid))), [0, 1, 2].map(|pid| Some(facts(pid))));
        assert_eq!(kept.take(process(3)), None);
    }

    #[test]
    fn first_victims_of_a_large_group_keep_their_facts() {
        let mut kept = full();
        kept.keep(process(900), facts(900), |_| FactsNeed::Certain);
        assert_eq!((kept.take(process(900)), kept.take(process(0))), (None, Some(facts(0))));
    }
}
