//! The ports where messages come in: ops, and what is typed into a terminal.

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
use super::relay::{Intake, Role};
use super::scanner::Limits;
use crate::error::Critical;
use crate::tasks::TaskGroup;

/// Between a connection and the session, which takes messages at once; each may be large.
const QUEUED_MESSAGES: usize = 1;

/// For what a peer sent just before it left; it is all in memory by then.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Typed text comes from a websocket, which takes no message over 4 MiB (aiohttp's default).
const TYPED_LIMITS: Limits = Limits { message_bytes: 4 * 1024 * 1024, message_frames: 16 };

/// Large frames of all who type while they are received: two of the largest.
const TYPED_LARGE_BYTES: usize = 8 * 1024 * 1024;

/// Messages of all peers, each as its frames.
pub type Inbound = mpsc::Receiver<Vec<Bytes>>;

/// Binds the port for ops and receives from whoever connects.
///
/// # Errors
/// When the port cannot be bound.
pub async fn listen(port: u16, tasks: &TaskGroup) -> Result<Inbound, Critical> {
    receive::<PullSocket>("replin", port, Intake::default(), tasks).await
}

/// Binds the port for what is typed, and subscribes to all that whoever connects publishes.
///
/// # Errors
/// When the port cannot be bound.
pub async fn subscribe(name: &'static str, port: u16, tasks: &TaskGroup) -> Result<Inbound, Critical> {
    let intake = Intake { limits: TYPED_LIMITS, large_frames: Arc::new(Semaphore::new(TYPED_LARGE_BYTES)) };
    receive::<SubSocket>(name, port, intake, tasks).await
}

/// A socket that messages come from.
#[async_trait]
trait Source: Socket + SocketRecv + 'static {
    /// What it has to say once it has a peer.
    async fn begin(&mut self) -> ZmqResult<()> {
        Ok(())
    }
}

impl Source for PullSocket {}

#[async_trait]
impl Source for SubSocket {
    async fn begin(&mut self) -> ZmqResult<()> {
        self.subscribe("").await
    }
}

async fn receive<S: Source>(
    name: &'static str,
    port: u16,
    intake: Intake,
    tasks: &TaskGroup,
) -> Result<Inbound, Critical> {
    let listener = listener::bind(name, port).await?;
    let (messages, inbound) = mpsc::channel(QUEUED_MESSAGES);
    listener::accept(listener, tasks, move |stream, peer| {
        let (messages, role) = (messages.clone(), Role::Pull(intake.clone()));
        async move { report(peer, serve::<S>(stream, role, messages).await) }
    });
    Ok(inbound)
}

async fn serve<S: Source>(stream: TcpStream, role: Role, messages: mpsc::Sender<Vec<Bytes>>) -> Result<(), LinkError> {
    let Link { mut socket, mut events, mut relay } = link::open::<S>(stream, role, None).await?;
    let backend = socket.backend();
    let receive = async {
        if let Err(error) = socket.begin().await {
            return tracing::debug!("a peer has left before it was told what is wanted: {error}");
        }
        loop {
            tokio::select! {
                biased;
                message = socket.recv() => match message {
                    Ok(message) => _ = messages.send(message.into_vec()).await,
                    Err(error) => return tracing::debug!("a stream ended within a message: {error}"),
                },
                event = events.next() => match event {
                    // A second peer can only be a stranger (see `link::open`).
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
    // Closes the inner connection, at whose end the socket stops; until then it hands over what it has.
    drop(relay);
    if ended.is_some() && timeout(DRAIN_DEADLINE, receive).await.is_err() {
        tracing::warn!("a peer has left, and what it sent last is dropped: nobody took it in time");
    }
    // The crate's tasks would keep a socket alive that has not seen the end of its stream.
    backend.shutdown();
    Ok(ended.unwrap_or(Ok(()))?)
}
