//! What the user is told of kills, and when: at once while a step is attached, else with the next one.
//!
//! The agent passes output on to the run that waits for it, and discards it where none does (PROTOCOL.md). So a report that
//! comes between two steps goes to our own stderr at once, and to the agent at the start of the next step, with its date.
//!
//! ```text
//!            step attached, room among the answers
//! report ─────────────────────────────────────────▶ agent
//!    └─ otherwise ─▶ kept (at most MAX_KEPT) ─ room, or the next step ─▶ agent
//! ```

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use crate::logging::OPERATOR;
use crate::monitor::utc;
use crate::transport::Outbox;

/// Reports that wait for a step. At some 2 KiB each this is what a storm is told in full.
const MAX_KEPT: usize = 64;

/// The most that is sent as one `stderr` reply (PROTOCOL.md).
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// The way of reports to the user.
pub(super) struct Reports {
    outbox: Outbox,
    kept: VecDeque<String>,
    dropped: u64,
}

impl Reports {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox, kept: VecDeque::new(), dropped: 0 }
    }

    /// Tells this: our own stderr at once, the agent now if a step is attached.
    pub(super) fn tell(&mut self, text: &str, at: SystemTime, is_attached: bool) {
        tracing::warn!(target: OPERATOR, "{text}");
        if is_attached && self.kept.is_empty() && self.send(text) {
            return;
        }
        if self.kept.len() == MAX_KEPT {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(format!("(at {}) {text}", utc(at)));
    }

    /// Whether something waits for room, or for a step.
    #[must_use]
    pub(super) fn are_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// A step is attached, and there is room: tells it what was kept.
    pub(super) fn send_kept(&mut self) {
        if self.dropped > 0 && self.send(&format!("{} earlier reports are in oom.jsonl only", self.dropped)) {
            self.dropped = 0;
        }
        while let Some(text) = self.kept.pop_front() {
            if !self.send(&text) {
                self.kept.push_front(text);
                return;
            }
        }
    }

    /// `false` when there is no room; a part of it may have been sent.
    fn send(&self, text: &str) -> bool {
        let mut bytes = Bytes::from(format!("{text}\n"));
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_REPLY_BYTES));
            if !self.outbox.try_report(chunk) {
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
        let (outbox, queue) = Outbox::new();
        let mut reports = Reports::new(outbox);
        reports.tell("killed", at(), false);
        assert_eq!(
            (queue.waiting(), reports.kept.front().unwrap().as_str()),
            (0, "(at 1970-01-01T00:00:01.000000Z) killed")
        );
        reports.send_kept();
        assert_eq!((queue.waiting(), reports.kept.len()), (1, 0));
        reports.tell("killed", at(), true);
        assert_eq!(queue.waiting(), 2);
    }

    #[test]
    fn long_report_arrives_in_parts() {
        let (outbox, queue) = Outbox::new();
        let mut reports = Reports::new(outbox);
        reports.tell(&"x".repeat(2 * MAX_REPLY_BYTES), at(), true);
        assert_eq!(queue.waiting(), 3);
    }

    #[test]
    fn memory_is_bounded_whoever_does_not_read() {
        let (outbox, queue) = Outbox::new();
        let mut reports = Reports::new(outbox);
        for _ in 0..10_000 {
            reports.tell(&"x".repeat(1024), at(), true);
        }
        assert!(queue.waiting() < 1024, "{}", queue.waiting());
        assert_eq!(reports.kept.len(), MAX_KEPT);
        assert!(reports.dropped > 8000);
    }
}
