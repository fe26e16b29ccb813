//! The port where ops come in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use zeromq::{PullSocket, Socket as _, SocketEvent, SocketRecv as _};

use super::link::{self, Link, LinkError, report};
use super::listener;
use super::relay::{LARGE_FRAME_BYTES, Role};
use crate::error::Critical;
use crate::tasks::TaskGroup;

/// Between a connection and the session, which takes messages at once; each may be large.
const QUEUED_MESSAGES: usize = 1;

/// For what a peer sent just before it left; it is all in memory by then.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Messages of all peers, each as its frames.
pub type Inbound = mpsc::Receiver<Vec<Bytes>>;

/// Binds the port and receives from whoever connects.
///
/// # Errors
/// When the port cannot be bound.
pub async fn listen(port: u16, tasks: &TaskGroup) -> Result<Inbound, Critical> {
    let listener = listener::bind("replin", port).await?;
    let (messages, inbound) = mpsc::channel(QUEUED_MESSAGES);
    let large_frames = Arc::new(Semaphore::new(LARGE_FRAME_BYTES));
    listener::accept(listener, tasks, move |stream, peer| {
        let (messages, role) = (messages.clone(), Role::Pull(Arc::clone(&large_frames)));
        async move { report(peer, serve(stream, role, messages).await) }
    });
    Ok(inbound)
}

async fn serve(stream: TcpStream, role: Role, messages: mpsc::Sender<Vec<Bytes>>) -> Result<(), LinkError> {
    let Link { mut socket, mut events, mut relay } = link::open::<PullSocket>(stream, role, None).await?;
    let backend = socket.backend();
    let receive = async {
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
