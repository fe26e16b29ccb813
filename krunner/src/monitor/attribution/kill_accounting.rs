//! Counts the kills that the tracer saw, to compare with the cgroup's counter when records of kills were lost.
//!
//! The kernel counts a kill, sends SIGKILL and marks the victim, in this order (`__oom_kill_process`, `mm/oom_kill.c`). It also
//! marks processes that are already exiting, without counting a kill. So a kill was seen completely if a mark follows the
//! kernel's SIGKILL of the same process. The rest of the count is missing.
//!
//! Pure: times are parameters, in nanoseconds since boot.

use std::collections::VecDeque;

use crate::monitor::model::event::{Kill, KillSource, Trace, TraceEvent};
use crate::monitor::model::process::ProcessKey;

/// Kills whose mark is outstanding. It follows within microseconds.
const MAX_KILLED: usize = 64;

/// A comparison waits until this long after the last kill: by then all counted kills have been recorded.
const QUIET_NS: u64 = 20_000_000;

/// A burst of kills does not delay a comparison beyond this.
const PATIENCE_NS: u64 = 1_000_000_000;

/// The kills seen since the last comparison, and when the next one is due.
#[derive(Debug, Default)]
pub(in crate::monitor) struct KillAccounting {
    /// Processes with a SIGKILL from the kernel and no mark yet.
    killed: VecDeque<ProcessKey>,
    /// Kills seen completely.
    seen: u64,
    last_kill_ns: u64,
    /// When the next comparison was requested.
    requested_ns: Option<u64>,
}

impl KillAccounting {
    /// Handles an event. `is_counted`: the cgroup's counter includes kills there.
    pub(in crate::monitor) fn observe(&mut self, event: &TraceEvent, is_counted: bool, now_ns: u64) {
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
                self.requested_ns.get_or_insert(now_ns);
            }
            _ => {}
        }
    }

    /// Whether a comparison is requested.
    #[must_use]
    pub(in crate::monitor) fn is_waiting(&self) -> bool {
        self.requested_ns.is_some()
    }

    /// Whether the comparison is due.
    #[must_use]
    pub(in crate::monitor) fn is_due(&self, now_ns: u64) -> bool {
        self.requested_ns.is_some_and(|requested_ns| {
            now_ns.saturating_sub(self.last_kill_ns.max(requested_ns)) >= QUIET_NS
                || now_ns.saturating_sub(requested_ns) >= PATIENCE_NS
        })
    }

    /// Completes the comparison: the number of counted kills that the tracer missed.
    pub(in crate::monitor) fn missing(&mut self, counted: u64) -> u64 {
        self.requested_ns = None;
        counted.saturating_sub(std::mem::take(&mut self.seen))
    }
}

/// The kills among these events that the counter had counted by that time, as victims with the times of their SIGKILL.
/// `is_counted`: the cgroup's counter includes kills there.
#[must_use]
pub(in crate::monitor) fn counted_kills(
    events: &[TraceEvent],
    is_counted: impl Fn(&Kill) -> bool,
    until_ns: u64,
) -> Vec<(ProcessKey, u64)> {
    let is_marked = |victim: ProcessKey| {
        events.iter().any(|event| matches!(&event.what, Trace::Mark(mark) if mark.victim == victim))
    };
    let kills = events.iter().filter(|event| event.at_boot_ns <= until_ns).filter_map(|event| match &event.what {
        Trace::Kill(kill) if kill.source == KillSource::Kernel && !kill.already_pending => {
            Some((kill, event.at_boot_ns))
        }
        _ => None,
    });
    kills
        .filter(|(kill, _)| is_counted(kill) && is_marked(kill.victim))
        .map(|(kill, at_ns)| (kill.victim, at_ns))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::model::event::Mark;

    const MS: u64 = 1_000_000;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_ticks: 1 }
    }

    fn kill(at_boot_ns: u64, pid: u32) -> TraceEvent {
        TraceEvent { at_boot_ns, what: Trace::Kill(Kill::example(key(pid))) }
    }

    fn mark(at_boot_ns: u64, pid: u32) -> TraceEvent {
        TraceEvent { at_boot_ns, what: Trace::Mark(Mark { victim: key(pid), trigger: None }) }
    }

    fn lost(of_kills: u64) -> TraceEvent {
        TraceEvent { at_boot_ns: 5, what: Trace::Lost { records: 9, of_kills } }
    }

    #[test]
    fn whole_kills_in_counted_cgroups_are_seen() {
        let mut accounting = KillAccounting::default();
        for (event, is_counted) in [
            (kill(1, 1), true),
            (mark(2, 1), true),
            (mark(3, 2), true),
            (kill(4, 3), true),
            (kill(5, 4), false),
            (mark(6, 4), true),
        ] {
            accounting.observe(&event, is_counted, 10);
        }
        assert!(!accounting.is_waiting(), "nothing was lost");
        accounting.observe(&lost(2), true, 10);
        assert_eq!(accounting.missing(3), 2, "a mark alone, a kill alone, and one elsewhere do not count");
        assert!(!accounting.is_waiting());
        accounting.observe(&lost(2), true, 12);
        assert_eq!(accounting.missing(1), 1, "the other one was compared before");
        assert_eq!(accounting.missing(0), 0);
    }

    #[test]
    fn kills_before_the_count_are_those_killed_and_marked_by_then() {
        let events = [
            kill(1, 1),
            mark(2, 1),
            mark(3, 2),
            kill(4, 3),
            kill(5, 4),
            mark(6, 4),
            kill(8, 5),
            mark(11, 5),
            kill(11, 6),
            mark(12, 6),
        ];
        let counted = counted_kills(&events, |kill| kill.victim.pid != 4, 10);
        assert_eq!(counted, [(key(1), 1), (key(5), 8)], "not a mark alone, a kill alone, one elsewhere or later");
    }

    #[test]
    fn comparison_waits_for_a_quiet_moment_within_bounds() {
        let mut accounting = KillAccounting::default();
        accounting.observe(&lost(0), true, 100 * MS);
        assert!(!accounting.is_waiting(), "only forks were lost");
        accounting.observe(&lost(1), true, 100 * MS);
        accounting.observe(&kill(110 * MS, 1), true, 110 * MS);
        assert!(accounting.is_waiting() && !accounting.is_due(125 * MS));
        assert!(accounting.is_due(130 * MS));
        accounting.observe(&kill(1099 * MS, 1), true, 1099 * MS);
        assert!(!accounting.is_due(1099 * MS) && accounting.is_due(1100 * MS));
    }
}
