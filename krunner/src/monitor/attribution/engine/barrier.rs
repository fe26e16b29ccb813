//! Reporting what is pending before a step ends, and the hold after a kill at krunner's own limit.

use super::facts::MAX_FACTS;
use super::{MonitorEngine, SCAN_PATIENCE_NS};
use crate::monitor::attribution::sigkill::{SigkillCause, SigkillOf};
use crate::monitor::explain::MemoryFacts;
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::process::ProcessKey;

/// How far back a kill may be when a caller asks why a program died. The question itself may wait for a second.
const RECENT_NS: u64 = 3_000_000_000;

impl MonitorEngine {
    /// Stops scans and reports until [`Self::resume`].
    pub(in crate::monitor) fn hold(&mut self) {
        self.is_held = true;
        self.scan_requested_ns = None;
    }

    /// Resumes after the victim's memory was freed. `cgroup_facts` reads a victim's cgroup by its ID. Returns whether to scan
    /// `/proc` now.
    #[must_use]
    pub(in crate::monitor) fn resume(
        &mut self,
        mut cgroup_facts: impl FnMut(Option<u64>) -> Option<CgroupFacts>,
        now_ns: u64,
    ) -> bool {
        self.is_held = false;
        let victims = std::mem::take(&mut self.held_victims);
        for (victim, cgroup_id) in &victims {
            if let Some(cgroup) = cgroup_facts(*cgroup_id) {
                let facts = self.facts.take(*victim).unwrap_or_default();
                self.keep_facts(*victim, MemoryFacts { cgroup: Some(cgroup), ..facts });
            }
            // A process that is gone by now may have exited after the kill.
            self.note_ancestors(*victim, now_ns, now_ns);
        }
        for deferred in &mut self.deferred {
            deferred.until_ns = now_ns + SCAN_PATIENCE_NS;
        }
        if victims.is_empty() && self.deferred.is_empty() {
            return self.inference.is_open();
        }
        let scan = self.wants_scan(now_ns);
        if self.scan_requested_ns.is_none() {
            self.release(u64::MAX);
        }
        scan
    }

    /// While held: remembers a victim for [`Self::resume`].
    pub(super) fn hold_victim(&mut self, victim: ProcessKey, cgroup_id: Option<u64>) {
        if self.held_victims.len() < MAX_FACTS {
            self.held_victims.push((victim, cgroup_id));
        }
    }

    /// Whether known kills are about to be reported.
    #[must_use]
    pub(in crate::monitor) fn has_unreported(&self, now_ns: u64) -> bool {
        self.is_held
            || !self.deferred.is_empty()
            || !self.co_victims.is_empty()
            || self.correlator.has_pending_victim(now_ns)
            || self.inference.has_fresh_kills(now_ns)
    }

    /// Reports everything that is certain now, without waiting for more details.
    pub(in crate::monitor) fn report_now(&mut self, now_ns: u64) {
        let attributions = self.correlator.close_marked();
        self.attributed_all(attributions, now_ns);
        self.flush_co_victims(u64::MAX, now_ns);
        self.release(u64::MAX);
    }

    /// Why a process received SIGKILL. `is_traced`: a tracer would have seen it.
    #[must_use]
    pub(in crate::monitor) fn sigkill_cause(&self, whose: SigkillOf, is_traced: bool, now_ns: u64) -> SigkillCause {
        let recently_ns = now_ns.saturating_sub(RECENT_NS);
        let (SigkillOf::Process { pid, .. } | SigkillOf::Below { pid }) = whose;
        match (self.known_sigkill_cause(whose, now_ns), is_traced, self.is_counted) {
            (Some(cause), ..) => cause.clone(),
            (None, true, _) if self.correlator.is_killed_by_kernel(pid) => self.kernel_sigkill_cause(pid, recently_ns),
            (None, true, _) | (None, false, false) => SigkillCause::Unknown,
            (None, false, true) if self.counted_ns.is_some_and(|at_ns| at_ns >= recently_ns) => SigkillCause::MaybeOom,
            (None, false, true) => SigkillCause::NotOom,
        }
    }

    /// The cause that was observed or delivered.
    #[must_use]
    pub(in crate::monitor) fn known_sigkill_cause(&self, whose: SigkillOf, now_ns: u64) -> Option<&SigkillCause> {
        match whose {
            SigkillOf::Process { pid, since_boot_ns } => {
                self.recent.find(since_boot_ns, |process, _| process.pid == pid)
            }
            SigkillOf::Below { pid } => {
                let recently_ns = now_ns.saturating_sub(RECENT_NS);
                let chain = |process| self.history.chain(process, u64::MAX);
                let is_below = |process, _: &SigkillCause| chain(process).iter().any(|known| known.key.pid == pid);
                // The parent of what a user-space OOM killer killed may be gone when the machine's node looks for it.
                let step = self.history.holder_of(pid, now_ns);
                let may_be_below = |process: ProcessKey, cause: &SigkillCause| {
                    let is_younger = step.is_none_or(|step| step.start_ticks <= process.start_ticks);
                    cause.is_of_daemon() && is_younger && chain(process).is_empty()
                };
                let of_daemon = || self.recent.find(recently_ns, may_be_below);
                self.recent.find(recently_ns, is_below).or_else(of_daemon)
            }
        }
    }

    /// Why the kernel killed a process that is not an OOM victim.
    fn kernel_sigkill_cause(&self, pid: u32, since_boot_ns: u64) -> SigkillCause {
        let is_oom = |init: u32| {
            matches!(self.recent.find(since_boot_ns, |process, _| process.pid == init), Some(SigkillCause::Oom { .. }))
                || self.correlator.is_marked(init)
        };
        self.correlator
            .died_with_init(pid, is_oom)
            .map_or(SigkillCause::Kernel, |init| SigkillCause::OomOfInit { init })
    }
}
