//! The sending end for the rest of the program: replies in, with a bound for every kind.
//!
//! | kind | budget | without room |
//! |---|---|---|
//! | output of programs | [`OUTPUT_BYTES`] | the sender waits, and with it the program |
//! | log lines | [`LOG_BYTES`] | the line is dropped and counted (see [`crate::logging`]) |
//! | answers | [`ANSWER_BYTES`] | they are sent, and no op is taken until there is room again |
//!
//! A budget is given back when the reply has reached a socket. All kinds share one queue, so that
//! what is sent first arrives first.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::ledger::Entry;
use crate::wire::{Message, OutputStream, Reply};

/// Output that waits for the agent: 64 full chunks. More would only hide that it is slow.
const OUTPUT_BYTES: usize = 4 * 1024 * 1024;

/// Log lines that wait for the agent.
const LOG_BYTES: usize = 1024 * 1024;

/// Answers that wait for the agent: far more than a sane one has open.
const ANSWER_BYTES: usize = 1024 * 1024;

/// What a queued reply costs beside its payload: two queues' entries and the frames' handles.
const OVERHEAD_BYTES: usize = 256;

/// A reply on its way, with its share of a budget.
#[derive(Clone)]
pub(super) struct Parcel {
    pub(super) message: Message,
    pace: Pace,
    _budget: Option<Arc<OwnedSemaphorePermit>>,
}

/// What a reply has to do with the distance that some keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Free,
    Sets,
    Keeps,
}

impl Entry for Parcel {
    fn wire_bytes(&self) -> u64 {
        framed_bytes(self.message.kind().len()) + framed_bytes(self.message.payload().len())
    }

    fn sets_pace(&self) -> bool {
        self.pace != Pace::Free
    }

    fn is_paced(&self) -> bool {
        self.pace == Pace::Keeps
    }
}

/// The length of a frame on the wire: a header of 2 bytes up to a length of 255, of 9 beyond (ZMTP 3.0).
pub(super) fn framed_bytes(payload_bytes: usize) -> u64 {
    payload_bytes as u64 + if payload_bytes > 255 { 9 } else { 2 }
}

/// Asks whether everything has been sent; answered when it has, or when nobody is there to take it.
pub(super) type Flush = oneshot::Sender<bool>;

/// The queue behind an [`Outbox`], for [`super::listen_push`].
pub struct Queue {
    pub(super) parcels: mpsc::UnboundedReceiver<Parcel>,
    pub(super) flushes: mpsc::UnboundedReceiver<Flush>,
}

#[cfg(test)]
impl Queue {
    /// Replies that nobody has taken.
    pub(crate) fn waiting(&self) -> usize {
        self.parcels.len()
    }
}

/// A handle for sending replies.
#[derive(Clone)]
pub struct Outbox {
    // Unbounded channels: what is in them is bounded by the budgets.
    parcels: mpsc::UnboundedSender<Parcel>,
    flushes: mpsc::UnboundedSender<Flush>,
    output: Arc<Semaphore>,
    log: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

impl Outbox {
    /// An outbox, and the queue behind it for [`super::listen_push`].
    #[must_use]
    pub fn new() -> (Self, Queue) {
        let (parcels, parcels_out) = mpsc::unbounded_channel();
        let (flushes, flushes_out) = mpsc::unbounded_channel();
        let budget = |bytes| Arc::new(Semaphore::new(bytes));
        let outbox = Self {
            parcels,
            flushes,
            output: budget(OUTPUT_BYTES),
            log: budget(LOG_BYTES),
            answers: budget(ANSWER_BYTES),
        };
        (outbox, Queue { parcels: parcels_out, flushes: flushes_out })
    }

    /// Sends what may be large, waiting for room: the output of programs, pictures.
    pub async fn send(&self, message: Message) {
        let budget = Arc::clone(&self.output).acquire_many_owned(cost(&message, OUTPUT_BYTES)).await.ok();
        self.enqueue(message, Pace::Free, budget);
    }

    /// Sends an answer or a notice, which is small, at once.
    pub fn answer(&self, reply: Reply) {
        let pace = if matches!(reply, Reply::Finished { .. }) { Pace::Keeps } else { Pace::Free };
        self.small(reply.into_message(), pace);
    }

    /// Sends the end of a step that was asked for when all ends before it had been told. Whoever asked has seen
    /// those, so this one keeps no distance from them.
    pub fn answer_alone(&self, reply: Reply) {
        self.small(reply.into_message(), Pace::Sets);
    }

    fn small(&self, message: Message, pace: Pace) {
        let budget = Arc::clone(&self.answers).try_acquire_many_owned(cost(&message, ANSWER_BYTES)).ok();
        self.enqueue(message, pace, budget);
    }

    /// Sends a log line as `stderr`, unless there is no room; then `false`.
    #[must_use]
    pub fn try_log(&self, line: Bytes) -> bool {
        let message = Reply::Output { stream: OutputStream::Stderr, bytes: line }.into_message();
        let budget = Arc::clone(&self.log).try_acquire_many_owned(cost(&message, LOG_BYTES)).ok();
        let room = budget.is_some();
        if room {
            self.enqueue(message, Pace::Free, budget);
        }
        room
    }

    /// Sends a report as `stderr` on the answers' budget, so that no flood of output or log lines pushes it out; `false`
    /// when there is no room.
    #[must_use]
    pub fn try_report(&self, bytes: Bytes) -> bool {
        let message = Reply::Output { stream: OutputStream::Stderr, bytes }.into_message();
        let budget = Arc::clone(&self.answers).try_acquire_many_owned(cost(&message, ANSWER_BYTES)).ok();
        let room = budget.is_some();
        if room {
            self.enqueue(message, Pace::Free, budget);
        }
        room
    }

    /// Waits until at least half the budget for answers is free.
    pub async fn room_for_answers(&self) {
        let half = u32::try_from(ANSWER_BYTES / 2).unwrap_or(u32::MAX);
        drop(self.answers.acquire_many(half).await);
    }

    /// Waits until all replies so far have been acknowledged by the peer's kernel; `false` when the
    /// deadline comes first or nobody is connected.
    pub async fn flush(&self, deadline: Duration) -> bool {
        let (done, flushed) = oneshot::channel();
        let asked = self.flushes.send(done).is_ok();
        asked && tokio::time::timeout(deadline, flushed).await.is_ok_and(|answer| answer.unwrap_or(false))
    }

    fn enqueue(&self, message: Message, pace: Pace, budget: Option<OwnedSemaphorePermit>) {
        // Fails only when the push side has ended, which is after the last flush.
        let _ = self.parcels.send(Parcel { message, pace, _budget: budget.map(Arc::new) });
    }
}

/// What a message takes of a budget: its size, but never more than all of it.
fn cost(message: &Message, all: usize) -> u32 {
    u32::try_from((message.payload().len() + OVERHEAD_BYTES).min(all)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn output(bytes: usize) -> Message {
        Reply::Output { stream: OutputStream::Stdout, bytes: vec![0; bytes].into() }.into_message()
    }

    #[tokio::test]
    async fn output_waits_for_room_and_answers_do_not() {
        let (outbox, mut queue) = Outbox::new();
        let mut sent = 0;
        while outbox.send(output(64 * 1024)).now_or_never().is_some() {
            sent += 1;
        }
        assert_eq!(sent, OUTPUT_BYTES / (64 * 1024 + OVERHEAD_BYTES));
        outbox.answer(Reply::Completion(vec![]));
        assert!(outbox.try_log(Bytes::from_static(b"line\n")));
        assert!(!outbox.try_log(vec![0; LOG_BYTES].into()), "no room beside the line before");
        drop(queue.parcels.recv().await);
        assert!(outbox.send(output(64 * 1024)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn no_op_is_taken_while_answers_pile_up() {
        let (outbox, mut queue) = Outbox::new();
        assert!(outbox.room_for_answers().now_or_never().is_some());
        for _ in 0..ANSWER_BYTES / OVERHEAD_BYTES {
            outbox.answer(Reply::Status { started_at: 1.0 });
        }
        assert!(outbox.room_for_answers().now_or_never().is_none());
        while queue.parcels.try_recv().is_ok() {}
        assert!(outbox.room_for_answers().now_or_never().is_some());
    }
}
