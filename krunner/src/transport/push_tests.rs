//! Tests of the port for replies with bare peers.

use super::*;
use crate::transport::ReplySender;
use crate::transport::testing::{Peer, free_port};
use crate::wire::{Reply, ReplyMessage, Stream};
use tokio::io::AsyncWriteExt as _;

const CHUNK_BYTES: usize = 64 * 1024;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> (u16, ReplySender, TaskGroup) {
    let (port, tasks) = (free_port(), TaskGroup::new());
    let (sender, queue) = ReplySender::new();
    listen(port, queue, &tasks).await.unwrap();
    (port, sender, tasks)
}

/// Output of this size that begins with its number.
fn numbered(number: u32, bytes: usize) -> ReplyMessage {
    let mut text = number.to_be_bytes().to_vec();
    text.resize(bytes.max(4), b'x');
    Reply::Output { stream: Stream::Stdout, bytes: text.into() }.into_message()
}

/// The number of the next reply.
async fn recv(peer: &mut Peer) -> u32 {
    let frames = tokio::time::timeout(PATIENCE, peer.recv()).await.expect("a reply").expect("an open connection");
    let [kind, payload] = &frames[..] else { panic!("{} frames", frames.len()) };
    assert_eq!(kind, "stdout");
    u32::from_be_bytes(*payload.first_chunk().unwrap())
}

#[tokio::test]
async fn replies_wait_for_a_peer_and_keep_their_order() {
    let (port, sender, _tasks) = start().await;
    for number in 0..100 {
        sender.send(numbered(number, 10)).await;
    }
    let mut peer = Peer::connect(port, "PULL").await;
    for number in 0..100 {
        assert_eq!(recv(&mut peer).await, number);
    }
}

#[tokio::test]
async fn nothing_is_lost_between_two_connections() {
    let (port, sender, _tasks) = start().await;
    for round in (0..100).step_by(10) {
        let mut peer = Peer::connect(port, "PULL").await;
        for number in round..round + 5 {
            sender.send(numbered(number, 1000)).await;
        }
        for number in round.saturating_sub(5)..round + 5 {
            assert_eq!(recv(&mut peer).await, number);
        }
        drop(peer);
        // The relay, which shares this thread, sees the end of the connection meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for number in round + 5..round + 10 {
            sender.send(numbered(number, 1000)).await;
        }
    }
}

#[tokio::test]
async fn the_next_peer_gets_what_the_socket_of_the_last_one_had_not_taken() {
    const LAST: u32 = 400;
    let (port, sender, tasks) = start().await;
    // More than all budgets and sockets hold: it can only be sent if each reply returns its share.
    let program = sender.clone();
    tasks.spawn("program", async move {
        for number in 0..=LAST {
            program.send(numbered(number, CHUNK_BYTES)).await;
        }
    });
    let mut first = Peer::connect(port, "PULL").await;
    for number in 0..10 {
        assert_eq!(recv(&mut first).await, number);
    }
    // It stalls until the sender's buffers are full, then goes.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(first);
    let mut second = Peer::connect(port, "PULL").await;
    let begin = recv(&mut second).await;
    assert!((10..LAST).contains(&begin), "{begin}");
    for number in begin + 1..=LAST {
        assert_eq!(recv(&mut second).await, number);
    }
    assert!(sender.flush(PATIENCE).await);
}

#[tokio::test]
async fn a_stalled_peer_holds_up_the_program_within_the_budget() {
    let (port, sender, _tasks) = start().await;
    let _stalled = Peer::connect(port, "PULL").await;
    let mut sent = 0;
    let patience = Duration::from_millis(500);
    while tokio::time::timeout(patience, sender.send(numbered(sent, CHUNK_BYTES))).await.is_ok() {
        sent += 1;
        // Budget, window, and what both sockets may hold (`net.ipv4.tcp_wmem`).
        assert!(sent < 1000, "memory grows without bound");
    }
    assert!(sent >= 64, "less than the budget: {sent}");
    sender.answer(Reply::Status { started_at: 1.0 });
}

#[tokio::test]
async fn a_flush_is_true_only_when_the_peer_has_everything() {
    let (port, sender, _tasks) = start().await;
    sender.send(numbered(0, 10)).await;
    assert!(!sender.flush(PATIENCE).await, "no peer");
    let mut peer = Peer::connect(port, "PULL").await;
    assert_eq!(recv(&mut peer).await, 0);
    assert!(sender.flush(PATIENCE).await);
    for number in 1..=60 {
        sender.send(numbered(number, CHUNK_BYTES)).await;
    }
    let read = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let first = Instant::now();
        for number in 1..=60 {
            assert_eq!(recv(&mut peer).await, number);
        }
        first
    };
    let flush = async { (sender.flush(PATIENCE).await, Instant::now()) };
    let (began_to_read, (is_flushed, flushed)) = tokio::join!(read, flush);
    assert!(is_flushed && flushed > began_to_read, "a peer that does not read has not got it");
}

#[tokio::test]
async fn a_ping_is_answered_between_two_messages_of_a_busy_stream() {
    const COUNT: u32 = 60;
    let (port, sender, _tasks) = start().await;
    let mut peer = Peer::connect(port, "PULL").await;
    for number in 0..COUNT {
        sender.send(numbered(number, CHUNK_BYTES)).await;
    }
    let ping = [&b"\x04\x17\x04PING\0\x0a"[..], b"sixteen letters."].concat();
    peer.stream.write_all(&ping).await.unwrap();
    let (mut numbers, mut pongs, mut in_message) = (Vec::new(), 0, false);
    while numbers.len() < COUNT as usize || pongs == 0 {
        let (header, body) = tokio::time::timeout(PATIENCE, peer.frame()).await.expect("a frame").unwrap();
        if header.is_command() {
            assert!(!in_message && body == b"\x04PONGsixteen letters."[..], "{body:?}");
            pongs += 1;
        } else if in_message {
            numbers.push(u32::from_be_bytes(*body.first_chunk().unwrap()));
        }
        in_message = header.has_more();
    }
    assert_eq!((numbers, pongs), ((0..COUNT).collect(), 1));
    assert!(sender.flush(PATIENCE).await, "a PONG is not counted as a reply");
}

#[tokio::test]
async fn a_flood_of_pings_that_nobody_reads_the_answers_of_takes_no_memory_and_delays_no_reply() {
    let (port, sender, _tasks) = start().await;
    let mut peer = Peer::connect(port, "PULL").await;
    let pings = b"\x04\x07\x04PING\0\x0a".repeat(10_000);
    for _ in 0..30 {
        peer.stream.write_all(&pings).await.unwrap();
    }
    sender.answer(Reply::Status { started_at: 1.0 });
    let frames = tokio::time::timeout(PATIENCE, peer.recv()).await.expect("a reply").unwrap();
    assert_eq!(frames[0], "status");
}
