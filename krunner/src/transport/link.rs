//! Giving one accepted connection a `zeromq` socket of its own, with the relay between them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net as std_unix;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use uuid::Uuid;
use zeromq::{Socket, SocketEvent};

use super::relay::{Progress, RelayError, Role, relay};
use crate::error::chain;

/// A peer that has not introduced itself by then is not one.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot set up a link")]
    Setup(#[source] zeromq::ZmqError),
    #[error("cannot set up a link")]
    Io(#[from] io::Error),
    #[error("no handshake within {HANDSHAKE_DEADLINE:?}")]
    Late,
    #[error("the peer left before it had introduced itself")]
    Left,
    #[error("the handshake failed")]
    Refused(#[source] zeromq::ZmqError),
    #[error("a stranger has connected to its inner socket")]
    Intruder,
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl LinkError {
    /// Whether this is what a port check or a peer that changed its mind looks like.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(self, Self::Left | Self::Relay(RelayError::Io(_)))
    }
}

/// Tells how a connection ended, unless it was in the ordinary way.
pub(super) fn report(peer: SocketAddr, ended: Result<(), LinkError>) {
    match ended {
        Ok(()) => tracing::debug!("the connection from {peer} has ended"),
        Err(error) if error.is_ordinary() => tracing::debug!("the connection from {peer} has ended: {}", chain(&error)),
        Err(error) => tracing::warn!("the connection from {peer} is closed: {}", chain(&error)),
    }
}

/// A `zeromq` socket with one peer, whose bytes pass through `relay`. Nothing moves unless that is polled.
pub(super) struct Link<S, R> {
    pub(super) socket: S,
    /// The socket's own events: `Disconnected` once it has seen the end of the stream.
    pub(super) events: BoxStream<'static, SocketEvent>,
    pub(super) relay: R,
}

/// Resolves when the socket has got a second peer, which can only be a stranger (see [`open`]).
pub(super) async fn intrusion(events: &mut BoxStream<'static, SocketEvent>) {
    while let Some(event) = events.next().await {
        if matches!(event, SocketEvent::Accepted(..)) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Opens a link and goes through the handshake.
///
/// The inner connection is a unix socket in the abstract namespace: no folder has to be writable for it.
/// Its random name shows in `/proc/net/unix` until the handshake is through, and the `zeromq` crate
/// accepts whoever comes; a second peer ends the link.
pub(super) async fn open<S: Socket>(
    peer: TcpStream,
    role: Role,
    progress: Option<Arc<Progress>>,
) -> Result<Link<S, impl Future<Output = Result<(), RelayError>> + Unpin + Send>, LinkError> {
    let address = std_unix::SocketAddr::from_abstract_name(Uuid::new_v4().as_bytes())?;
    let listener = std_unix::UnixListener::bind_addr(&address)?;
    let inner = std_unix::UnixStream::connect_addr(&address)?;
    inner.set_nonblocking(true)?;
    let mut socket = S::new();
    let mut events = socket.monitor();
    socket.bind_listener(listener).await.map_err(LinkError::Setup)?;

    let mut relay = Box::pin(relay(peer, UnixStream::from_std(inner)?, role, progress));
    let accepted = async {
        while let Some(event) = events.next().await {
            match event {
                SocketEvent::Accepted(..) => return Ok(()),
                SocketEvent::AcceptFailed(error) => return Err(LinkError::Refused(error)),
                _ => {}
            }
        }
        Err(LinkError::Left)
    };
    let handshake = timeout(HANDSHAKE_DEADLINE, async {
        tokio::select! {
            biased;
            accepted = accepted => accepted,
            ended = &mut relay => Err(ended.map_or_else(LinkError::Relay, |()| LinkError::Left)),
        }
    });
    handshake.await.unwrap_or(Err(LinkError::Late))?;
    for error in socket.unbind_all().await {
        tracing::debug!("an inner listener did not close: {error}");
    }
    Ok(Link { socket, events: events.boxed(), relay })
}
