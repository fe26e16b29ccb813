//! OOM kills in a session: the reporter, and the record of how the session ends, which both take each report.

use super::end_log::SessionEndLog;
use super::oom::{OomEvent, OomReporter};
use crate::monitor::recorder::PostMortem;
use crate::tasks::TaskGroup;

/// What the session knows of OOM kills.
pub(super) struct SessionAttribution {
    pub(super) oom: OomReporter,
    pub(super) end_log: SessionEndLog,
}

impl SessionAttribution {
    /// Handles an event. `is_attached`: a step runs or waits. Returns the number of a barrier that was reached.
    pub(super) fn handle(&mut self, event: OomEvent, is_attached: bool) -> Option<u64> {
        self.oom.handle(event, is_attached, &mut self.end_log)
    }

    /// Reports earlier sessions in this home that ended unexpectedly.
    pub(super) fn report_earlier_ends(&mut self, ended: &[PostMortem], is_attached: bool, tasks: &TaskGroup) {
        for end in ended {
            self.oom.report_earlier_end(end, is_attached);
            self.end_log.write_unexpected_end(end, tasks);
        }
    }
}
