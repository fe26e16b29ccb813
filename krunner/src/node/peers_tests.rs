//! Tests of queues and limits, with real sockets and without a tracer.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;
use crate::monitor::node::FrameBuffer;
use crate::node::connection::{self, ConnectionChange, ConnectionEvent};
use crate::node::scope::tests::{evidence, find, report, scope};
use crate::tasks::TaskGroup;

fn hello() -> ToNode {
    ToNode::Hello { protocol: VERSION, version: "test".to_owned(), wants: Wants::Kills }
}

fn peer() -> PeerIdentity {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    PeerIdentity::of(&one, crate::monitor::boot_ns()).unwrap().0
}

/// A connection whose task runs, and the peer's end.
fn connected(peers: &mut Peers) -> (u64, UnixStream, mpsc::Receiver<ConnectionEvent>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (id, queue) = peers.admit(peer(), scope(40, 1, "/pod/a"), None).unwrap();
    let (events, received) = mpsc::channel(8);
    let never: OwnedFd = EventFd::new().unwrap().into();
    let served = connection::run(id, ours, crate::sys::readable(never).unwrap(), queue, events);
    TaskGroup::new().spawn("connection", served);
    (id, theirs, received)
}

async fn greet(peers: &mut Peers, stream: &mut UnixStream, events: &mut mpsc::Receiver<ConnectionEvent>) {
    tokio::io::AsyncWriteExt::write_all(stream, &encode(&hello())).await.unwrap();
    let Some(ConnectionEvent { id, what: ConnectionChange::Greeted(hello) }) = events.recv().await else {
        panic!("no greeting")
    };
    assert_eq!(peers.greeted(id, hello), Greeted::Accepted);
}

/// The peer's end, with what was read and is not a whole message yet.
struct Reader(UnixStream, FrameBuffer);

impl Reader {
    fn new(stream: UnixStream) -> Self {
        Self(stream, FrameBuffer::new(1 << 20))
    }

    async fn read(&mut self, until: impl Fn(&[FromNode]) -> bool) -> Vec<FromNode> {
        let mut messages = Vec::new();
        while !until(&messages) {
            let mut bytes = [0; 4096];
            let length = timeout(Duration::from_secs(9), self.0.read(&mut bytes)).await.unwrap().unwrap();
            assert!(length > 0, "closed after {messages:?}");
            self.1.push(&bytes[..length]);
            while let Some(message) = self.1.next().unwrap() {
                messages.push(message);
            }
        }
        messages
    }
}

fn kills(messages: &[FromNode]) -> u64 {
    messages.iter().filter(|message| matches!(message, FromNode::Kill(_))).count() as u64
}

fn missed(messages: &[FromNode]) -> u64 {
    let missed = |message: &FromNode| match message {
        FromNode::Missed { kills } | FromNode::Hello { missed: kills, .. } => *kills,
        _ => 0,
    };
    messages.iter().map(missed).sum()
}

/// A storm of kills: a peer that reads gets all of them, one that does not is told how many it missed.
#[tokio::test]
async fn slow_reader_is_told_what_it_missed_and_no_other_misses_any() {
    const STORM: u64 = 2000;
    let mut peers = Peers::default();
    let (_slow_id, mut slow, mut slow_events) = connected(&mut peers);
    let (_fast_id, mut fast, mut fast_events) = connected(&mut peers);
    greet(&mut peers, &mut slow, &mut slow_events).await;
    greet(&mut peers, &mut fast, &mut fast_events).await;
    let (mut slow, mut fast) = (Reader::new(slow), Reader::new(fast));
    let (report, evidence) = (report(), evidence(&[(40, 7)]));
    let mut received = Vec::new();
    for number in 0..STORM {
        peers.deliver(&HostKill::new(&report, &evidence, &find));
        if number % 32 == 31 {
            let so_far = kills(&received);
            received.extend(fast.read(|more| so_far + kills(more) > number).await);
        }
        assert!(peers.queued_bytes.load(Ordering::Relaxed) <= 2 * QUEUED_BYTES);
    }
    let so_far = kills(&received);
    received.extend(fast.read(|more| so_far + kills(more) >= STORM).await);
    assert_eq!((kills(&received), missed(&received)), (STORM, 0));

    // It reads again: what was queued, and how many were not.
    let mut late = slow.read(|messages| kills(messages) >= QUEUED_FRAMES as u64).await;
    peers.alive();
    let so_far = missed(&late);
    late.extend(slow.read(|more| so_far + missed(more) > 0).await);
    assert_eq!(kills(&late) + missed(&late), STORM);
    assert_eq!(peers.queued_bytes.load(Ordering::Relaxed), 0, "nothing is left behind");
}

/// One container with as many connections as it may have, and another one; nobody reads.
#[tokio::test]
async fn container_with_many_connections_does_not_fill_the_queue_of_all() {
    let mut peers = Peers::default();
    let connect = |peers: &mut Peers, namespace: u32, cgroup: &str| {
        let (id, queue) = peers.admit(peer(), scope(namespace, 1, cgroup), Some(cgroup.to_owned())).unwrap();
        assert_eq!(peers.greeted(id, hello()), Greeted::Accepted);
        (id, queue)
    };
    let container = |number: u32| format!("/docker/{number:064x}");
    let storm = |peers: &mut Peers, namespaces: &[(u32, u32)]| {
        let (report, evidence) = (report(), evidence(namespaces));
        (0..QUEUED_FRAMES / 2)
            .for_each(|_| peers.deliver_of_daemon("earlyoom", &HostKill::new(&report, &evidence, &find)));
        (0..QUEUED_FRAMES).map(|_| peers.deliver(&HostKill::new(&report, &evidence, &find))).sum::<u64>()
    };
    let all = |peers: &Peers| peers.queued_bytes.load(Ordering::Relaxed);
    let first = u32::try_from(MAX_PEERS_OF_AN_OWNER).unwrap();
    let mut queues = Vec::new();
    for number in 0..first {
        // Each in a cgroup and a namespace of its own.
        queues.push(connect(&mut peers, 1000 + number, &format!("{}/{number}", container(1))));
        storm(&mut peers, &[(1000 + number, 7)]);
    }
    let part = all(&peers);
    assert!(part <= ALL_QUEUED_BYTES / (CONTAINER_PART + 1) + (64 << 10), "{part}");
    // And as many other containers do so, one after the other: the last one gets something, too.
    for number in 2..40 {
        queues.push(connect(&mut peers, number, &container(number)));
        assert!(storm(&mut peers, &[(number, 7)]) > 0, "container {number}: {}", all(&peers));
    }
    assert!(all(&peers) <= ALL_QUEUED_BYTES);
}

#[tokio::test]
async fn what_a_lost_connection_did_not_take_is_told_to_the_next() {
    let mut peers = Peers::default();
    let (_id, mut stream, mut events) = connected(&mut peers);
    greet(&mut peers, &mut stream, &mut events).await;
    let (report, evidence) = (report(), evidence(&[(40, 7)]));
    for _ in 0..2000 {
        peers.deliver(&HostKill::new(&report, &evidence, &find));
    }
    let sent = peers.status()[0].sent;
    drop(stream);
    let Some(ConnectionEvent { id, what: ConnectionChange::Ended { unsent_kills } }) = events.recv().await else {
        panic!("it did not end")
    };
    assert!(unsent_kills > 0 && unsent_kills <= sent);
    peers.ended(id, unsent_kills);
    assert_eq!(peers.queued_bytes.load(Ordering::Relaxed), 0);
    // One that asks for the status takes it from nobody.
    let (id, _stream, _events) = connected(&mut peers);
    let status = ToNode::Hello { protocol: VERSION, version: String::new(), wants: Wants::Status };
    assert_eq!(peers.greeted(id, status), Greeted::Refused(Refusal::NotOperator));
    let (_id, mut stream, mut events) = connected(&mut peers);
    greet(&mut peers, &mut stream, &mut events).await;
    let hello = Reader::new(stream).read(|messages| !messages.is_empty()).await;
    assert_eq!(missed(&hello), 2000 - sent + unsent_kills);
}

#[tokio::test]
async fn kill_by_a_user_space_oom_killer_goes_to_its_container_only_and_is_never_missed() {
    let mut peers = Peers::default();
    let (_id, mut stream, mut events) = connected(&mut peers);
    greet(&mut peers, &mut stream, &mut events).await;
    let report = report();
    let (inside, outside) = (evidence(&[(40, 7)]), evidence(&[(41, 7)]));
    for _ in 0..2 * QUEUED_FRAMES {
        peers.deliver_of_daemon("nohang", &HostKill::new(&report, &outside, &find));
        peers.deliver_of_daemon("earlyoom", &HostKill::new(&report, &inside, &find));
    }
    let mut reader = Reader::new(stream);
    let first = reader.read(|messages| messages.len() > 1).await;
    let [_, FromNode::DaemonKill { daemon, kill }, ..] = &first[..] else { panic!("{first:?}") };
    assert_eq!((daemon.as_str(), kill.victims[0].process.pid), ("earlyoom", 7));
    peers.alive();
    let rest = reader.read(|messages| matches!(messages.last(), Some(FromNode::Alive))).await;
    assert!(!rest.iter().any(|message| matches!(message, FromNode::DaemonKill { daemon, .. } if daemon != "earlyoom")));
    assert_eq!(missed(&rest), 0, "no counter of the peer has them");
}
