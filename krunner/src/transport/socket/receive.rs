//! The receiving end of a connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use zeromq::{PullSocket, Socket, SocketEvent, SocketRecv, SubSocket, ZmqError, ZmqResult};

use super::super::eviction::ConnectionUse;
use super::ConnectionLost;
use super::budget::ReceiveLimits;
use super::link::{self, Backend, Link, LinkError};
use super::relay::Role;

/// Time to receive what a peer sent just before it disconnected, which is all in memory by then.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The type of a socket that receives.
#[derive(Debug, Clone, Copy)]
pub(in crate::transport) enum SocketType {
    Pull,
    /// Subscribes to everything.
    Sub,
}

/// Receives from a new connection, within these limits, until it closes.
pub(in crate::transport) async fn receive(
    stream: TcpStream,
    socket_type: SocketType,
    limits: ReceiveLimits,
    messages: mpsc::Sender<Vec<Bytes>>,
    progress: ConnectionUse,
) -> Result<(), LinkError> {
    match socket_type {
        SocketType::Pull => serve::<PullSocket>(stream, limits, messages, progress).await,
        SocketType::Sub => serve::<SubSocket>(stream, limits, messages, progress).await,
    }
}

/// Opens a connection on which messages are received one by one. Bytes move only while the returned future is polled.
pub(in crate::transport) async fn open_receiver(
    stream: TcpStream,
    limits: ReceiveLimits,
) -> Result<(MessageReceiver, impl Future<Output = Result<(), LinkError>> + Send), LinkError> {
    let share = Arc::new(Mutex::new(limits.share()));
    let Link { socket, backend, events, relay } =
        link::open(stream, Role::Receive(limits.frames, Arc::clone(&share))).await?;
    Ok((MessageReceiver { socket, events, _backend: backend }, async move { Ok(relay.await?) }))
}

/// Receives the messages of one peer.
pub(in crate::transport) struct MessageReceiver {
    socket: PullSocket,
    events: BoxStream<'static, SocketEvent>,
    _backend: Backend,
}

impl MessageReceiver {
    /// The frames of the next message. After the connection closed, first those that had arrived.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(in crate::transport) async fn receive(&mut self) -> Result<Vec<Bytes>, ConnectionLost> {
        loop {
            // The crate's socket would wait for another peer.
            tokio::select! {
                biased;
                message = self.socket.recv() => return Ok(message?.into_vec()),
                event = self.events.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => {
                        return Err(ZmqError::Network(io::ErrorKind::UnexpectedEof.into()).into());
                    }
                    Some(_) => {}
                },
            }
        }
    }
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

async fn serve<S: InboundSocket>(
    stream: TcpStream,
    limits: ReceiveLimits,
    messages: mpsc::Sender<Vec<Bytes>>,
    progress: ConnectionUse,
) -> Result<(), LinkError> {
    // Dropped at the end, with the last message.
    let share = Arc::new(Mutex::new(limits.share()));
    let Link { mut socket, backend: _backend, mut events, mut relay } =
        link::open::<S>(stream, Role::Receive(limits.frames, Arc::clone(&share))).await?;
    progress.handshake_done();
    let receive = async {
        if let Err(error) = socket.begin().await {
            return tracing::debug!("a publisher disconnected before the subscription was sent: {error}");
        }
        loop {
            tokio::select! {
                biased;
                message = socket.recv() => match message {
                    Ok(message) => {
                        progress.message_passed();
                        let _ = messages.send(message.into_vec()).await;
                    }
                    Err(error) => return tracing::debug!("connection closed in the middle of a message: {error}"),
                },
                event = events.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => return,
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
    Ok(ended.unwrap_or(Ok(()))?)
}
