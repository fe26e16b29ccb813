//! The PUB port for terminal output.
//!
//! ```text
//! connected ──handshake──▶ silent ◀──"\0"── subscribed ──takes nothing for STALL──▶ stalled
//!                            └────"\1"───────▶  ▲ │                                   │
//!                                               │ └ each chunk, in order              │ the oldest chunks
//!                                               └──────── takes something ────────────┘ are dropped
//! ```
//!
//! A slow subscriber slows the terminal down, as a slow line does, so that it sees all output. A stalled subscriber
//! delays the others for at most [`STALL`] and sees the latest output when it resumes. Without a subscriber the output
//! is discarded.
//!
//! ZMTP is implemented here rather than with the PUB socket of the `zeromq` crate, which allocates a queue of 4 MB
//! before the first message, silently drops messages beyond 100,000 entries, and stores every subscription of a peer
//! whatever its length.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, tcp};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::eviction::ConnectionUse;
use super::frames::{self, FrameError, SubscriberFrame};
use super::listener::{self, ConnectionEnd};
use crate::error::FatalError;
use crate::tasks::TaskGroup;
use crate::zmtp;

/// Chunks queued for one subscriber. Subscribers share the chunks, so this also bounds the total.
const QUEUED_CHUNKS: usize = 32;

/// How long a subscriber may block before the others stop waiting for it.
const STALL: Duration = Duration::from_secs(1);

/// A peer must complete the handshake within this time.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Read size; a subscription is a few bytes.
const READ_BYTES: usize = 1024;

/// Binds the port and lets peers subscribe.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn listen(name: &'static str, port: u16, tasks: &TaskGroup) -> Result<Publisher, FatalError> {
    let listener = listener::bind(name, port).await?;
    let publisher = Publisher::default();
    let register = publisher.clone();
    listener::accept(listener, tasks, move |stream, _, progress| {
        let register = register.clone();
        async move { serve(stream, &register, &progress).await.into() }
    });
    Ok(publisher)
}

/// Sends to all subscribers.
#[derive(Clone, Default)]
pub(crate) struct Publisher {
    subscribers: Arc<Mutex<Vec<Arc<Backlog>>>>,
}

impl Publisher {
    /// Sends a chunk; returns when there is space for the next one, or when every full subscriber has stalled.
    pub(crate) async fn publish(&self, chunk: Bytes) {
        let subscribers = lock(&self.subscribers).clone();
        let deadline = Instant::now() + STALL;
        for subscriber in subscribers {
            if timeout_at(deadline, subscriber.room()).await.is_err() {
                tracing::debug!("a terminal subscriber stalled");
                lock(&subscriber.state).stalled = true;
            }
            subscriber.push(chunk.clone());
        }
    }

    fn add(&self, subscriber: &Arc<Backlog>) {
        lock(&self.subscribers).push(Arc::clone(subscriber));
    }

    fn remove(&self, subscriber: &Arc<Backlog>) {
        lock(&self.subscribers).retain(|other| !Arc::ptr_eq(other, subscriber));
        // Wakes a publisher that waits for space here.
        lock(&subscriber.state).chunks.clear();
        subscriber.taken.notify_one();
    }
}

/// Chunks that one subscriber has not received yet.
#[derive(Default)]
struct Backlog {
    state: Mutex<BacklogState>,
    pushed: Notify,
    taken: Notify,
}

#[derive(Default)]
struct BacklogState {
    chunks: VecDeque<Bytes>,
    /// The answer to the last PING.
    pong: Option<BytesMut>,
    stalled: bool,
}

impl Backlog {
    /// Waits until there is space, unless the subscriber has stalled.
    async fn room(&self) {
        loop {
            {
                let state = lock(&self.state);
                if state.stalled || state.chunks.len() < QUEUED_CHUNKS {
                    return;
                }
            }
            self.taken.notified().await;
        }
    }

    fn push(&self, chunk: Bytes) {
        let mut state = lock(&self.state);
        if state.chunks.len() >= QUEUED_CHUNKS {
            state.chunks.pop_front();
        }
        state.chunks.push_back(chunk);
        self.pushed.notify_one();
    }

    fn set_pong(&self, pong: BytesMut) {
        lock(&self.state).pong = Some(pong);
        self.pushed.notify_one();
    }

    /// Removes what is to be sent next: a PONG, or the oldest chunk as a message.
    async fn next(&self) -> BytesMut {
        loop {
            {
                let mut state = lock(&self.state);
                if let Some(pong) = state.pong.take() {
                    return pong;
                }
                if let Some(chunk) = state.chunks.pop_front() {
                    state.stalled = false;
                    self.taken.notify_one();
                    let mut message = BytesMut::new();
                    zmtp::put_frame(&mut message, 0, &chunk);
                    return message;
                }
            }
            self.pushed.notified().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a subscriber's connection ended.
#[derive(Debug, thiserror::Error)]
enum SubscriberGone {
    #[error("disconnected")]
    Left,
    #[error("no ZMTP handshake within {HANDSHAKE_DEADLINE:?}")]
    Late,
    #[error(transparent)]
    Protocol(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<SubscriberGone> for ConnectionEnd {
    fn from(ended: SubscriberGone) -> Self {
        let is_ordinary = matches!(ended, SubscriberGone::Left | SubscriberGone::Io(_));
        Self::by(&ended, is_ordinary)
    }
}

async fn serve(stream: TcpStream, publisher: &Publisher, progress: &ConnectionUse) -> SubscriberGone {
    let (from_peer, mut to_peer) = stream.into_split();
    let mut inbound = SubscriberReader { peer: from_peer, buffer: BytesMut::new() };
    match timeout(HANDSHAKE_DEADLINE, shake_hands(&mut inbound, &mut to_peer)).await {
        Ok(Ok(())) => {}
        Ok(Err(ended)) => return ended,
        Err(_) => return SubscriberGone::Late,
    }
    progress.handshake_done();
    let backlog = Arc::new(Backlog::default());
    let ended = tokio::select! {
        ended = follow_subscriptions(&mut inbound, publisher, &backlog) => ended,
        error = write(&mut to_peer, &backlog, progress) => error.into(),
    };
    publisher.remove(&backlog);
    ended
}

async fn shake_hands(inbound: &mut SubscriberReader, to_peer: &mut tcp::OwnedWriteHalf) -> Result<(), SubscriberGone> {
    to_peer.write_all(&zmtp::introduction("PUB", "")).await?;
    while !frames::take_greeting(&mut inbound.buffer)? {
        inbound.fill().await?;
    }
    let ready = inbound.next().await?;
    Ok(ready.check_ready(&["SUB", "XSUB"])?)
}

/// Counts subscriptions to everything. A terminal has no topics: a subscription to one receives nothing.
async fn follow_subscriptions(
    inbound: &mut SubscriberReader,
    publisher: &Publisher,
    backlog: &Arc<Backlog>,
) -> SubscriberGone {
    let mut subscriptions = 0_u32;
    loop {
        let frame = match inbound.next().await {
            Ok(frame) => frame,
            Err(ended) => return ended,
        };
        if let Some(pong) = frame.pong() {
            backlog.set_pong(pong);
            continue;
        }
        match frame.message() {
            Some([1]) => {
                subscriptions = subscriptions.saturating_add(1);
                if subscriptions == 1 {
                    publisher.add(backlog);
                }
            }
            Some([0]) if subscriptions > 0 => {
                subscriptions -= 1;
                if subscriptions == 0 {
                    publisher.remove(backlog);
                }
            }
            _ => tracing::debug!("ignoring an unexpected message from a terminal subscriber"),
        }
    }
}

/// Writes chunks until a write fails.
async fn write(peer: &mut tcp::OwnedWriteHalf, backlog: &Backlog, progress: &ConnectionUse) -> io::Error {
    loop {
        if let Err(error) = peer.write_all(&backlog.next().await).await {
            return error;
        }
        progress.message_passed();
    }
}

/// Reads frames from a subscriber.
struct SubscriberReader {
    peer: tcp::OwnedReadHalf,
    buffer: BytesMut,
}

impl SubscriberReader {
    async fn next(&mut self) -> Result<SubscriberFrame, SubscriberGone> {
        loop {
            if let Some(frame) = frames::take_frame(&mut self.buffer)? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), SubscriberGone> {
        self.buffer.reserve(READ_BYTES);
        if self.peer.read_buf(&mut self.buffer).await? == 0 { Err(SubscriberGone::Left) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn subscriber(publisher: &Publisher) -> Arc<Backlog> {
        let backlog = Arc::new(Backlog::default());
        publisher.add(&backlog);
        backlog
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_nothing_holds_the_others_up_once_and_then_sees_what_came_last() {
        let publisher = Publisher::default();
        let (stalled, reading) = (subscriber(&publisher), subscriber(&publisher));
        let started = Instant::now();
        let last = 10 * QUEUED_CHUNKS;
        for number in 1..=last {
            publisher.publish(Bytes::from(number.to_string())).await;
            assert_eq!(reading.next().await[2..], *number.to_string().as_bytes());
        }
        assert!(started.elapsed() < 2 * STALL, "{:?}", started.elapsed());
        for number in last - QUEUED_CHUNKS + 1..=last {
            assert_eq!(stalled.next().await[2..], *number.to_string().as_bytes());
        }
        assert!(!lock(&stalled.state).stalled);
    }

    #[tokio::test]
    async fn publishing_waits_for_a_slow_subscriber_until_it_disconnects() {
        let publisher = Publisher::default();
        let publish = || publisher.publish(Bytes::from_static(b"x"));
        (0..1000).for_each(|_| assert!(publish().now_or_never().is_some()));
        let slow = subscriber(&publisher);
        (0..QUEUED_CHUNKS).for_each(|_| assert!(publish().now_or_never().is_some()));
        let mut next = Box::pin(publish());
        assert!((&mut next).now_or_never().is_none());
        slow.next().await;
        assert!(next.now_or_never().is_some());
        let mut next = Box::pin(publish());
        assert!((&mut next).now_or_never().is_none());
        publisher.remove(&slow);
        assert!(next.now_or_never().is_some());
    }
}
