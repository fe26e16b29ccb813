//! What is not told yet, for whoever has to wait for it; and the hold after a kill at our own limit.

use super::{Engine, LOOK_PATIENCE_NS};
use crate::monitor::attribution::sigkill::SigkillCause;
use crate::monitor::cgroup::CgroupFacts;

impl Engine {
    /// From now on nothing is looked at and nothing reported.
    pub(in crate::monitor) fn hold(&mut self) {
        self.is_held = true;
        self.look_asked_ns = None;
    }

    /// The victim's memory is back. `figures` are those of our own cgroup, whose limit was hit. Returns whether to look at
    /// `/proc` now.
    #[must_use]
    pub(in crate::monitor) fn resume(&mut self, figures: Option<&CgroupFacts>, now_ns: u64) -> bool {
        self.is_held = false;
        if self.waiting.is_empty() {
            return false;
        }
        for waiting in &mut self.waiting {
            waiting.until_ns = now_ns + LOOK_PATIENCE_NS;
            if let Some(figures) = figures {
                self.figures.entry(waiting.victim.kill.victim).or_insert_with(|| figures.clone());
            }
        }
        let look = self.wants_look(now_ns);
        if self.look_asked_ns.is_none() {
            self.release(u64::MAX);
        }
        look
    }

    /// Whether kills are known of whose reports are still to come, and soon.
    #[must_use]
    pub(in crate::monitor) fn has_unreported(&self, now_ns: u64) -> bool {
        self.is_held
            || !self.waiting.is_empty()
            || self.joiner.has_pending_victim(now_ns)
            || self.inference.has_fresh_kills(now_ns)
    }

    /// Reports what is certain now, without waiting for more to be said of it.
    pub(in crate::monitor) fn report_now(&mut self, now_ns: u64) {
        for verdict in self.joiner.close_marked() {
            self.judged(verdict, now_ns);
        }
        self.release(u64::MAX);
    }

    /// Why a process, or one below it, got SIGKILL since that time. `is_traced`: a tracer would have seen it.
    #[must_use]
    pub(in crate::monitor) fn sigkill_cause(&self, pid: u32, since_ns: u64, is_traced: bool) -> SigkillCause {
        let is_below = |process| self.history.chain(process, u64::MAX).iter().any(|known| known.key.pid == pid);
        if let Some(cause) = self.recent.find(pid, since_ns, is_below) {
            return cause.clone();
        }
        match (is_traced, self.is_counted) {
            (true, _) if self.joiner.is_killed_by_kernel(pid) => SigkillCause::Kernel,
            (true, _) | (false, false) => SigkillCause::Unknown,
            (false, true) if self.counted_ns.is_some_and(|at_ns| at_ns >= since_ns) => SigkillCause::MaybeOom,
            (false, true) => SigkillCause::NotOom,
        }
    }
}
