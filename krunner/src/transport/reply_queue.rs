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
//! replies in flight, the newer one gets none. An older link without progress for [`STALL`] is closed, which requeues
//! its replies. A link gets at most [`WINDOW_BYTES`] beyond what its TCP socket has accepted. A *spaced* reply is
//! handed over at least [`FINISHED_SPACING`] after the last reply that starts the spacing reached the socket.
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
    in_flight: VecDeque<(u64, T)>,
    handed_bytes: u64,
    relayed_bytes: u64,
    /// When the link came up or last accepted bytes.
    last_progress: Instant,
    closing: bool,
}

/// All replies that have not reached a TCP socket yet.
#[derive(Debug)]
pub(super) struct ReplyQueue<T> {
    waiting: VecDeque<T>,
    links: Vec<LinkBacklog<T>>,
    last_spaced: Option<Instant>,
}

impl<T: QueueItem> ReplyQueue<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), links: Vec::new(), last_spaced: None }
    }

    /// Appends a reply.
    pub(super) fn push(&mut self, entry: T) {
        self.waiting.push_back(entry);
    }

    /// Adds the link of a new connection.
    pub(super) fn link_up(&mut self, id: LinkId, now: Instant) {
        self.links.push(LinkBacklog {
            id,
            in_flight: VecDeque::new(),
            handed_bytes: 0,
            relayed_bytes: 0,
            last_progress: now,
            closing: false,
        });
        self.links.sort_by_key(|link| link.id);
    }

    /// Removes a link and requeues the replies that did not reach its socket.
    pub(super) fn link_down(&mut self, id: LinkId) {
        let Some(at) = self.links.iter().position(|link| link.id == id) else { return };
        for (_, entry) in self.links.remove(at).in_flight.into_iter().rev() {
            self.waiting.push_front(entry);
        }
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
                && entry.starts_spacing()
            {
                self.last_spaced = Some(now);
            }
        }
    }

    /// Returns the next action; a reply that is returned counts as in flight.
    pub(super) fn next(&mut self, now: Instant) -> NextAction<T> {
        let Some(entry) = self.waiting.front() else { return NextAction::Blocked };
        let paced = entry.needs_spacing();
        let Some((newest, older)) = self.links.split_last_mut() else { return NextAction::Blocked };
        if let Some(busy) = older.iter_mut().find(|link| !link.in_flight.is_empty()) {
            let due = busy.last_progress.max(newest.last_progress) + STALL;
            return match (busy.closing, due <= now) {
                (true, _) => NextAction::Blocked,
                (false, false) => NextAction::WaitUntil(due),
                (false, true) => {
                    busy.closing = true;
                    NextAction::Close(busy.id)
                }
            };
        }
        if paced {
            if newest.in_flight.iter().any(|(_, entry)| entry.starts_spacing()) {
                return NextAction::Blocked;
            }
            if let Some(due) = self.last_spaced.map(|last| last + FINISHED_SPACING).filter(|due| *due > now) {
                return NextAction::WaitUntil(due);
            }
        }
        // A relay may report more than was handed over: the link is about to fail, and nothing may wait for it.
        let window_full = newest.handed_bytes.saturating_sub(newest.relayed_bytes) >= WINDOW_BYTES;
        if window_full || newest.in_flight.len() >= WINDOW_ENTRIES {
            return NextAction::Blocked;
        }
        let Some(entry) = self.waiting.pop_front() else { return NextAction::Blocked };
        newest.handed_bytes += entry.wire_bytes();
        newest.in_flight.push_back((newest.handed_bytes, entry.clone()));
        NextAction::Send(newest.id, entry)
    }

    /// Whether every reply has reached a TCP socket.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.links.iter().all(|link| link.in_flight.is_empty())
    }

    /// Whether a peer is connected.
    pub(super) fn has_link(&self) -> bool {
        !self.links.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Reply {
        number: u32,
        bytes: u64,
        paced: bool,
        alone: bool,
    }

    impl QueueItem for Reply {
        fn wire_bytes(&self) -> u64 {
            self.bytes
        }

        fn starts_spacing(&self) -> bool {
            self.paced || self.alone
        }

        fn needs_spacing(&self) -> bool {
            self.paced
        }
    }

    fn reply(number: u32) -> Reply {
        Reply { number, bytes: 10, paced: false, alone: false }
    }

    const A: LinkId = LinkId(1);
    const B: LinkId = LinkId(2);

    #[test]
    fn replies_wait_for_the_first_peer() {
        let now = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.push(reply(0));
        assert_eq!(queue.next(now), NextAction::Blocked);
        queue.link_up(A, now);
        assert_eq!(queue.next(now), NextAction::Send(A, reply(0)));
        assert!(!queue.is_settled());
        queue.relayed(A, 10, now);
        assert!(queue.is_settled());
    }

    #[test]
    fn the_newest_peer_gets_all_and_the_one_before_takes_over() {
        let now = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.link_up(A, now);
        queue.link_up(B, now);
        (0..3).for_each(|number| queue.push(reply(number)));
        assert_eq!(queue.next(now), NextAction::Send(B, reply(0)));
        assert_eq!(queue.next(now), NextAction::Send(B, reply(1)));
        queue.relayed(B, 15, now);
        queue.link_down(B);
        for number in 1..3 {
            assert_eq!(queue.next(now), NextAction::Send(A, reply(number)), "half a message is sent again whole");
        }
    }

    #[test]
    fn a_newer_peer_waits_for_the_older_but_not_for_ever() {
        let now = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.link_up(A, now);
        (0..2).for_each(|number| queue.push(reply(number)));
        assert_eq!(queue.next(now), NextAction::Send(A, reply(0)));
        queue.link_up(B, now);
        assert_eq!(queue.next(now), NextAction::WaitUntil(now + STALL));
        assert_eq!(queue.next(now + STALL), NextAction::Close(A));
        assert_eq!(queue.next(now + STALL), NextAction::Blocked, "until it is closed");
        queue.link_down(A);
        assert_eq!(queue.next(now + STALL), NextAction::Send(B, reply(0)));
    }

    #[test]
    fn a_stalled_peer_is_handed_a_window_and_no_more() {
        let now = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.link_up(A, now);
        (0..40).for_each(|number| queue.push(Reply { bytes: 64 * 1024, ..reply(number) }));
        let mut handed = 0;
        while let NextAction::Send(..) = queue.next(now) {
            handed += 1;
        }
        assert_eq!(handed, 16);
        queue.relayed(A, 64 * 1024, now);
        assert!(matches!(queue.next(now), NextAction::Send(A, Reply { number: 16, .. })));
    }

    #[test]
    fn a_link_that_relayed_more_than_it_got_still_takes_replies() {
        let now = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.link_up(A, now);
        queue.relayed(A, 1000, now);
        queue.push(reply(0));
        assert_eq!(queue.next(now), NextAction::Send(A, reply(0)));
    }

    #[test]
    fn paced_replies_keep_their_distance() {
        let start = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.link_up(A, start);
        for number in 0..2 {
            queue.push(Reply { paced: true, ..reply(number) });
        }
        assert!(matches!(queue.next(start), NextAction::Send(..)));
        assert_eq!(queue.next(start), NextAction::Blocked, "the first has not reached the socket");
        queue.relayed(A, 10, start);
        assert_eq!(queue.next(start), NextAction::WaitUntil(start + FINISHED_SPACING));
        assert!(matches!(queue.next(start + FINISHED_SPACING), NextAction::Send(..)));
    }

    #[test]
    fn one_that_only_sets_the_pace_does_not_wait() {
        let start = Instant::now();
        let mut queue = ReplyQueue::new();
        queue.link_up(A, start);
        queue.push(Reply { paced: true, ..reply(0) });
        queue.push(Reply { alone: true, ..reply(1) });
        queue.push(Reply { paced: true, ..reply(2) });
        assert!(matches!(queue.next(start), NextAction::Send(..)));
        assert!(matches!(queue.next(start), NextAction::Send(..)));
        assert_eq!(queue.next(start), NextAction::Blocked);
        queue.relayed(A, 20, start);
        assert_eq!(queue.next(start), NextAction::WaitUntil(start + FINISHED_SPACING));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(u64, bool),
        Up,
        Down(usize),
        Relay(usize, u64),
        NextAction,
        Tick,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (1u64..300_000, prop::bool::weighted(0.2)).prop_map(|(bytes, paced)| Act::Push(bytes, paced)),
            1 => Just(Act::Up),
            1 => (0usize..4).prop_map(Act::Down),
            3 => (0usize..4, 0u64..400_000).prop_map(|(link, bytes)| Act::Relay(link, bytes)),
            4 => Just(Act::NextAction),
            1 => Just(Act::Tick),
        ]
    }

    proptest! {
        /// Whatever happens, each reply reaches a socket whole exactly once and in order: a model counts
        /// the bytes that links pass on, as the relay does.
        #[test]
        fn nothing_is_lost_doubled_or_reordered(acts in prop::collection::vec(act(), 0..200)) {
            let mut now = Instant::now();
            let mut queue = ReplyQueue::new();
            let mut next_link = 0;
            let mut next_number = 0;
            // Links with the replies handed to them and the bytes that reached their sockets.
            let mut links: Vec<(LinkId, Vec<Reply>, u64)> = Vec::new();
            let mut arrived: Vec<u32> = Vec::new();
            let note = |replies: &[Reply], from: u64, to: u64, arrived: &mut Vec<u32>| {
                let mut end = 0;
                for reply in replies {
                    end += reply.bytes;
                    if end > from && end <= to {
                        arrived.push(reply.number);
                    }
                }
            };
            let finish = (0..400).flat_map(|_| [Act::Tick, Act::NextAction, Act::Relay(usize::MAX, u64::MAX)]);
            for act in acts.into_iter().chain([Act::Up]).chain(finish) {
                match act {
                    Act::Push(bytes, paced) => {
                        queue.push(Reply { number: next_number, bytes, paced, alone: false });
                        next_number += 1;
                    }
                    Act::Up => {
                        next_link += 1;
                        queue.link_up(LinkId(next_link), now);
                        links.push((LinkId(next_link), Vec::new(), 0));
                    }
                    Act::Down(at) if at < links.len() => {
                        let (id, ..) = links.remove(at);
                        queue.link_down(id);
                    }
                    Act::Relay(at, bytes) if !links.is_empty() => {
                        let targets: Vec<usize> = if at == usize::MAX { (0..links.len()).collect() } else { vec![at % links.len()] };
                        for at in targets {
                            let (id, replies, relayed) = &mut links[at];
                            let handed: u64 = replies.iter().map(|reply| reply.bytes).sum();
                            let to = relayed.saturating_add(bytes).min(handed);
                            note(replies, *relayed, to, &mut arrived);
                            *relayed = to;
                            queue.relayed(*id, to, now);
                        }
                    }
                    Act::NextAction => match queue.next(now) {
                        NextAction::Send(id, reply) => {
                            let newest = links.last_mut().unwrap();
                            prop_assert_eq!(newest.0, id);
                            newest.1.push(reply);
                        }
                        NextAction::Close(id) => {
                            prop_assert!(links.last().unwrap().0 != id, "the newest is never closed");
                            links.retain(|(known, ..)| *known != id);
                            queue.link_down(id);
                        }
                        NextAction::WaitUntil(_) | NextAction::Blocked => {}
                    },
                    Act::Tick => now += STALL / 4,
                    Act::Down(_) | Act::Relay(..) => {}
                }
            }
            prop_assert!(queue.is_settled());
            prop_assert_eq!(arrived, (0..next_number).collect::<Vec<_>>());
        }
    }
}
