//! Delivers reports to the user: at once while a step is attached, otherwise with the next step.
//!
//! The agent forwards output to the run that waits for it and discards it if there is none. So a report between two
//! steps goes to our own stderr at once, and to the agent at the start of the next step, with its date.
//!
//! ```text
//!            step attached, budget available      
//! report ─────────────────────────────────────────▶ agent
//!    └─ otherwise ─▶ pending (at most MAX_PENDING) ─ budget, or the next step ─▶ agent
//! ```

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use crate::logging::OPERATOR;
use crate::monitor::utc;
use crate::transport::ReplySender;

/// Reports that wait for a step, about 2 KiB each. In a burst of kills, older ones are dropped.
const MAX_PENDING: usize = 64;

/// The largest `stderr` reply.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// Delivers reports to the user.
pub(super) struct ReportDelivery {
    replies: ReplySender,
    pending: VecDeque<String>,
    dropped: u64,
}

impl ReportDelivery {
    pub(super) fn new(replies: ReplySender) -> Self {
        Self { replies, pending: VecDeque::new(), dropped: 0 }
    }

    /// Writes the report to our own stderr, and sends it to the agent now if a step is attached.
    pub(super) fn deliver(&mut self, text: &str, at: SystemTime, is_attached: bool) {
        tracing::warn!(target: OPERATOR, "{text}");
        if is_attached && self.pending.is_empty() && self.send(text) {
            return;
        }
        if self.pending.len() == MAX_PENDING {
            self.pending.pop_front();
            self.dropped += 1;
        }
        self.pending.push_back(format!("(at {}) {text}", utc(at)));
    }

    /// Shows a warning now or never: it would be useless later.
    pub(super) fn warn(&self, text: &str, is_attached: bool) {
        tracing::warn!(target: OPERATOR, "{text}");
        if is_attached && self.pending.is_empty() && !self.send(text) {
            tracing::debug!("memory warning dropped: the reply queue is full");
        }
    }

    /// Whether reports wait for budget or for a step.
    #[must_use]
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Sends pending reports. Call when a step is attached and there is budget.
    pub(super) fn send_pending(&mut self) {
        if self.dropped > 0 && self.send(&format!("{} earlier reports were dropped; see oom.jsonl", self.dropped)) {
            self.dropped = 0;
        }
        while let Some(text) = self.pending.pop_front() {
            if !self.send(&text) {
                self.pending.push_front(text);
                return;
            }
        }
    }

    /// `false` if the budget is used up; part of the text may have been sent.
    fn send(&self, text: &str) -> bool {
        let mut bytes = Bytes::from(format!("{text}\n"));
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_REPLY_BYTES));
            if !self.replies.try_report(chunk) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1)
    }

    #[test]
    fn report_between_steps_is_told_with_the_next_one() {
        let (replies, queue) = ReplySender::new();
        let mut reports = ReportDelivery::new(replies);
        reports.deliver("killed", at(), false);
        assert_eq!(
            (queue.waiting(), reports.pending.front().unwrap().as_str()),
            (0, "(at 1970-01-01T00:00:01.000000Z) killed")
        );
        reports.send_pending();
        assert_eq!((queue.waiting(), reports.pending.len()), (1, 0));
        reports.deliver("killed", at(), true);
        assert_eq!(queue.waiting(), 2);
    }

    #[test]
    fn long_report_arrives_in_parts() {
        let (replies, queue) = ReplySender::new();
        let mut reports = ReportDelivery::new(replies);
        reports.deliver(&"x".repeat(2 * MAX_REPLY_BYTES), at(), true);
        assert_eq!(queue.waiting(), 3);
    }

    #[test]
    fn memory_is_bounded_without_a_reader() {
        let (replies, queue) = ReplySender::new();
        let mut reports = ReportDelivery::new(replies);
        for _ in 0..10_000 {
            reports.deliver(&"x".repeat(1024), at(), true);
        }
        assert!(queue.waiting() < 1024, "{}", queue.waiting());
        assert_eq!(reports.pending.len(), MAX_PENDING);
        assert!(reports.dropped > 8000);
    }
}
