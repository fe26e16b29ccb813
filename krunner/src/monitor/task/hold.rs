//! The hold after an OOM kill at our own limit: see `sources::cgroup::charge`.

use std::time::Duration;

use super::{MonitorTask, nanoseconds};
use crate::monitor::attribution::engine::is_of_interest;
use crate::monitor::model::clock;
use crate::monitor::model::event::{Trace, TraceEvent};
use crate::sys::memory;

impl MonitorTask {
    /// Starts a hold at the first sign of an OOM kill at our own limit.
    pub(super) fn begin_hold(&mut self, event: &TraceEvent, now_ns: u64) {
        let is_kill = matches!(&event.what, Trace::Kill(kill) if is_of_interest(kill));
        if is_kill
            && self.held_until_ns.is_none()
            && let Some(patience) = self.charge.patience()
        {
            self.hold(patience, now_ns);
        }
    }

    /// The deadline counts from the first kill, so that a burst of kills does not delay reports until its end.
    pub(super) fn hold(&mut self, patience: Duration, now_ns: u64) {
        self.held_until_ns.get_or_insert(now_ns.saturating_add(nanoseconds(patience)));
        self.engine.hold();
        self.pause_sampler(true);
    }

    /// Ends the hold when there is headroom again or the deadline has passed.
    pub(super) fn end_hold(&mut self) {
        let Some(until_ns) = self.held_until_ns else { return };
        let now_ns = clock::boot_ns();
        if now_ns < until_ns && self.charge.is_short() {
            return;
        }
        self.held_until_ns = None;
        self.pause_sampler(false);
        let traced = &mut self.traced;
        let look = self.engine.resume(|cgroup_id| traced.as_mut()?.cgroup_facts(cgroup_id), now_ns);
        self.scan_if(look);
    }

    /// Renews the heap's reserve if it was used and memory is available: the session's start, each step and each report use a part.
    pub(super) fn renew_reserve(&mut self) {
        if self.is_reserve_used && self.held_until_ns.is_none() && !self.charge.is_short() {
            self.is_reserve_used = false;
            memory::renew_heap_reserve();
        }
    }

    /// Reports the condition once, until it is over.
    pub(super) fn check_stuck(&mut self) {
        let is_stuck = self.charge.is_stuck();
        if is_stuck && !self.is_stuck {
            self.engine.oom_without_kill();
        }
        self.is_stuck = is_stuck;
    }

    pub(super) fn pause_sampler(&self, is_paused: bool) {
        if let Some(sampler) = &self.sampler {
            sampler.pause(is_paused);
        }
    }
}
