//! Relays the bytes of one connection between the network and a `zeromq` socket.
//!
//! What arrives is checked frame by frame, and commands are taken out: a PING is answered here, because the crate would
//! close the connection. The PONG goes between two messages of the other direction.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::sync::Mutex;

use super::budget::{ReceiveShare, ShareError};
use super::heartbeat::PendingPong;
use super::progress::SendProgress;
use super::scanner::{FrameLimits, ZmtpError, ZmtpScanner};
use super::splice::{Pipe, with_memory};

/// Buffer for ops and handshakes.
const INBOUND_BUFFER_BYTES: usize = 16 * 1024;

/// For a direction that carries a handshake, subscriptions and commands.
const FEW_BYTES: FrameLimits = FrameLimits { message_bytes: 64 * 1024, message_frames: 1 };

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::transport) enum RelayError {
    #[error("protocol violation by the peer")]
    Protocol(#[from] ZmtpError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the `zeromq` socket behind the relay does.
#[derive(Debug, Clone)]
pub(super) enum Role {
    /// Receives messages within these limits. The share outlives the relay, because messages that the socket still has are in
    /// memory.
    Receive(FrameLimits, Arc<Mutex<ReceiveShare>>),
    /// Sends messages; after the handshake the peer sends nothing but commands.
    Send(Arc<SendProgress>),
}

/// Relays until the connection closes. Dropping the future closes both sides.
pub(super) async fn relay(peer: TcpStream, socket: UnixStream, role: Role) -> Result<(), RelayError> {
    let (from_peer, to_peer) = peer.into_split();
    let (from_socket, to_socket) = socket.into_split();
    let pong = PendingPong::default();
    match role {
        Role::Receive(limits, share) => {
            let mut share = share.lock().await;
            let inbound = inbound(from_peer, to_socket, limits, &mut share, &pong);
            tokio::try_join!(inbound, subscriptions(from_socket, to_peer, &pong))?;
        }
        Role::Send(progress) => tokio::select! {
            ended = handshake_only(from_peer, to_socket, &pong) => ended?,
            ended = outbound(from_socket, to_peer, &progress, &pong) => ended?,
        },
    }
    Ok(())
}

/// Relays messages to the socket after checking the length of each frame.
async fn inbound(
    mut peer: tcp::OwnedReadHalf,
    mut socket: unix::OwnedWriteHalf,
    limits: FrameLimits,
    share: &mut ReceiveShare,
    pong: &PendingPong,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; INBOUND_BUFFER_BYTES];
    let mut scanner = ZmtpScanner::new(limits);
    loop {
        let bytes = share.read(&mut peer, &mut buffer).await??;
        if bytes == 0 {
            socket.shutdown().await?;
            return Ok(());
        }
        let messages = scanner.take_commands_out(&mut buffer[..bytes])?;
        if let Some(answer) = scanner.take_pong() {
            pong.set(answer);
        }
        share.reserve(scanner.unfinished_message_bytes()).await?;
        write_all(&socket, &buffer[..messages]).await?;
    }
}

/// Like tokio's `write_all`, but retries while the kernel is out of memory.
async fn write_all(socket: &unix::OwnedWriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let write = || async {
            socket.writable().await?;
            socket.try_write(bytes)
        };
        match with_memory(write).await {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            // A spurious wakeup.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Inbound direction of a socket that sends: relays the handshake, then reads only to notice commands and a disconnect.
async fn handshake_only(
    mut peer: tcp::OwnedReadHalf,
    mut socket: unix::OwnedWriteHalf,
    pong: &PendingPong,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; INBOUND_BUFFER_BYTES];
    let mut scanner = ZmtpScanner::new(FEW_BYTES);
    let mut is_over = false;
    loop {
        let bytes = peer.read(&mut buffer).await?;
        if bytes == 0 {
            return Ok(());
        }
        let mut handshake = 0;
        if !is_over {
            handshake = scanner.feed_handshake(&buffer[..bytes])?;
            is_over = scanner.handshake_done();
            socket.write_all(&buffer[..handshake]).await?;
        }
        scanner.take_commands_out(&mut buffer[handshake..bytes])?;
        if let Some(answer) = scanner.take_pong() {
            pong.set(answer);
        }
    }
}

/// Outbound direction of a socket that receives: relays the handshake and subscriptions.
async fn subscriptions(
    mut socket: unix::OwnedReadHalf,
    mut peer: tcp::OwnedWriteHalf,
    pong: &PendingPong,
) -> Result<(), RelayError> {
    let mut buffer = BytesMut::new();
    let mut scanner = ZmtpScanner::new(FEW_BYTES);
    loop {
        tokio::select! {
            biased;
            () = pong.changed() => {}
            bytes = socket.read_buf(&mut buffer) => {
                if bytes? == 0 {
                    return Ok(peer.shutdown().await?);
                }
                scanner.feed(&buffer)?;
                peer.write_all(&buffer).await?;
                buffer.clear();
            }
        }
        if scanner.is_between_messages()
            && let Some(pong) = pong.take()
        {
            peer.write_all(&pong).await?;
        }
    }
}

/// Outbound direction of a socket that sends: relays messages and counts the bytes after the handshake.
async fn outbound(
    mut socket: unix::OwnedReadHalf,
    mut peer: tcp::OwnedWriteHalf,
    progress: &SendProgress,
    pong: &PendingPong,
) -> Result<(), RelayError> {
    let mut buffer = Vec::with_capacity(INBOUND_BUFFER_BYTES);
    let mut scanner = ZmtpScanner::new(FEW_BYTES);
    while !scanner.handshake_done() {
        buffer.clear();
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(peer.shutdown().await?);
        }
        // The buffer may contain messages after the handshake.
        let handshake = scanner.feed_handshake(&buffer)?;
        peer.write_all(&buffer).await?;
        progress.relay(buffer.len() - handshake);
    }
    let pipe = Pipe::new()?;
    let mut pong = PongInStream { pong, progress, due_at: None };
    loop {
        pong.send_if_due(&mut peer).await?;
        let mut waiting = tokio::select! {
            biased;
            bytes = pipe.fill(socket.as_ref()) => bytes?,
            () = pong.pong.changed() => continue,
        };
        if waiting == 0 {
            return Ok(peer.shutdown().await?);
        }
        while waiting > 0 {
            let bytes = pipe.drain(peer.as_ref(), pong.bytes_before(waiting)).await?;
            waiting -= bytes;
            progress.relay(bytes);
            pong.send_if_due(&mut peer).await?;
        }
    }
}

/// Finds the place for a PONG in a stream of messages that nobody parses: the end of what was handed over when the PING
/// arrived, at most one window away.
struct PongInStream<'a> {
    pong: &'a PendingPong,
    progress: &'a SendProgress,
    due_at: Option<u64>,
}

impl PongInStream<'_> {
    /// How many of the next `waiting` bytes go before the PONG; at least one.
    fn bytes_before(&self, waiting: usize) -> usize {
        let Some(due_at) = self.due_at else { return waiting };
        let left = due_at.saturating_sub(self.progress.relayed_bytes());
        usize::try_from(left).map_or(waiting, |left| left.clamp(1, waiting))
    }

    async fn send_if_due(&mut self, peer: &mut tcp::OwnedWriteHalf) -> io::Result<()> {
        if self.due_at.is_none() && self.pong.is_set() {
            self.due_at = Some(self.progress.handed_bytes());
        }
        if self.due_at.is_some_and(|due_at| self.progress.relayed_bytes() >= due_at) {
            self.due_at = None;
            if let Some(pong) = self.pong.take() {
                peer.write_all(&pong).await?;
            }
        }
        Ok(())
    }
}
