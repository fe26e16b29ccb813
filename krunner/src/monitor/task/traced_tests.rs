//! What the tracer's state tells of a kill, and which kills it compares with the counter.

use super::*;
use crate::monitor::model::event::Mark;
use crate::monitor::model::{LimitAtKill, LimitKind};

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_ticks: 1 }
}

fn kill(at_boot_ns: u64, pid: u32) -> [TraceEvent; 2] {
    let mark = Mark { victim: key(pid), trigger: None };
    [
        TraceEvent { at_boot_ns, what: Trace::Kill(Kill::example(key(pid))) },
        TraceEvent { at_boot_ns: at_boot_ns + 1, what: Trace::Mark(mark) },
    ]
}

/// The next comparison is with what was counted since the take-over.
#[test]
fn kill_that_was_counted_before_is_not_compared_again() {
    let mut state = TracerState::start(None, None, false);
    let events: Vec<TraceEvent> = [kill(5, 1), kill(20, 2)].into_iter().flatten().collect();
    assert_eq!(state.take_over(&events, 10), [(key(1), 5)]);
    for event in &events {
        state.record(event, 30);
    }
    assert_eq!(state.missing(2), 1, "one of the two counted since then was traced");
}

#[test]
fn limit_is_known_where_no_cgroup_file_system_is_visible() {
    let [TraceEvent { what: Trace::Kill(kill), .. }, _] = kill(5, 1) else { panic!("a kill comes first") };
    let limit =
        LimitAtKill { cgroup_id: Some(7), kind: LimitKind::Memory, limit_bytes: 64 << 20, usage_bytes: 64 << 20 };
    let kill = Kill { cgroup_id: Some(7), limit: Some(limit), ..kill };
    let hit = TracerState::start(None, None, false).facts(&kill, true).limit.unwrap();
    assert_eq!((hit.scope, hit.limit_bytes, hit.path), (LimitScope::Unknown, Some(64 << 20), None));
}
