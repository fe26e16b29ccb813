//! Decides which connection gets each reply, and which replies must be sent again.
//!
//! ```text
//! push ──▶ waiting ──next──▶ in flight on a link ──relayed──▶ gone
//!             ▲                      │ link down
//!             └──────────────────────┘ (at the front, in order)
//! ```
//!
//! Replies go to the newest link, so that a restarted agent gets all of them even while its old connection lingers.
//! When the newest link goes down, the previous one takes over. Order holds across links: while an older link has
//! replies in flight, the newer one gets none. Such an older link is closed after [`STALL`] without progress, after
//! [`DRAIN`] in any case, which requeues its replies; it does not matter whether others wait, because those in flight
//! hold the budget without which nothing else is produced. A link gets at most [`WINDOW_BYTES`] beyond what its TCP
//! socket has accepted. A *spaced* reply is handed over at least [`FINISHED_SPACING`] after the last reply that starts
//! the spacing reached the socket. Meanwhile, replies that *may overtake* pass it; otherwise all keep their order.
//!
//! Pure: the clock is a parameter, links are numbers.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Enough to keep a link busy (1 GB/s for 1 ms), and small compared with the output budget.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// Also bounds the queue of the `zeromq` socket, so its `send` never blocks (it would at 100,000 messages).
const WINDOW_ENTRIES: usize = 16 * 1024;

/// How long a newer link waits for an older one to drain.
const STALL: Duration = Duration::from_secs(1);

/// How long a newer link waits for an older one that makes some progress.
const DRAIN: Duration = Duration::from_secs(5);

/// Agents since 25.12 lose a `finished` that arrives right behind another.
pub(super) const FINISHED_SPACING: Duration = Duration::from_millis(10);

/// A connection, numbered in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkId(pub(super) u64);

/// What the queue needs to know about a message.
pub(super) trait QueueItem: Clone {
    /// Length on the wire, including framing.
    fn wire_bytes(&self) -> u64;
    /// Whether spaced replies must keep their distance from this one.
    fn starts_spacing(&self) -> bool;
    /// Whether this reply must keep its distance from the previous one that starts the spacing.
    fn needs_spacing(&self) -> bool;
    /// Whether this reply may pass those before it that wait for their distance.
    fn may_overtake(&self) -> bool;
}

/// A reply with its place in the order of arrival.
#[derive(Debug)]
struct Numbered<T> {
    number: u64,
    entry: T,
}

/// What the owner of the queue does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextAction<T> {
    /// Send this reply on the link.
    Send(LinkId, T),
    /// Close this link because a newer one waits for it.
    Close(LinkId),
    /// Wait until this time or the next change.
    WaitUntil(Instant),
    /// Wait for the next change.
    Blocked,
}

#[derive(Debug)]
struct LinkBacklog<T> {
    id: LinkId,
    /// Each with the value of `relayed_bytes` at which it has reached the socket.
    in_flight: VecDeque<(u64, Numbered<T>)>,
    handed_bytes: u64,
    relayed_bytes: u64,
    up_since: Instant,
    /// When the link came up or last accepted bytes.
    last_progress: Instant,
    closing: bool,
}

/// Where a reply waits.
#[derive(Debug, Clone, Copy)]
enum Lane {
    Waiting,
    Overtaking,
}

/// All replies that have not reached a TCP socket yet.
#[derive(Debug)]
pub(super) struct ReplyQueue<T> {
    waiting: VecDeque<Numbered<T>>,
    /// Those that may overtake, in their own order.
    overtaking: VecDeque<Numbered<T>>,
    next_number: u64,
    links: Vec<LinkBacklog<T>>,
    last_spaced: Option<Instant>,
}

impl<T: QueueItem> ReplyQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            overtaking: VecDeque::new(),
            next_number: 0,
            links: Vec::new(),
            last_spaced: None,
        }
    }

    /// Appends a reply.
    pub(super) fn push(&mut self, entry: T) {
        let number = self.next_number;
        self.next_number += 1;
        self.lane(&entry).push_back(Numbered { number, entry });
    }

    fn lane(&mut self, entry: &T) -> &mut VecDeque<Numbered<T>> {
        if entry.may_overtake() { &mut self.overtaking } else { &mut self.waiting }
    }

    /// Adds the link of a new connection.
    pub(super) fn link_up(&mut self, id: LinkId, now: Instant) {
        self.links.push(LinkBacklog {
            id,
            in_flight: VecDeque::new(),
            handed_bytes: 0,
            relayed_bytes: 0,
            up_since: now,
            last_progress: now,
            closing: false,
        });
        self.links.sort_by_key(|link| link.id);
    }

    /// Removes a link and requeues the replies that did not reach its socket.
    pub(super) fn link_down(&mut self, id: LinkId) {
        let Some(at) = self.links.iter().position(|link| link.id == id) else { return };
        for (_, entry) in self.links.remove(at).in_flight.into_iter().rev() {
            self.lane(&entry.entry).push_front(entry);
        }
    }

    /// How many replies that were handed to this link did not reach its socket.
    pub(super) fn in_flight(&self, id: LinkId) -> usize {
        self.links.iter().find(|link| link.id == id).map_or(0, |link| link.in_flight.len())
    }

    /// Records that the socket of this link has accepted `bytes` in total.
    pub(super) fn relayed(&mut self, id: LinkId, bytes: u64, now: Instant) {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return };
        if bytes > link.relayed_bytes {
            (link.relayed_bytes, link.last_progress) = (bytes, now);
        }
        while let Some((end, _)) = link.in_flight.front()
            && *end <= bytes
        {
            if let Some((_, entry)) = link.in_flight.pop_front()
                && entry.entry.starts_spacing()
            {
                self.last_spaced = Some(now);
            }
        }
    }

    /// Returns the next action; a reply that is returned counts as in flight.
    pub(super) fn next(&mut self, now: Instant) -> NextAction<T> {
        if let Some(wait) = self.drain_older_links(now) {
            return wait;
        }
        let Some(newest) = self.links.last() else { return NextAction::Blocked };
        // A relay may report more than was handed over: the link is about to fail, and nothing may wait for it.
        let window_full = newest.handed_bytes.saturating_sub(newest.relayed_bytes) >= WINDOW_BYTES;
        if window_full || newest.in_flight.len() >= WINDOW_ENTRIES {
            return NextAction::Blocked;
        }
        let spacing = self.spacing(newest, now);
        match (self.first_in_order(), spacing) {
            (Lane::Waiting, None) => self.send(Lane::Waiting),
            (Lane::Waiting, Some(wait)) if self.overtaking.is_empty() => wait,
            (Lane::Waiting | Lane::Overtaking, _) => self.send(Lane::Overtaking),
        }
    }

    /// What to do about an older link with replies in flight; `None` if there is none.
    fn drain_older_links(&mut self, now: Instant) -> Option<NextAction<T>> {
        let (newest, older) = self.links.split_last_mut()?;
        let busy = older.iter_mut().find(|link| !link.in_flight.is_empty())?;
        let stalled_at = busy.last_progress.max(newest.up_since) + STALL;
        let due = stalled_at.min(newest.up_since + DRAIN);
        Some(match (busy.closing, due <= now) {
            (true, _) => NextAction::Blocked,
            (false, false) => NextAction::WaitUntil(due),
            (false, true) => {
                busy.closing = true;
                NextAction::Close(busy.id)
            }
        })
    }

    /// The lane with the oldest reply.
    fn first_in_order(&self) -> Lane {
        match (self.waiting.front(), self.overtaking.front()) {
            (Some(waiting), Some(overtaking)) if overtaking.number < waiting.number => Lane::Overtaking,
            (None, Some(_)) => Lane::Overtaking,
            _ => Lane::Waiting,
        }
    }

    /// What the first reply in order waits for, if it is a spaced one that is not due.
    fn spacing(&self, newest: &LinkBacklog<T>, now: Instant) -> Option<NextAction<T>> {
        self.waiting.front().filter(|first| first.entry.needs_spacing())?;
        if newest.in_flight.iter().any(|(_, entry)| entry.entry.starts_spacing()) {
            return Some(NextAction::Blocked);
        }
        let due = self.last_spaced.map(|last| last + FINISHED_SPACING).filter(|due| *due > now);
        due.map(NextAction::WaitUntil)
    }

    /// Hands the first reply of a lane to the newest link.
    fn send(&mut self, lane: Lane) -> NextAction<T> {
        let lane = match lane {
            Lane::Waiting => &mut self.waiting,
            Lane::Overtaking => &mut self.overtaking,
        };
        let (Some(first), Some(newest)) = (lane.pop_front(), self.links.last_mut()) else { return NextAction::Blocked };
        let entry = first.entry.clone();
        newest.handed_bytes += entry.wire_bytes();
        newest.in_flight.push_back((newest.handed_bytes, first));
        NextAction::Send(newest.id, entry)
    }

    /// Whether every reply has reached a TCP socket.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.overtaking.is_empty() && self.links.iter().all(|link| link.in_flight.is_empty())
    }

    /// Whether a peer is connected.
    pub(super) fn has_link(&self) -> bool {
        !self.links.is_empty()
    }
}

#[cfg(test)]
#[path = "reply_queue_tests.rs"]
mod tests;
