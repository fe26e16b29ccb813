//! Connects an accepted connection to its own `zeromq` socket, with the relay between them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net as std_unix;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use uuid::Uuid;
use zeromq::{Socket, SocketEvent};

use super::relay::{RelayError, Role, relay};
use crate::error::chain;

/// A peer must complete the handshake within this time.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// An error of a socket: its connection is lost.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct ConnectionLost(#[from] zeromq::ZmqError);

/// Why a link could not be opened, or why it closed.
#[derive(Debug, thiserror::Error)]
pub(in crate::transport) enum LinkError {
    #[error("cannot set up the relay")]
    Setup(#[source] zeromq::ZmqError),
    #[error("cannot set up the relay")]
    Io(#[from] io::Error),
    #[error("no ZMTP handshake within {HANDSHAKE_DEADLINE:?}")]
    Late,
    #[error("the peer disconnected before the handshake")]
    Left,
    #[error("ZMTP handshake failed")]
    Refused(#[source] zeromq::ZmqError),
    #[error("a foreign peer connected to the internal socket")]
    ForeignPeer,
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl LinkError {
    /// Whether this is an ordinary disconnect or a port check.
    pub(super) fn is_ordinary(&self) -> bool {
        match self {
            Self::Left => true,
            Self::Relay(RelayError::Io(error)) => has_peer_left(error),
            _ => false,
        }
    }
}

/// Whether the peer or the network ended a connection, and not a lack of descriptors or memory here.
fn has_peer_left(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkUnreachable, NotConnected, TimedOut,
        UnexpectedEof, WriteZero,
    };
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | NotConnected
            | TimedOut
            | UnexpectedEof
            | WriteZero
    )
}

/// Logs how a connection ended: at debug level if that is ordinary.
pub(in crate::transport) fn report(peer: SocketAddr, ended: Result<(), LinkError>) {
    match ended {
        Ok(()) => tracing::debug!("connection from {peer} closed"),
        Err(error) if error.is_ordinary() => tracing::debug!("connection from {peer} closed: {}", chain(&error)),
        Err(error) => tracing::warn!("closing the connection from {peer}: {}", chain(&error)),
    }
}

/// A `zeromq` socket with one peer. Bytes move only while `relay` is polled.
pub(super) struct Link<S, R> {
    pub(super) socket: S,
    /// Events of the socket: `Disconnected` once it has seen the end of the stream.
    pub(super) events: BoxStream<'static, SocketEvent>,
    pub(super) relay: R,
}

/// Resolves when the socket accepts a second peer, which can only be a foreign one (see [`open`]).
pub(super) async fn foreign_peer(events: &mut BoxStream<'static, SocketEvent>) {
    while let Some(event) = events.next().await {
        if matches!(event, SocketEvent::Accepted(..)) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Opens a link and completes the handshake.
///
/// The internal connection is a unix socket in the abstract namespace, so it needs no writable directory. Its random
/// name is visible in `/proc/net/unix` until the handshake completes, and the `zeromq` crate accepts any peer; a second
/// peer closes the link.
pub(super) async fn open<S: Socket>(
    peer: TcpStream,
    role: Role,
) -> Result<Link<S, impl Future<Output = Result<(), RelayError>> + Unpin + Send>, LinkError> {
    let address = std_unix::SocketAddr::from_abstract_name(Uuid::new_v4().as_bytes())?;
    let listener = std_unix::UnixListener::bind_addr(&address)?;
    let inner = std_unix::UnixStream::connect_addr(&address)?;
    inner.set_nonblocking(true)?;
    let mut socket = S::new();
    let mut events = socket.monitor();
    socket.bind_listener(listener).await.map_err(LinkError::Setup)?;

    let mut relay = Box::pin(relay(peer, UnixStream::from_std(inner)?, role));
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
        tracing::debug!("cannot close an internal listener: {error}");
    }
    Ok(Link { socket, events: events.boxed(), relay })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_peer_ends_a_connection_in_silence() {
        let ended = |number| LinkError::Relay(RelayError::Io(io::Error::from_raw_os_error(number)));
        for number in [nix::libc::ECONNRESET, nix::libc::EPIPE, nix::libc::ETIMEDOUT, nix::libc::EHOSTUNREACH] {
            assert!(ended(number).is_ordinary(), "{number}");
        }
        for number in [nix::libc::EMFILE, nix::libc::ENFILE, nix::libc::ENOMEM, nix::libc::EIO] {
            assert!(!ended(number).is_ordinary(), "{number}");
        }
    }
}
