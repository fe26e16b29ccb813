//! The ports that receive messages: ops (PULL) and terminal input (SUB).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use zeromq::{PullSocket, Socket, SocketEvent, SocketRecv, SubSocket, ZmqResult};

use super::link::{self, Link, LinkError, report};
use super::listener;
use super::relay::{ReceiveLimits, Role};
use super::scanner::FrameLimits;
use crate::error::FatalError;
use crate::tasks::TaskGroup;

/// Queue between a connection and the session, which receives messages at once; each may be large.
const QUEUED_MESSAGES: usize = 1;

/// Time to receive what a peer sent just before it disconnected, which is all in memory by then.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Terminal input comes from a websocket, which accepts messages up to 4 MiB (aiohttp's default).
const TYPED_LIMITS: FrameLimits = FrameLimits { message_bytes: 4 * 1024 * 1024, message_frames: 16 };

/// Total size of the large frames of terminal input being received: two of the largest.
const TYPED_LARGE_BYTES: usize = 8 * 1024 * 1024;

/// Messages from all peers, each as its frames.
pub(crate) type Inbound = mpsc::Receiver<Vec<Bytes>>;

/// Binds the port for ops and receives from all peers.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn listen(port: u16, tasks: &TaskGroup) -> Result<Inbound, FatalError> {
    receive::<PullSocket>("replin", port, ReceiveLimits::default(), tasks).await
}

/// Binds the port for terminal input and subscribes to everything that its peers publish.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn subscribe(name: &'static str, port: u16, tasks: &TaskGroup) -> Result<Inbound, FatalError> {
    let limits = ReceiveLimits { frames: TYPED_LIMITS, large_frames: Arc::new(Semaphore::new(TYPED_LARGE_BYTES)) };
    receive::<SubSocket>(name, port, limits, tasks).await
}

/// A socket that receives messages.
#[async_trait]
trait InboundSocket: Socket + SocketRecv + 'static {
    /// Called once the socket has a peer.
    async fn begin(&mut self) -> ZmqResult<()> {
        Ok(())
    }
}

impl InboundSocket for PullSocket {}

#[async_trait]
impl InboundSocket for SubSocket {
    async fn begin(&mut self) -> ZmqResult<()> {
        self.subscribe("").await
    }
}

async fn receive<S: InboundSocket>(
    name: &'static str,
    port: u16,
    limits: ReceiveLimits,
    tasks: &TaskGroup,
) -> Result<Inbound, FatalError> {
    let listener = listener::bind(name, port).await?;
    let (messages, inbound) = mpsc::channel(QUEUED_MESSAGES);
    listener::accept(listener, tasks, move |stream, peer| {
        let (messages, role) = (messages.clone(), Role::Pull(limits.clone()));
        async move { report(peer, serve::<S>(stream, role, messages).await) }
    });
    Ok(inbound)
}

async fn serve<S: InboundSocket>(
    stream: TcpStream,
    role: Role,
    messages: mpsc::Sender<Vec<Bytes>>,
) -> Result<(), LinkError> {
    let Link { mut socket, mut events, mut relay } = link::open::<S>(stream, role, None).await?;
    let backend = socket.backend();
    let receive = async {
        if let Err(error) = socket.begin().await {
            return tracing::debug!("a publisher disconnected before the subscription was sent: {error}");
        }
        loop {
            tokio::select! {
                biased;
                message = socket.recv() => match message {
                    Ok(message) => _ = messages.send(message.into_vec()).await,
                    Err(error) => return tracing::debug!("connection closed in the middle of a message: {error}"),
                },
                event = events.next() => match event {
                    // A second peer can only be a foreign one (see `link::open`).
                    Some(SocketEvent::Disconnected(_) | SocketEvent::Accepted(..)) | None => return,
                    Some(_) => {}
                },
            }
        }
    };
    tokio::pin!(receive);
    let ended = tokio::select! {
        ended = &mut relay => Some(ended),
        () = &mut receive => None,
    };
    // Closes the internal connection. The socket still delivers what it has, then stops.
    drop(relay);
    if ended.is_some() && timeout(DRAIN_DEADLINE, receive).await.is_err() {
        tracing::warn!("dropping the last messages of a disconnected peer: not received within {DRAIN_DEADLINE:?}");
    }
    // The crate's tasks would keep the socket alive if it has not seen the end of its stream.
    backend.shutdown();
    Ok(ended.unwrap_or(Ok(()))?)
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
