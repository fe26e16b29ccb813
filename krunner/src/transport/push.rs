//! The PUSH port for replies.
//!
//! One task owns the [`ReplyQueue`], which tracks waiting and in-flight replies. Each connection has its own task,
//! which reports when its link comes up and goes down.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::eviction::ConnectionUse;
use super::listener::{self, end_of_link};
use super::reply_queue::{LinkId, NextAction, ReplyQueue};
use super::reply_sender::{Flush, QueuedReply, ReplyReceiver};
use super::socket::{self, LinkError, MessageSender};
use crate::error::FatalError;
use crate::tasks::TaskGroup;

/// Link events queue up only while the owner sends a reply.
const QUEUED_LINK_EVENTS: usize = 16;

/// During a flush, how often to poll what the peer's kernel has acknowledged; there is no notification for it.
const FLUSH_POLL: Duration = Duration::from_millis(5);

/// During a flush, how long to wait for a disconnected peer to reconnect.
const RECONNECT_GRACE: Duration = Duration::from_millis(500);

/// Binds the port and sends the replies in `queue` to the connected peers.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn listen(port: u16, queue: ReplyReceiver, tasks: &TaskGroup) -> Result<(), FatalError> {
    let listener = listener::bind("replout", port).await?;
    let (link_events, events) = mpsc::channel(QUEUED_LINK_EVENTS);
    let progressed = Arc::new(Notify::new());
    let pusher = Pusher {
        queue: ReplyQueue::new(),
        links: HashMap::new(),
        flushes: Vec::new(),
        progressed: Arc::clone(&progressed),
    };
    tasks.spawn("push", pusher.run(queue, events));
    let last_id = Arc::new(AtomicU64::new(0));
    listener::accept(listener, tasks, move |stream, peer, progress| {
        let id = LinkId(last_id.fetch_add(1, Ordering::Relaxed));
        let (link_events, progressed) = (link_events.clone(), Arc::clone(&progressed));
        async move { end_of_link(serve(id, (stream, peer), progress, link_events, progressed).await) }
    });
    Ok(())
}

enum LinkEvent {
    Up(LinkId, ReplyLink),
    Down(LinkId),
}

/// A connection that replies are sent on.
struct ReplyLink {
    messages: MessageSender,
    peer: SocketAddr,
    progress: ConnectionUse,
}

async fn serve(
    id: LinkId,
    (stream, peer): (TcpStream, SocketAddr),
    progress: ConnectionUse,
    events: mpsc::Sender<LinkEvent>,
    progressed: Arc<Notify>,
) -> Result<(), LinkError> {
    let (messages, relay) = socket::open_sender(stream, progressed).await?;
    progress.handshake_done();
    let _ = events.send(LinkEvent::Up(id, ReplyLink { messages, peer, progress })).await;
    let ended = relay.await;
    let _ = events.send(LinkEvent::Down(id)).await;
    ended
}

enum PushEvent {
    QueuedReply(QueuedReply),
    Link(LinkEvent),
    Flush(Flush),
    SendProgress,
    Due,
    Closed,
}

struct Pusher {
    queue: ReplyQueue<QueuedReply>,
    links: HashMap<LinkId, ReplyLink>,
    /// Each with the time at which it stops waiting for a peer to connect.
    flushes: Vec<(Flush, Instant)>,
    progressed: Arc<Notify>,
}

impl Pusher {
    async fn run(mut self, mut queue: ReplyReceiver, mut links: mpsc::Receiver<LinkEvent>) {
        loop {
            let due = self.send_what_can_be_sent().await;
            self.answer_flushes();
            let due = if self.flushes.is_empty() { due } else { Some(Instant::now() + FLUSH_POLL) };
            let event = tokio::select! {
                reply = queue.replies.recv() => reply.map_or(PushEvent::Closed, PushEvent::QueuedReply),
                Some(event) = links.recv() => PushEvent::Link(event),
                Some(flush) = queue.flushes.recv() => PushEvent::Flush(flush),
                () = self.progressed.notified() => PushEvent::SendProgress,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => PushEvent::Due,
            };
            match event {
                PushEvent::QueuedReply(reply) => self.queue.push(reply),
                PushEvent::Link(LinkEvent::Up(id, link)) => {
                    self.queue.link_up(id, Instant::now());
                    self.links.insert(id, link);
                }
                PushEvent::Link(LinkEvent::Down(id)) => {
                    self.note_progress();
                    self.queue.link_down(id);
                    self.links.remove(&id);
                }
                PushEvent::Flush(flush) => {
                    // Replies sent before the flush are in the channel by now.
                    while let Ok(reply) = queue.replies.try_recv() {
                        self.queue.push(reply);
                    }
                    self.flushes.push((flush, Instant::now() + RECONNECT_GRACE));
                }
                PushEvent::SendProgress | PushEvent::Due => self.note_progress(),
                PushEvent::Closed => return,
            }
        }
    }

    /// Sends what the queue allows; returns when to ask it again.
    async fn send_what_can_be_sent(&mut self) -> Option<Instant> {
        loop {
            match self.queue.next(Instant::now()) {
                NextAction::Blocked => return None,
                NextAction::WaitUntil(due) => return Some(due),
                NextAction::Close(id) => {
                    if let Some(link) = self.links.get(&id) {
                        let (peer, unsent) = (link.peer, self.queue.in_flight(id));
                        tracing::warn!(
                            "closing a stalled connection: {peer} does not read replies while a newer peer waits; \
                             {unsent} replies that it did not receive go to the newer one"
                        );
                        link.messages.close_connection();
                    }
                }
                NextAction::Send(id, reply) => {
                    let Some(link) = self.links.get_mut(&id) else { continue };
                    // An error means that the peer disconnected. Its relay reports that too, and the queue then takes
                    // back the replies in flight.
                    link.progress.message_passed();
                    if let Err(error) = link.messages.send(reply.message.into_frames()).await {
                        tracing::debug!("peer disconnected: {error}");
                    }
                }
            }
        }
    }

    fn note_progress(&mut self) {
        let now = Instant::now();
        for (id, link) in &self.links {
            self.queue.relayed(*id, link.messages.relayed_bytes(), now);
        }
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let sent = self.queue.is_settled() && self.links.values().all(|link| link.messages.is_acknowledged());
        let (alone, now) = (!self.queue.has_link(), Instant::now());
        for (flush, patience) in std::mem::take(&mut self.flushes) {
            if sent || (alone && now >= patience) {
                let _ = flush.send(sent);
            } else {
                self.flushes.push((flush, patience));
            }
        }
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
