//! The sending side of replies for the rest of the program, with a memory budget for each kind.
//!
//! | kind | budget | if it is used up |
//! |---|---|---|
//! | output of programs | [`OUTPUT_BYTES`] | the sender waits, and with it the program |
//! | log lines | [`LOG_BYTES`] | the line is dropped and counted (see [`crate::logging`]) |
//! | answers | [`ANSWER_BYTES`] | they are sent, and no op is taken until there is room again |
//! | ends of steps | [`MAX_ENDS`] | no further step starts until one is sent |
//!
//! A reply returns its share of the budget when it has reached a socket. All kinds share one queue, so replies arrive
//! in the order they were sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::reply_queue::QueueItem;
use super::socket::framed_bytes;
use crate::wire::{Reply, ReplyMessage, Stream};

/// Queued program output: 64 full chunks. More would only hide that the agent is slow.
const OUTPUT_BYTES: usize = 4 * 1024 * 1024;

/// Queued log lines.
const LOG_BYTES: usize = 1024 * 1024;

/// Queued answers: far more than a well-behaved agent has outstanding.
const ANSWER_BYTES: usize = 1024 * 1024;

/// Queued ends of steps, which are sent 10 ms apart. A client that runs batch mode waits for the end of each run.
const MAX_ENDS: usize = 256;

/// Memory of a queued reply besides its payload: entries in two queues and the handles of its frames.
const OVERHEAD_BYTES: usize = 256;

/// A queued reply that holds its share of a budget.
#[derive(Clone)]
pub(super) struct QueuedReply {
    pub(super) message: ReplyMessage,
    spacing: FinishedSpacing,
    may_overtake: bool,
    _budget: Option<Arc<OwnedSemaphorePermit>>,
}

/// How a reply takes part in the spacing of `*-finished` replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinishedSpacing {
    Free,
    Sets,
    Keeps,
}

impl QueueItem for QueuedReply {
    fn wire_bytes(&self) -> u64 {
        framed_bytes(self.message.kind().len()) + framed_bytes(self.message.payload().len())
    }

    fn starts_spacing(&self) -> bool {
        self.spacing != FinishedSpacing::Free
    }

    fn needs_spacing(&self) -> bool {
        self.spacing == FinishedSpacing::Keeps
    }

    fn may_overtake(&self) -> bool {
        self.may_overtake
    }
}

/// A flush request: answered when everything has been sent, or when no peer is connected.
pub(super) type Flush = oneshot::Sender<bool>;

/// The receiving side of a [`ReplySender`], for [`super::listen_push`].
pub(crate) struct ReplyReceiver {
    pub(super) replies: mpsc::UnboundedReceiver<QueuedReply>,
    pub(super) flushes: mpsc::UnboundedReceiver<Flush>,
}

#[cfg(test)]
impl ReplyReceiver {
    /// The number of replies that were not received yet.
    pub(crate) fn waiting(&self) -> usize {
        self.replies.len()
    }
}

/// A handle for sending replies.
#[derive(Clone)]
pub(crate) struct ReplySender {
    // Unbounded channels; the budgets bound their contents.
    replies: mpsc::UnboundedSender<QueuedReply>,
    flushes: mpsc::UnboundedSender<Flush>,
    output: Arc<Semaphore>,
    log: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    ends: Arc<Semaphore>,
}

impl ReplySender {
    /// A sender, and its receiver for [`super::listen_push`].
    #[must_use]
    pub(crate) fn new() -> (Self, ReplyReceiver) {
        let (replies, parcels_out) = mpsc::unbounded_channel();
        let (flushes, flushes_out) = mpsc::unbounded_channel();
        let budget = |bytes| Arc::new(Semaphore::new(bytes));
        let sender = Self {
            replies,
            flushes,
            output: budget(OUTPUT_BYTES),
            log: budget(LOG_BYTES),
            answers: budget(ANSWER_BYTES),
            ends: budget(MAX_ENDS),
        };
        (sender, ReplyReceiver { replies: parcels_out, flushes: flushes_out })
    }

    /// Sends a message that may be large (program output, pictures); waits for budget.
    pub(crate) async fn send(&self, message: ReplyMessage) {
        let budget = Arc::clone(&self.output).acquire_many_owned(cost(&message, OUTPUT_BYTES)).await.ok();
        self.enqueue(message, FinishedSpacing::Free, false, budget);
    }

    /// Sends an answer or a notification, which is small, without waiting.
    pub(crate) fn answer(&self, reply: Reply) {
        match reply {
            Reply::Finished { .. } => self.end(reply, FinishedSpacing::Keeps),
            // Belongs behind the output that prompts for it.
            Reply::WaitingInput(_) => self.small(reply.into_message(), false),
            // Clients keep answers of each kind apart from everything else.
            _ => self.small(reply.into_message(), true),
        }
    }

    /// Sends the `finished` of a step that was requested after all earlier `*-finished` replies were sent. Its client
    /// has received those already, so this one needs no spacing.
    pub(crate) fn answer_unspaced(&self, reply: Reply) {
        self.end(reply, FinishedSpacing::Sets);
    }

    /// Whether a step may start: its end will be sent soon after those that wait.
    #[must_use]
    pub(crate) fn has_room_for_end(&self) -> bool {
        self.ends.available_permits() > 0
    }

    /// Waits until [`Self::has_room_for_end`].
    pub(crate) async fn wait_for_room_for_end(&self) {
        drop(self.ends.acquire().await);
    }

    fn end(&self, reply: Reply, spacing: FinishedSpacing) {
        let budget = Arc::clone(&self.ends).try_acquire_owned().ok();
        self.enqueue(reply.into_message(), spacing, false, budget);
    }

    fn small(&self, message: ReplyMessage, may_overtake: bool) {
        let budget = Arc::clone(&self.answers).try_acquire_many_owned(cost(&message, ANSWER_BYTES)).ok();
        self.enqueue(message, FinishedSpacing::Free, may_overtake, budget);
    }

    /// How many ends of steps have not reached a socket.
    #[must_use]
    pub(crate) fn queued_ends(&self) -> usize {
        MAX_ENDS - self.ends.available_permits()
    }

    /// Sends a log line as `stderr`; `false` if the budget is used up.
    #[must_use]
    pub(crate) fn try_log(&self, line: Bytes) -> bool {
        let message = Reply::Output { stream: Stream::Stderr, bytes: line }.into_message();
        let budget = Arc::clone(&self.log).try_acquire_many_owned(cost(&message, LOG_BYTES)).ok();
        let room = budget.is_some();
        if room {
            self.enqueue(message, FinishedSpacing::Free, false, budget);
        }
        room
    }

    /// Sends a report as `stderr` from the answer budget, so that a flood of output or log lines cannot block it;
    /// `false` if the budget is used up.
    #[must_use]
    pub(crate) fn try_report(&self, bytes: Bytes) -> bool {
        let message = Reply::Output { stream: Stream::Stderr, bytes }.into_message();
        let budget = Arc::clone(&self.answers).try_acquire_many_owned(cost(&message, ANSWER_BYTES)).ok();
        let room = budget.is_some();
        if room {
            self.enqueue(message, FinishedSpacing::Free, false, budget);
        }
        room
    }

    /// Waits until at least half of the answer budget is free.
    pub(crate) async fn wait_for_answer_budget(&self) {
        let half = u32::try_from(ANSWER_BYTES / 2).unwrap_or(u32::MAX);
        drop(self.answers.acquire_many(half).await);
    }

    /// Waits until the peer's kernel has acknowledged all replies sent so far; `false` at the deadline or if no peer is
    /// connected.
    pub(crate) async fn flush(&self, deadline: Duration) -> bool {
        let (done, flushed) = oneshot::channel();
        let asked = self.flushes.send(done).is_ok();
        asked && tokio::time::timeout(deadline, flushed).await.is_ok_and(|answer| answer.unwrap_or(false))
    }

    fn enqueue(
        &self,
        message: ReplyMessage,
        spacing: FinishedSpacing,
        may_overtake: bool,
        budget: Option<OwnedSemaphorePermit>,
    ) {
        // Fails only after the push task has stopped, which is after the last flush.
        let _ = self.replies.send(QueuedReply { message, spacing, may_overtake, _budget: budget.map(Arc::new) });
    }
}

/// The share of a budget that a message takes: its size, capped at the whole budget.
fn cost(message: &ReplyMessage, all: usize) -> u32 {
    u32::try_from((message.payload().len() + OVERHEAD_BYTES).min(all)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::StepKind;
    use futures_util::FutureExt as _;

    fn output(bytes: usize) -> ReplyMessage {
        Reply::Output { stream: Stream::Stdout, bytes: vec![0; bytes].into() }.into_message()
    }

    #[tokio::test]
    async fn output_waits_for_room_and_answers_do_not() {
        let (sender, mut queue) = ReplySender::new();
        let mut sent = 0;
        while sender.send(output(64 * 1024)).now_or_never().is_some() {
            sent += 1;
        }
        assert_eq!(sent, OUTPUT_BYTES / (64 * 1024 + OVERHEAD_BYTES));
        sender.answer(Reply::Completion(vec![]));
        assert!(sender.try_log(Bytes::from_static(b"line\n")));
        assert!(!sender.try_log(vec![0; LOG_BYTES].into()), "no room beside the line before");
        drop(queue.replies.recv().await);
        assert!(sender.send(output(64 * 1024)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn no_step_starts_while_ends_pile_up_and_ops_are_taken() {
        let (sender, mut queue) = ReplySender::new();
        for _ in 0..MAX_ENDS {
            assert!(sender.has_room_for_end());
            sender.answer(Reply::Finished { kind: StepKind::Exec, exit_code: 0 });
        }
        assert_eq!((sender.has_room_for_end(), sender.queued_ends()), (false, MAX_ENDS));
        assert!(sender.wait_for_room_for_end().now_or_never().is_none());
        assert!(sender.wait_for_answer_budget().now_or_never().is_some());
        drop(queue.replies.recv().await);
        assert!(sender.has_room_for_end());
    }

    #[tokio::test]
    async fn no_op_is_taken_while_answers_pile_up() {
        let (sender, mut queue) = ReplySender::new();
        assert!(sender.wait_for_answer_budget().now_or_never().is_some());
        for _ in 0..ANSWER_BYTES / OVERHEAD_BYTES {
            sender.answer(Reply::Status { started_at: 1.0 });
        }
        assert!(sender.wait_for_answer_budget().now_or_never().is_none());
        while queue.replies.try_recv().is_ok() {}
        assert!(sender.wait_for_answer_budget().now_or_never().is_some());
    }
}
