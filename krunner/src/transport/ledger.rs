//! Which reply goes where, and which have to be sent again.
//!
//! ```text
//! push ──▶ waiting ──next──▶ in flight on a link ──relayed──▶ gone
//!             ▲                      │ link down
//!             └──────────────────────┘ (at the front, in order)
//! ```
//!
//! Replies go to the newest link, so that an agent that has restarted gets all of them even while its
//! old connection lingers; when the newest goes, the one before it takes over. Order holds across
//! links: while an older one has replies in flight, the newer gets none, and an older one that makes
//! no progress for [`STALL`] is to be closed, which gives back what it has. A link is handed at most
//! [`WINDOW_BYTES`] beyond what has reached its TCP socket. Replies that are *paced* keep [`PACE`]
//! between one that sets the pace reaching the socket and the next being handed over.
//!
//! Pure: the clock is a parameter, links are numbers.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Enough to keep a link busy (1 GB/s for 1 ms), and little beside the budget for output.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// Also bounds what waits in the `zeromq` socket, whose `send` waits at 100,000 messages: it never does.
const WINDOW_ENTRIES: usize = 16 * 1024;

/// How long a newer link waits for an older one to take what it was handed.
const STALL: Duration = Duration::from_secs(1);

/// Agents since 25.12 lose a `finished` that arrives right behind another.
pub(super) const PACE: Duration = Duration::from_millis(10);

/// A connection, numbered in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkId(pub(super) u64);

/// What the ledger has to know of a message.
pub(super) trait Entry: Clone {
    /// Its length on the wire, framing included.
    fn wire_bytes(&self) -> u64;
    /// Whether paced ones keep their distance from it.
    fn sets_pace(&self) -> bool;
    /// Whether it keeps its distance from those that set the pace.
    fn is_paced(&self) -> bool;
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// Hand this to the link.
    Send(LinkId, T),
    /// Close this link: it keeps a newer one waiting.
    Close(LinkId),
    /// Nothing before this moment, unless something changes.
    WaitUntil(Instant),
    /// Nothing until something changes.
    Blocked,
}

#[derive(Debug)]
struct Link<T> {
    id: LinkId,
    /// Each with the count of bytes at which it will have reached the socket.
    in_flight: VecDeque<(u64, T)>,
    handed_bytes: u64,
    relayed_bytes: u64,
    /// When it came up, or last took something.
    last_progress: Instant,
    closing: bool,
}

/// All replies that have not reached a socket.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    waiting: VecDeque<T>,
    /// Oldest first.
    links: Vec<Link<T>>,
    last_paced: Option<Instant>,
}

impl<T: Entry> Ledger<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), links: Vec::new(), last_paced: None }
    }

    /// Adds a reply at the end.
    pub(super) fn push(&mut self, entry: T) {
        self.waiting.push_back(entry);
    }

    /// A peer has connected.
    pub(super) fn link_up(&mut self, id: LinkId, now: Instant) {
        self.links.push(Link {
            id,
            in_flight: VecDeque::new(),
            handed_bytes: 0,
            relayed_bytes: 0,
            last_progress: now,
            closing: false,
        });
        self.links.sort_by_key(|link| link.id);
    }

    /// A peer has gone; what did not reach its socket waits again.
    pub(super) fn link_down(&mut self, id: LinkId) {
        let Some(at) = self.links.iter().position(|link| link.id == id) else { return };
        for (_, entry) in self.links.remove(at).in_flight.into_iter().rev() {
            self.waiting.push_front(entry);
        }
    }

    /// So many bytes have reached the socket of this link since it is up.
    pub(super) fn relayed(&mut self, id: LinkId, bytes: u64, now: Instant) {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return };
        if bytes > link.relayed_bytes {
            (link.relayed_bytes, link.last_progress) = (bytes, now);
        }
        while let Some((end, _)) = link.in_flight.front()
            && *end <= bytes
        {
            if let Some((_, entry)) = link.in_flight.pop_front()
                && entry.sets_pace()
            {
                self.last_paced = Some(now);
            }
        }
    }

    /// The next reply to hand over, which is in flight then.
    pub(super) fn next(&mut self, now: Instant) -> Next<T> {
        let Some(entry) = self.waiting.front() else { return Next::Blocked };
        let paced = entry.is_paced();
        let Some((newest, older)) = self.links.split_last_mut() else { return Next::Blocked };
        if let Some(busy) = older.iter_mut().find(|link| !link.in_flight.is_empty()) {
            let due = busy.last_progress.max(newest.last_progress) + STALL;
            return match (busy.closing, due <= now) {
                (true, _) => Next::Blocked,
                (false, false) => Next::WaitUntil(due),
                (false, true) => {
                    busy.closing = true;
                    Next::Close(busy.id)
                }
            };
        }
        if paced {
            if newest.in_flight.iter().any(|(_, entry)| entry.sets_pace()) {
                return Next::Blocked;
            }
            if let Some(due) = self.last_paced.map(|last| last + PACE).filter(|due| *due > now) {
                return Next::WaitUntil(due);
            }
        }
        let window_full = newest.handed_bytes - newest.relayed_bytes >= WINDOW_BYTES;
        if window_full || newest.in_flight.len() >= WINDOW_ENTRIES {
            return Next::Blocked;
        }
        let Some(entry) = self.waiting.pop_front() else { return Next::Blocked };
        newest.handed_bytes += entry.wire_bytes();
        newest.in_flight.push_back((newest.handed_bytes, entry.clone()));
        Next::Send(newest.id, entry)
    }

    /// Whether every reply has reached a socket.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.links.iter().all(|link| link.in_flight.is_empty())
    }

    /// Whether anybody is connected.
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

    impl Entry for Reply {
        fn wire_bytes(&self) -> u64 {
            self.bytes
        }

        fn sets_pace(&self) -> bool {
            self.paced || self.alone
        }

        fn is_paced(&self) -> bool {
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
        let mut ledger = Ledger::new();
        ledger.push(reply(0));
        assert_eq!(ledger.next(now), Next::Blocked);
        ledger.link_up(A, now);
        assert_eq!(ledger.next(now), Next::Send(A, reply(0)));
        assert!(!ledger.is_settled());
        ledger.relayed(A, 10, now);
        assert!(ledger.is_settled());
    }

    #[test]
    fn the_newest_peer_gets_all_and_the_one_before_takes_over() {
        let now = Instant::now();
        let mut ledger = Ledger::new();
        ledger.link_up(A, now);
        ledger.link_up(B, now);
        (0..3).for_each(|number| ledger.push(reply(number)));
        assert_eq!(ledger.next(now), Next::Send(B, reply(0)));
        assert_eq!(ledger.next(now), Next::Send(B, reply(1)));
        ledger.relayed(B, 15, now);
        ledger.link_down(B);
        for number in 1..3 {
            assert_eq!(ledger.next(now), Next::Send(A, reply(number)), "half a message is sent again whole");
        }
    }

    #[test]
    fn a_newer_peer_waits_for_the_older_but_not_for_ever() {
        let now = Instant::now();
        let mut ledger = Ledger::new();
        ledger.link_up(A, now);
        (0..2).for_each(|number| ledger.push(reply(number)));
        assert_eq!(ledger.next(now), Next::Send(A, reply(0)));
        ledger.link_up(B, now);
        assert_eq!(ledger.next(now), Next::WaitUntil(now + STALL));
        assert_eq!(ledger.next(now + STALL), Next::Close(A));
        assert_eq!(ledger.next(now + STALL), Next::Blocked, "until it is closed");
        ledger.link_down(A);
        assert_eq!(ledger.next(now + STALL), Next::Send(B, reply(0)));
    }

    #[test]
    fn a_stalled_peer_is_handed_a_window_and_no_more() {
        let now = Instant::now();
        let mut ledger = Ledger::new();
        ledger.link_up(A, now);
        (0..40).for_each(|number| ledger.push(Reply { bytes: 64 * 1024, ..reply(number) }));
        let mut handed = 0;
        while let Next::Send(..) = ledger.next(now) {
            handed += 1;
        }
        assert_eq!(handed, 16);
        ledger.relayed(A, 64 * 1024, now);
        assert!(matches!(ledger.next(now), Next::Send(A, Reply { number: 16, .. })));
    }

    #[test]
    fn paced_replies_keep_their_distance() {
        let start = Instant::now();
        let mut ledger = Ledger::new();
        ledger.link_up(A, start);
        for number in 0..2 {
            ledger.push(Reply { paced: true, ..reply(number) });
        }
        assert!(matches!(ledger.next(start), Next::Send(..)));
        assert_eq!(ledger.next(start), Next::Blocked, "the first has not reached the socket");
        ledger.relayed(A, 10, start);
        assert_eq!(ledger.next(start), Next::WaitUntil(start + PACE));
        assert!(matches!(ledger.next(start + PACE), Next::Send(..)));
    }

    #[test]
    fn one_that_only_sets_the_pace_does_not_wait() {
        let start = Instant::now();
        let mut ledger = Ledger::new();
        ledger.link_up(A, start);
        ledger.push(Reply { paced: true, ..reply(0) });
        ledger.push(Reply { alone: true, ..reply(1) });
        ledger.push(Reply { paced: true, ..reply(2) });
        assert!(matches!(ledger.next(start), Next::Send(..)));
        assert!(matches!(ledger.next(start), Next::Send(..)));
        assert_eq!(ledger.next(start), Next::Blocked);
        ledger.relayed(A, 20, start);
        assert_eq!(ledger.next(start), Next::WaitUntil(start + PACE));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(u64, bool),
        Up,
        Down(usize),
        Relay(usize, u64),
        Next,
        Tick,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (1u64..300_000, prop::bool::weighted(0.2)).prop_map(|(bytes, paced)| Act::Push(bytes, paced)),
            1 => Just(Act::Up),
            1 => (0usize..4).prop_map(Act::Down),
            3 => (0usize..4, 0u64..400_000).prop_map(|(link, bytes)| Act::Relay(link, bytes)),
            4 => Just(Act::Next),
            1 => Just(Act::Tick),
        ]
    }

    proptest! {
        /// Whatever happens, each reply reaches a socket whole exactly once and in order: a model counts
        /// the bytes that links pass on, as the relay does.
        #[test]
        fn nothing_is_lost_doubled_or_reordered(acts in prop::collection::vec(act(), 0..200)) {
            let mut now = Instant::now();
            let mut ledger = Ledger::new();
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
            let finish = (0..400).flat_map(|_| [Act::Tick, Act::Next, Act::Relay(usize::MAX, u64::MAX)]);
            for act in acts.into_iter().chain([Act::Up]).chain(finish) {
                match act {
                    Act::Push(bytes, paced) => {
                        ledger.push(Reply { number: next_number, bytes, paced, alone: false });
                        next_number += 1;
                    }
                    Act::Up => {
                        next_link += 1;
                        ledger.link_up(LinkId(next_link), now);
                        links.push((LinkId(next_link), Vec::new(), 0));
                    }
                    Act::Down(at) if at < links.len() => {
                        let (id, ..) = links.remove(at);
                        ledger.link_down(id);
                    }
                    Act::Relay(at, bytes) if !links.is_empty() => {
                        let targets: Vec<usize> = if at == usize::MAX { (0..links.len()).collect() } else { vec![at % links.len()] };
                        for at in targets {
                            let (id, replies, relayed) = &mut links[at];
                            let handed: u64 = replies.iter().map(|reply| reply.bytes).sum();
                            let to = relayed.saturating_add(bytes).min(handed);
                            note(replies, *relayed, to, &mut arrived);
                            *relayed = to;
                            ledger.relayed(*id, to, now);
                        }
                    }
                    Act::Next => match ledger.next(now) {
                        Next::Send(id, reply) => {
                            let newest = links.last_mut().unwrap();
                            prop_assert_eq!(newest.0, id);
                            newest.1.push(reply);
                        }
                        Next::Close(id) => {
                            prop_assert!(links.last().unwrap().0 != id, "the newest is never closed");
                            links.retain(|(known, ..)| *known != id);
                            ledger.link_down(id);
                        }
                        Next::WaitUntil(_) | Next::Blocked => {}
                    },
                    Act::Tick => now += STALL / 4,
                    Act::Down(_) | Act::Relay(..) => {}
                }
            }
            prop_assert!(ledger.is_settled());
            prop_assert_eq!(arrived, (0..next_number).collect::<Vec<_>>());
        }
    }
}
