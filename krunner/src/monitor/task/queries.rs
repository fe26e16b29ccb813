//! Queries of the session: each waits until the kills before it are reported. See the module `task`.

use std::time::Duration;

use super::{MonitorTask, NodeSource, TracerState, nanoseconds};
use crate::monitor::attribution::engine::MonitorEngine;
use crate::monitor::message::MonitorQuery;
use crate::monitor::model::clock;

/// How long the question why a process received SIGKILL waits for the machine's node: a user-space OOM killer may have sent it, which
/// no counter shows. The node reports a kill within a few milliseconds.
const NODE_ANSWER: Duration = Duration::from_millis(100);

/// How long a query waits for OOM kills that cannot be reported yet. A victim of several GiB takes a second to exit.
pub(in crate::monitor) const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// A query that waits until all OOM kills up to now have been reported.
pub(super) struct PendingQuery {
    query: MonitorQuery,
    /// The counter has not been read yet, because the sampler had locked it.
    needs_count: bool,
    /// Until then the machine's node may still deliver the answer.
    awaits_node_until_ns: u64,
    until_ns: u64,
}

impl PendingQuery {
    /// Whether to look often. What the node delivers wakes the task up.
    pub(super) fn is_urgent(&self, now_ns: u64) -> bool {
        let is_explain = matches!(self.query, MonitorQuery::Explain { .. });
        !is_explain || self.needs_count || now_ns >= self.awaits_node_until_ns
    }

    /// Whether the machine's node may still deliver the cause of a SIGKILL.
    fn awaits_node(&self, engine: &MonitorEngine, now_ns: u64) -> bool {
        let MonitorQuery::Explain { whose, .. } = &self.query else { return false };
        now_ns < self.awaits_node_until_ns && engine.known_sigkill_cause(*whose, now_ns).is_none()
    }
}

impl MonitorTask {
    /// Removes and returns the queries that can be answered now.
    pub(super) fn answerable(&mut self) -> Vec<MonitorQuery> {
        if self.queries.is_empty() {
            return Vec::new();
        }
        let now_ns = clock::boot_ns();
        if self.queries.iter().any(|query| query.needs_count) && self.count_now() {
            self.queries.iter_mut().for_each(|query| query.needs_count = false);
        }
        if self.queries.iter().any(|query| query.until_ns <= now_ns) {
            self.engine.report_now(now_ns);
        }
        let is_flushed = !self.engine.has_unreported(now_ns)
            && !self.traced.as_ref().is_some_and(TracerState::is_comparison_pending);
        let engine = &self.engine;
        let is_answerable = |pending: &mut PendingQuery| {
            pending.until_ns <= now_ns || is_flushed && !pending.needs_count && !pending.awaits_node(engine, now_ns)
        };
        self.queries.extract_if(.., is_answerable).map(|pending| pending.query).collect()
    }

    /// Reads everything recorded so far and queues the query until it has been reported.
    pub(super) fn ask(&mut self, query: MonitorQuery) {
        self.read_all();
        let now_ns = clock::boot_ns();
        let until_ns = now_ns.saturating_add(nanoseconds(FLUSH_DEADLINE));
        let is_delivered = self.node.as_ref().is_some_and(NodeSource::is_connected);
        let awaits_node_until_ns = if is_delivered { now_ns.saturating_add(nanoseconds(NODE_ANSWER)) } else { 0 };
        self.queries.push(PendingQuery { query, needs_count: self.counter.is_some(), awaits_node_until_ns, until_ns });
    }
}
