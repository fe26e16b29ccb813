//! One connection: reads the greeting, then writes what is queued. It never reads again; a peer that says more is closed.
//!
//! It ends when the peer closes, when the process that connected exits, when the peer takes nothing for [`STALL_PATIENCE`],
//! or when the server drops its end of the queue, after what is in it was written.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::monitor::node::{FrameBuffer, GREETING_PATIENCE, MAX_TO_NODE_BYTES, ToNode};

/// How long a peer may leave its socket's buffer full.
const STALL_PATIENCE: Duration = Duration::from_secs(10);

/// A message in the queue of a peer.
#[derive(Debug)]
pub(super) struct QueuedFrame {
    pub(super) bytes: Vec<u8>,
    /// Kills in it.
    pub(super) kills: u64,
}

/// What a connection tells the server.
#[derive(Debug)]
pub(super) struct ConnectionEvent {
    pub(super) id: u64,
    pub(super) what: ConnectionChange,
}

/// What happened to a connection.
#[derive(Debug)]
pub(super) enum ConnectionChange {
    /// The peer greeted.
    Greeted(ToNode),
    /// The connection is closed.
    Ended {
        /// Kills that were queued and not written.
        unsent_kills: u64,
    },
}

/// The connection's end of the queue.
#[derive(Debug)]
pub(super) struct FrameQueue {
    pub(super) frames: mpsc::Receiver<QueuedFrame>,
    /// Bytes queued for this peer, for its container, and for all.
    pub(super) queued_bytes: [Arc<AtomicUsize>; 3],
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("no greeting in time")]
    NoGreeting,
    #[error("not a greeting")]
    Malformed,
    #[error("the peer closed the connection")]
    Closed,
    #[error("the process that connected exited")]
    Exited,
    #[error("the peer sent more than its greeting")]
    TooMuch,
    #[error("the peer reads nothing")]
    Stalled,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
}

/// Serves a connection until it ends.
pub(super) async fn run(
    id: u64,
    stream: UnixStream,
    exited: AsyncFd<OwnedFd>,
    mut queue: FrameQueue,
    events: mpsc::Sender<ConnectionEvent>,
) {
    let tell = |what| events.send(ConnectionEvent { id, what });
    let mut unsent_kills = 0;
    let ended = match timeout(GREETING_PATIENCE, greeting(&stream)).await {
        Ok(Ok(hello)) => {
            // Fails if the node ends.
            let _ = tell(ConnectionChange::Greeted(hello)).await;
            tokio::select! {
                _ = exited.readable() => Err(ConnectionError::Exited),
                ended = write_queue(stream, &mut queue, &mut unsent_kills) => ended,
            }
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ConnectionError::NoGreeting),
    };
    if let Err(error) = ended {
        tracing::debug!("connection {id}: {error}");
    }
    queue.frames.close();
    while let Ok(frame) = queue.frames.try_recv() {
        queue.taken(&frame);
        unsent_kills += frame.kills;
    }
    let _ = tell(ConnectionChange::Ended { unsent_kills }).await;
}

async fn greeting(stream: &UnixStream) -> Result<ToNode, ConnectionError> {
    let mut frames = FrameBuffer::new(MAX_TO_NODE_BYTES);
    loop {
        stream.readable().await?;
        let mut bytes = [0; MAX_TO_NODE_BYTES];
        match stream.try_read(&mut bytes) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(length) => frames.push(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(hello) = frames.next().map_err(|_| ConnectionError::Malformed)? {
            return Ok(hello);
        }
    }
}

async fn write_queue(
    mut stream: UnixStream,
    queue: &mut FrameQueue,
    unsent_kills: &mut u64,
) -> Result<(), ConnectionError> {
    loop {
        let frame = tokio::select! {
            frame = queue.frames.recv() => frame,
            readable = stream.readable() => {
                readable?;
                match stream.try_read(&mut [0; 1]) {
                    Ok(0) => return Err(ConnectionError::Closed),
                    Ok(_) => return Err(ConnectionError::TooMuch),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        *unsent_kills = frame.kills;
        let written = timeout(STALL_PATIENCE, stream.write_all(&frame.bytes)).await;
        queue.taken(&frame);
        written.map_err(|_| ConnectionError::Stalled)??;
        *unsent_kills = 0;
    }
}

impl FrameQueue {
    fn taken(&self, frame: &QueuedFrame) {
        for queued in &self.queued_bytes {
            queued.fetch_sub(frame.bytes.len(), Ordering::Relaxed);
        }
    }
}
