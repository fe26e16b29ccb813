//! The port where ops come in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use zeromq::{PullSocket, SocketEvent, SocketRecv as _};

use super::link::{self, Link, LinkError};
use super::listener;
use super::relay::{LARGE_FRAME_BYTES, Role};
use crate::error::{Critical, chain};
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

/// Tells how a connection ended, unless it was in the ordinary way.
pub(super) fn report(peer: SocketAddr, ended: Result<(), LinkError>) {
    match ended {
        Ok(()) => tracing::debug!("the connection from {peer} has ended"),
        Err(error) if error.is_ordinary() => tracing::debug!("the connection from {peer} has ended: {}", chain(&error)),
        Err(error) => tracing::warn!("the connection from {peer} is closed: {}", chain(&error)),
    }
}

async fn serve(stream: TcpStream, role: Role, messages: mpsc::Sender<Vec<Bytes>>) -> Result<(), LinkError> {
    let Link { mut socket, mut events, mut relay } = link::open::<PullSocket>(stream, role, None).await?;
    let receive = async {
        loop {
            tokio::select! {
                biased;
                message = socket.recv() => match message {
                    Ok(message) => _ = messages.send(message.into_vec()).await,
                    Err(error) => break tracing::debug!("a stream ended within a message: {error}"),
                },
                event = events.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => break,
                    Some(_) => {}
                },
            }
        }
    };
    tokio::pin!(receive);
    let ended = tokio::select! {
        ended = &mut relay => ended,
        () = &mut receive => return Ok(()),
    };
    // Closes the inner connection, at whose end the socket stops; until then it hands over what it has.
    drop(relay);
    if timeout(DRAIN_DEADLINE, receive).await.is_err() {
        tracing::debug!("a peer that has left is given up with messages that nobody took");
    }
    Ok(ended?)
}
