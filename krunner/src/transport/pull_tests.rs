//! Tests of the port for ops with bare peers.

use super::*;
use crate::transport::testing::{Peer, free_port};
use crate::zmtp::{FLAG_LONG, FLAG_MORE};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> (u16, Inbound, TaskGroup) {
    let (port, tasks) = (free_port(), TaskGroup::new());
    let inbound = listen(port, &tasks).await.unwrap();
    (port, inbound, tasks)
}

async fn recv(inbound: &mut Inbound) -> Vec<Bytes> {
    timeout(PATIENCE, inbound.recv()).await.expect("a message").expect("an open port")
}

/// The port receives from a peer that was there before, and from a new one.
async fn assert_alive(port: u16, before: &mut Peer, inbound: &mut Inbound) {
    before.send(&[b"exec", b"before"]).await;
    assert_eq!(recv(inbound).await, ["exec", "before"]);
    Peer::connect(port, "PUSH").await.send(&[b"exec", b"new"]).await;
    assert_eq!(recv(inbound).await, ["exec", "new"]);
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order_however_they_are_cut() {
    let (port, mut inbound, _tasks) = start().await;
    let mut peer = Peer::connect(port, "PUSH").await;
    let body = vec![b'x'; 100_000];
    for number in 0..50u32 {
        peer.send(&[b"exec", &number.to_be_bytes(), &body[..usize::try_from(number).unwrap() * 2000]]).await;
        let message = recv(&mut inbound).await;
        assert_eq!(message[..2], [Bytes::from_static(b"exec"), Bytes::copy_from_slice(&number.to_be_bytes())]);
        assert_eq!((message.len(), message[2].len()), (3, number as usize * 2000));
    }
    for byte in b"\x01\x04exec\x00\x02ls" {
        peer.stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(recv(&mut inbound).await, ["exec", "ls"]);
}

#[tokio::test]
async fn what_a_peer_sent_before_it_left_is_received() {
    let (port, mut inbound, _tasks) = start().await;
    let mut peer = Peer::connect(port, "PUSH").await;
    for number in 0..100 {
        peer.send(&[b"exec", format!("{number}").as_bytes()]).await;
    }
    drop(peer);
    // The connection ends while the session is busy.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for number in 0..100 {
        assert_eq!(recv(&mut inbound).await, [Bytes::from_static(b"exec"), format!("{number}").into()]);
    }
}

#[tokio::test]
async fn an_oversized_or_malformed_message_ends_its_own_connection_only() {
    let (port, mut inbound, _tasks) = start().await;
    let mut before = Peer::connect(port, "PUSH").await;
    let claim = |bytes: u64| [&[FLAG_LONG][..], &bytes.to_be_bytes()].concat();
    let limit = OP_LIMITS;
    let many_frames = [FLAG_MORE, 1, b'x'].repeat(usize::try_from(limit.message_frames).unwrap() + 1);
    let wrong = [
        ("unknown flags", vec![0xf8, 1, b'x']),
        ("a length that cannot be", claim(u64::MAX)),
        ("one byte beyond the limit", claim(limit.message_bytes + 1)),
        ("too many frames", many_frames),
    ];
    for (what, bytes) in wrong {
        let mut peer = Peer::connect(port, "PUSH").await;
        peer.send(&[b"exec", b"good"]).await;
        assert_eq!(recv(&mut inbound).await, ["exec", "good"], "{what}");
        peer.stream.write_all(&bytes).await.unwrap();
        let closed = timeout(PATIENCE, peer.recv()).await.unwrap_or_else(|_| panic!("{what}: still open"));
        assert_eq!(closed, None, "{what}");
        assert_alive(port, &mut before, &mut inbound).await;
    }
}

#[tokio::test]
async fn what_is_not_zmtp_is_refused() {
    let (port, mut inbound, _tasks) = start().await;
    let mut before = Peer::connect(port, "PUSH").await;
    let mut stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: krunner\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Closed or reset, and in either case without an answer to HTTP.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
    assert!(!answer.starts_with(b"HTTP"));
    assert_alive(port, &mut before, &mut inbound).await;
}

#[tokio::test]
async fn a_message_that_never_ends_holds_up_no_other_peer() {
    let (port, mut inbound, _tasks) = start().await;
    let mut before = Peer::connect(port, "PUSH").await;
    let mut slow = Peer::connect(port, "PUSH").await;
    slow.stream.write_all(&[FLAG_MORE, 4, b'e', b'x']).await.unwrap();
    assert_alive(port, &mut before, &mut inbound).await;
    slow.stream.write_all(b"ec\x00\x04slow").await.unwrap();
    assert_eq!(recv(&mut inbound).await, ["exec", "slow"]);
}

#[tokio::test]
async fn pings_are_answered_and_other_commands_are_ignored() {
    let (port, mut inbound, _tasks) = start().await;
    let mut peer = Peer::connect(port, "PUSH").await;
    let stream = b"\x04\x0a\x04PING\0\x0aabc\x01\x04exec\x00\x02ls\x04\x08\x07NOTHING\x04\0\x01\x04exec\x00\x02id";
    for piece in stream.chunks(3) {
        peer.stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(recv(&mut inbound).await, ["exec", "ls"]);
    assert_eq!(recv(&mut inbound).await, ["exec", "id"]);
    let (header, body) = timeout(PATIENCE, peer.frame()).await.expect("a PONG").unwrap();
    assert!(header.is_command() && body == b"\x04PONGabc"[..], "{body:?}");
}
