//! Kills that the tracer saw, for comparison with the cgroup's counter when records of kills were lost.
//!
//! The kernel counts a kill, sends SIGKILL and marks, in this order (`__oom_kill_process`, `mm/oom_kill.c`); it marks
//! without a kill what is exiting anyway, and that is not counted. So a kill was seen as a whole when a mark follows the
//! kernel's SIGKILL of the same process. What the counter has beyond that is missing.
//!
//! Pure: times are parameters, in nanoseconds since boot.

use std::collections::VecDeque;

use crate::monitor::event::{KillSource, ProcessKey, Trace, TraceEvent};

/// Kills whose mark may still come: it follows within microseconds.
const MAX_KILLED: usize = 64;

/// A comparison waits until no kill came for so long: what is counted by then has been recorded, too.
const QUIET_NS: u64 = 20_000_000;

/// A storm does not put a comparison off for longer.
const PATIENCE_NS: u64 = 1_000_000_000;

/// What the tracer saw since the last comparison, and whether the next one is due.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Accounted {
    /// Got SIGKILL from the kernel, and no mark yet.
    killed: VecDeque<ProcessKey>,
    /// Kills that were seen as a whole.
    seen: u64,
    last_kill_ns: u64,
    /// Since when a comparison is to be made.
    asked_ns: Option<u64>,
}

impl Accounted {
    /// Takes an event in. `is_counted`: the cgroup's counter counts a kill there.
    pub(in crate::monitor) fn saw(&mut self, event: &TraceEvent, is_counted: bool, now_ns: u64) {
        match &event.what {
            Trace::Kill(kill) if kill.source == KillSource::Kernel && !kill.already_pending => {
                self.last_kill_ns = self.last_kill_ns.max(event.at_boot_ns);
                if is_counted {
                    if self.killed.len() == MAX_KILLED {
                        self.killed.pop_front();
                    }
                    self.killed.push_back(kill.victim);
                }
            }
            Trace::Mark(mark) => {
                if let Some(index) = self.killed.iter().position(|victim| *victim == mark.victim) {
                    self.killed.remove(index);
                    self.seen += 1;
                }
            }
            Trace::Lost { of_kills, .. } if *of_kills > 0 => {
                self.asked_ns.get_or_insert(now_ns);
            }
            _ => {}
        }
    }

    /// Whether the counter is to be compared at some time soon.
    #[must_use]
    pub(in crate::monitor) fn is_waiting(&self) -> bool {
        self.asked_ns.is_some()
    }

    /// Whether it is to be compared now.
    #[must_use]
    pub(in crate::monitor) fn is_due(&self, now_ns: u64) -> bool {
        self.asked_ns.is_some_and(|asked_ns| {
            now_ns.saturating_sub(self.last_kill_ns.max(asked_ns)) >= QUIET_NS
                || now_ns.saturating_sub(asked_ns) >= PATIENCE_NS
        })
    }

    /// Ends the comparison with what was counted since the last one: how many kills are missing.
    pub(in crate::monitor) fn missing(&mut self, counted: u64) -> u64 {
        self.asked_ns = None;
        counted.saturating_sub(std::mem::take(&mut self.seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::event::{Kill, Mark, MemoryAtKill};

    const MS: u64 = 1_000_000;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_ticks: 1 }
    }

    fn kill(at_boot_ns: u64, pid: u32) -> TraceEvent {
        let memory = MemoryAtKill {
            vm_bytes: 0,
            anon_bytes: 0,
            file_bytes: 0,
            shmem_bytes: 0,
            swap_bytes: 0,
            pgtables_bytes: 0,
        };
        let what = Trace::Kill(Kill {
            victim: key(pid),
            name: String::new(),
            uid: 0,
            oom_score_adj: 0,
            source: KillSource::Kernel,
            sender: None,
            memory,
            memory_map: 0,
            cgroup_id: None,
            already_pending: false,
        });
        TraceEvent { at_boot_ns, what }
    }

    fn mark(at_boot_ns: u64, pid: u32) -> TraceEvent {
        TraceEvent { at_boot_ns, what: Trace::Mark(Mark { victim: key(pid), trigger: None }) }
    }

    fn lost(of_kills: u64) -> TraceEvent {
        TraceEvent { at_boot_ns: 5, what: Trace::Lost { records: 9, of_kills } }
    }

    #[test]
    fn whole_kills_in_counted_cgroups_are_seen() {
        let mut accounted = Accounted::default();
        for (event, is_counted) in [
            (kill(1, 1), true),
            (mark(2, 1), true),
            (mark(3, 2), true),
            (kill(4, 3), true),
            (kill(5, 4), false),
            (mark(6, 4), true),
        ] {
            accounted.saw(&event, is_counted, 10);
        }
        assert!(!accounted.is_waiting(), "nothing was lost");
        accounted.saw(&lost(2), true, 10);
        assert_eq!(accounted.missing(3), 2, "a mark alone, a kill alone, and one elsewhere do not count");
        assert!(!accounted.is_waiting());
        accounted.saw(&lost(2), true, 12);
        assert_eq!(accounted.missing(1), 1, "the other one was compared before");
        assert_eq!(accounted.missing(0), 0);
    }

    #[test]
    fn comparison_waits_for_a_quiet_moment_and_not_for_ever() {
        let mut accounted = Accounted::default();
        accounted.saw(&lost(0), true, 100 * MS);
        assert!(!accounted.is_waiting(), "only forks were lost");
        accounted.saw(&lost(1), true, 100 * MS);
        accounted.saw(&kill(110 * MS, 1), true, 110 * MS);
        assert!(accounted.is_waiting() && !accounted.is_due(125 * MS));
        assert!(accounted.is_due(130 * MS));
        accounted.saw(&kill(1099 * MS, 1), true, 1099 * MS);
        assert!(!accounted.is_due(1099 * MS) && accounted.is_due(1100 * MS));
    }
}
