//! What is not told yet, for whoever has to wait for it; and the hold after a kill at our own limit.

use super::{Engine, LOOK_PATIENCE_NS, MAX_FIGURES};
use crate::monitor::attribution::sigkill::{SigkillCause, SigkillOf};
use crate::monitor::cgroup::CgroupFacts;
use crate::monitor::event::ProcessKey;

/// A kill that a program ended with happened at most so long before the question: the question waits for up to a second.
const RECENT_NS: u64 = 3_000_000_000;

impl Engine {
    /// From now on nothing is looked at and nothing reported.
    pub(in crate::monitor) fn hold(&mut self) {
        self.is_held = true;
        self.look_asked_ns = None;
    }

    /// The victim's memory is back. `figures` is asked for those of a victim's cgroup, by its id. Returns whether to look
    /// at `/proc` now.
    #[must_use]
    pub(in crate::monitor) fn resume(
        &mut self,
        mut figures: impl FnMut(Option<u64>) -> Option<CgroupFacts>,
        now_ns: u64,
    ) -> bool {
        self.is_held = false;
        let victims = std::mem::take(&mut self.held_victims);
        for (victim, cgroup_id) in &victims {
            if let Some(figures) = figures(*cgroup_id) {
                self.keep_figures(*victim, figures);
            }
            // Who is gone by now may have gone after the kill.
            self.note_ancestors(*victim, now_ns, now_ns);
        }
        for waiting in &mut self.waiting {
            waiting.until_ns = now_ns + LOOK_PATIENCE_NS;
        }
        if victims.is_empty() && self.waiting.is_empty() {
            return self.inference.is_open();
        }
        let look = self.wants_look(now_ns);
        if self.look_asked_ns.is_none() {
            self.release(u64::MAX);
        }
        look
    }

    /// While held: remembers a victim for [`Self::resume`].
    pub(super) fn hold_victim(&mut self, victim: ProcessKey, cgroup_id: Option<u64>) {
        if self.held_victims.len() < MAX_FIGURES {
            self.held_victims.push((victim, cgroup_id));
        }
    }

    /// Whether kills are known of whose reports are still to come, and soon.
    #[must_use]
    pub(in crate::monitor) fn has_unreported(&self, now_ns: u64) -> bool {
        self.is_held
            || !self.waiting.is_empty()
            || !self.company.is_empty()
            || self.joiner.has_pending_victim(now_ns)
            || self.inference.has_fresh_kills(now_ns)
    }

    /// Reports what is certain now, without waiting for more to be said of it.
    pub(in crate::monitor) fn report_now(&mut self, now_ns: u64) {
        let verdicts = self.joiner.close_marked();
        self.judged_all(verdicts, now_ns);
        self.end_company(u64::MAX, now_ns);
        self.release(u64::MAX);
    }

    /// Why a process got SIGKILL. `is_traced`: a tracer would have seen it.
    #[must_use]
    pub(in crate::monitor) fn sigkill_cause(&self, whose: SigkillOf, is_traced: bool, now_ns: u64) -> SigkillCause {
        let recently_ns = now_ns.saturating_sub(RECENT_NS);
        let (pid, found) = match whose {
            SigkillOf::Process { pid, since_boot_ns } => {
                (pid, self.recent.find(since_boot_ns, |process| process.pid == pid))
            }
            SigkillOf::Below { pid } => {
                let is_below = |process| self.history.chain(process, u64::MAX).iter().any(|known| known.key.pid == pid);
                (pid, self.recent.find(recently_ns, is_below))
            }
        };
        match (found, is_traced, self.is_counted) {
            (Some(cause), ..) => cause.clone(),
            (None, true, _) if self.joiner.is_killed_by_kernel(pid) => self.kernel_sigkill_cause(pid, recently_ns),
            (None, true, _) | (None, false, false) => SigkillCause::Unknown,
            (None, false, true) if self.counted_ns.is_some_and(|at_ns| at_ns >= recently_ns) => SigkillCause::MaybeOom,
            (None, false, true) => SigkillCause::NotOom,
        }
    }

    /// Why the kernel killed a process that is no victim of the OOM killer.
    fn kernel_sigkill_cause(&self, pid: u32, since_boot_ns: u64) -> SigkillCause {
        let is_oom = |init: u32| {
            matches!(self.recent.find(since_boot_ns, |process| process.pid == init), Some(SigkillCause::Oom { .. }))
                || self.joiner.is_marked(init)
        };
        self.joiner.died_with_init(pid, is_oom).map_or(SigkillCause::Kernel, |init| SigkillCause::OomOfInit { init })
    }
}
