//! The port where replies go out.
//!
//! One task owns the [`Ledger`]: which replies wait, which are in flight on which link. Links come and
//! go in tasks of their own, and say so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use zeromq::{PushSocket, SocketSend as _, ZmqMessage};

use super::ledger::{Ledger, LinkId, Next};
use super::link::{self, Link, LinkError, report};
use super::listener;
use super::outbox::{Flush, Parcel, Queue};
use super::relay::{Progress, Role};
use crate::error::Critical;
use crate::tasks::TaskGroup;

/// Link events wait only while the owner hands over a reply.
const QUEUED_LINK_EVENTS: usize = 16;

/// During a flush, between two looks at what the peer's kernel has acknowledged: it tells nobody.
const FLUSH_POLL: Duration = Duration::from_millis(5);

/// During a flush, how long a peer that is not there may take to come back.
const RECONNECT_GRACE: Duration = Duration::from_millis(500);

/// Binds the port and sends what comes out of `queue` to whoever connects.
///
/// # Errors
/// When the port cannot be bound.
pub async fn listen(port: u16, queue: Queue, tasks: &TaskGroup) -> Result<(), Critical> {
    let listener = listener::bind("replout", port).await?;
    let (link_events, events) = mpsc::channel(QUEUED_LINK_EVENTS);
    let progressed = Arc::new(Notify::new());
    let pusher = Pusher {
        ledger: Ledger::new(),
        links: HashMap::new(),
        flushes: Vec::new(),
        progressed: Arc::clone(&progressed),
    };
    tasks.spawn("push", pusher.run(queue, events));
    let last_id = Arc::new(AtomicU64::new(0));
    listener::accept(listener, tasks, move |stream, peer| {
        let id = LinkId(last_id.fetch_add(1, Ordering::Relaxed));
        let (link_events, progressed) = (link_events.clone(), Arc::clone(&progressed));
        async move { report(peer, serve(id, stream, link_events, progressed).await) }
    });
    Ok(())
}

enum LinkEvent {
    Up(LinkId, PushSocket, Arc<Progress>),
    Down(LinkId),
}

async fn serve(
    id: LinkId,
    stream: TcpStream,
    events: mpsc::Sender<LinkEvent>,
    progressed: Arc<Notify>,
) -> Result<(), LinkError> {
    let progress = Progress::new(&stream, progressed)?;
    let Link { socket, events: mut own_events, relay } =
        link::open::<PushSocket>(stream, Role::Push, Some(Arc::clone(&progress))).await?;
    let _ = events.send(LinkEvent::Up(id, socket, progress)).await;
    let ended = tokio::select! {
        ended = relay => ended.map_err(LinkError::from),
        () = link::intrusion(&mut own_events) => Err(LinkError::Intruder),
    };
    let _ = events.send(LinkEvent::Down(id)).await;
    ended
}

enum Event {
    Parcel(Parcel),
    Link(LinkEvent),
    Flush(Flush),
    Progress,
    Due,
    Closed,
}

struct Pusher {
    ledger: Ledger<Parcel>,
    links: HashMap<LinkId, (PushSocket, Arc<Progress>)>,
    /// Each with the moment from which a peer that is not there is not waited for.
    flushes: Vec<(Flush, Instant)>,
    progressed: Arc<Notify>,
}

impl Pusher {
    async fn run(mut self, mut queue: Queue, mut links: mpsc::Receiver<LinkEvent>) {
        loop {
            let due = self.send_what_can_be_sent().await;
            self.answer_flushes();
            let due = if self.flushes.is_empty() { due } else { Some(Instant::now() + FLUSH_POLL) };
            let event = tokio::select! {
                parcel = queue.parcels.recv() => parcel.map_or(Event::Closed, Event::Parcel),
                Some(event) = links.recv() => Event::Link(event),
                Some(flush) = queue.flushes.recv() => Event::Flush(flush),
                () = self.progressed.notified() => Event::Progress,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Event::Due,
            };
            match event {
                Event::Parcel(parcel) => self.ledger.push(parcel),
                Event::Link(LinkEvent::Up(id, socket, progress)) => {
                    self.ledger.link_up(id, Instant::now());
                    self.links.insert(id, (socket, progress));
                }
                Event::Link(LinkEvent::Down(id)) => {
                    self.note_progress();
                    self.ledger.link_down(id);
                    self.links.remove(&id);
                }
                Event::Flush(flush) => {
                    // What was sent before the flush is in the queue by now.
                    while let Ok(parcel) = queue.parcels.try_recv() {
                        self.ledger.push(parcel);
                    }
                    self.flushes.push((flush, Instant::now() + RECONNECT_GRACE));
                }
                Event::Progress | Event::Due => self.note_progress(),
                Event::Closed => return,
            }
        }
    }

    /// Hands over what the ledger allows; returns when it wants to be asked again.
    async fn send_what_can_be_sent(&mut self) -> Option<Instant> {
        loop {
            match self.ledger.next(Instant::now()) {
                Next::Blocked => return None,
                Next::WaitUntil(due) => return Some(due),
                Next::Close(id) => {
                    tracing::warn!(
                        "a peer takes no replies while a newer one waits for them; its connection is closed"
                    );
                    if let Some((_, progress)) = self.links.get(&id) {
                        progress.close_connection();
                    }
                }
                Next::Send(id, parcel) => {
                    let Some((socket, _)) = self.links.get_mut(&id) else { continue };
                    // An error means that the peer is gone; its relay says so too, and the ledger
                    // then takes back what was in flight.
                    if let Err(error) = socket.send(frames(parcel)).await {
                        tracing::debug!("a peer has gone: {error}");
                    }
                }
            }
        }
    }

    fn note_progress(&mut self) {
        let now = Instant::now();
        for (id, (_, progress)) in &self.links {
            self.ledger.relayed(*id, progress.relayed_bytes(), now);
        }
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let sent = self.ledger.is_settled() && self.links.values().all(|(_, progress)| progress.is_acknowledged());
        let (alone, now) = (!self.ledger.has_link(), Instant::now());
        for (flush, patience) in std::mem::take(&mut self.flushes) {
            if sent || (alone && now >= patience) {
                let _ = flush.send(sent);
            } else {
                self.flushes.push((flush, patience));
            }
        }
    }
}

fn frames(parcel: Parcel) -> ZmqMessage {
    let [kind, payload]: [Bytes; 2] = parcel.message.into_frames();
    let mut message = ZmqMessage::from(kind);
    message.push_back(payload);
    message
}
