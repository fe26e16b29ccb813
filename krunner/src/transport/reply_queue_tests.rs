//! Tests of the reply queue.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reply {
    number: u32,
    bytes: u64,
    paced: bool,
    alone: bool,
    overtakes: bool,
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

    fn may_overtake(&self) -> bool {
        self.overtakes
    }
}

fn reply(number: u32) -> Reply {
    Reply { number, bytes: 10, paced: false, alone: false, overtakes: false }
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
fn an_older_peer_that_stalls_is_closed_even_if_nothing_else_waits() {
    let now = Instant::now();
    let mut queue = ReplyQueue::new();
    queue.link_up(A, now);
    queue.push(reply(0));
    assert_eq!(queue.next(now), NextAction::Send(A, reply(0)));
    queue.link_up(B, now);
    assert_eq!(queue.next(now), NextAction::WaitUntil(now + STALL));
    assert_eq!((queue.next(now + STALL), queue.in_flight(A)), (NextAction::Close(A), 1));
}

#[test]
fn an_older_peer_that_reads_a_byte_now_and_then_is_closed_in_the_end() {
    let start = Instant::now();
    let mut queue = ReplyQueue::new();
    queue.link_up(A, start);
    queue.push(Reply { bytes: 1000, ..reply(0) });
    assert_eq!(queue.next(start), NextAction::Send(A, Reply { bytes: 1000, ..reply(0) }));
    queue.link_up(B, start);
    let mut now = start;
    for bytes in 1.. {
        queue.relayed(A, bytes, now);
        match queue.next(now) {
            NextAction::WaitUntil(due) => assert!(due <= start + DRAIN),
            next => {
                assert_eq!((next, now), (NextAction::Close(A), start + DRAIN));
                break;
            }
        }
        now += STALL / 2;
    }
}

#[test]
fn answers_pass_ends_of_steps_that_wait_and_nothing_else() {
    let start = Instant::now();
    let mut queue = ReplyQueue::new();
    queue.link_up(A, start);
    let answer = |number| Reply { overtakes: true, ..reply(number) };
    let end = |number| Reply { paced: true, ..reply(number) };
    for entry in [end(0), reply(1), answer(2), end(3), reply(4), answer(5)] {
        queue.push(entry);
    }
    for next in [end(0), reply(1), answer(2), answer(5)] {
        assert_eq!(queue.next(start), NextAction::Send(A, next));
    }
    assert_eq!(queue.next(start), NextAction::Blocked);
    queue.relayed(A, 10, start);
    assert_eq!(queue.next(start), NextAction::WaitUntil(start + FINISHED_SPACING));
    for next in [end(3), reply(4)] {
        assert_eq!(queue.next(start + FINISHED_SPACING), NextAction::Send(A, next));
    }
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
    Push { bytes: u64, paced: bool, overtakes: bool },
    Up,
    Down(usize),
    Relay(usize, u64),
    NextAction,
    Tick,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1u64..300_000, 0..10).prop_map(|(bytes, kind)| Act::Push { bytes, paced: kind < 2, overtakes: kind > 6 }),
        1 => Just(Act::Up),
        1 => (0usize..4).prop_map(Act::Down),
        3 => (0usize..4, 0u64..400_000).prop_map(|(link, bytes)| Act::Relay(link, bytes)),
        4 => Just(Act::NextAction),
        1 => Just(Act::Tick),
    ]
}

proptest! {
    /// Whatever happens, each reply reaches a socket whole exactly once, in order except for those that may overtake: a
    /// model counts the bytes that links pass on, as the relay does.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(acts in prop::collection::vec(act(), 0..200)) {
        let mut now = Instant::now();
        let mut queue = ReplyQueue::new();
        let mut next_link = 0;
        let mut next_number = 0;
        let mut overtaking: Vec<bool> = Vec::new();
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
                Act::Push { bytes, paced, overtakes } => {
                    queue.push(Reply { number: next_number, bytes, paced, alone: false, overtakes });
                    overtaking.push(overtakes);
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
                        prop_assert!(queue.in_flight(id) > 0);
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
        for (at, number) in arrived.iter().enumerate() {
            let passed = arrived[at + 1..].iter().filter(|later| *later < number).collect::<Vec<_>>();
            prop_assert!(overtaking[*number as usize] || passed.is_empty(), "{} passed {:?}", number, passed);
            prop_assert!(passed.iter().all(|passed| !overtaking[**passed as usize]), "answers keep their order");
        }
        arrived.sort_unstable();
        prop_assert_eq!(arrived, (0..next_number).collect::<Vec<_>>());
    }
}
