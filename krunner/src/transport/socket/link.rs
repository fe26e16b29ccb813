//! Connects an accepted connection to its own `zeromq` socket, with the relay between them.

use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net as std_unix;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use nix::unistd::Pid;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use uuid::Uuid;
use zeromq::{MultiPeerBackend, Socket, SocketEvent};

use super::relay::{RelayError, Role, relay};

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
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl LinkError {
    /// Whether this is an ordinary disconnect or a port check.
    pub(in crate::transport) fn is_ordinary(&self) -> bool {
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

/// A `zeromq` socket with one peer. Bytes move only while `relay` is polled.
pub(super) struct Link<S, R> {
    pub(super) socket: S,
    pub(super) backend: Backend,
    /// Events of the socket: `Disconnected` once it has seen the end of the stream.
    pub(super) events: BoxStream<'static, SocketEvent>,
    pub(super) relay: R,
}

/// What the tasks of a socket share. They would keep it, and the connection, for good if the socket is dropped before it has
/// seen the end of its stream.
pub(super) struct Backend(Arc<dyn MultiPeerBackend>);

impl Drop for Backend {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

/// Opens a link and completes the handshake.
///
/// The internal connection is a unix socket in the abstract namespace, so it needs no writable directory. The crate's socket
/// connects to a listener of ours, and only a connection from this process is accepted: the listener's name is visible in
/// `/proc/net/unix`, any process in the network namespace may connect to it, and the crate believes whatever it is sent. The
/// other way round, with a listener of the crate's, such a process would also be able to connect before ours does.
pub(super) async fn open<S: Socket>(
    peer: TcpStream,
    role: Role,
) -> Result<Link<S, impl Future<Output = Result<(), RelayError>> + Unpin + Send>, LinkError> {
    let mut socket = S::new();
    let (backend, events) = (Backend(socket.backend()), socket.monitor());
    let handshake = timeout(HANDSHAKE_DEADLINE, handshake(&mut socket, peer, role)).await;
    let relay = handshake.unwrap_or(Err(LinkError::Late))?;
    Ok(Link { socket, backend, events: events.boxed(), relay })
}

/// Connects the socket to the peer and returns the relay between them.
async fn handshake<S: Socket>(
    socket: &mut S,
    peer: TcpStream,
    role: Role,
) -> Result<impl Future<Output = Result<(), RelayError>> + Unpin + Send + use<S>, LinkError> {
    let name = Uuid::new_v4().simple().to_string();
    let listener = std_unix::UnixListener::bind_addr(&std_unix::SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let endpoint = format!("ipc://\0{name}");
    let mut connected = socket.connect(&endpoint);
    let inner = tokio::select! {
        biased;
        inner = accept_own(&listener) => inner?,
        connected = &mut connected => return Err(connected.map_or_else(LinkError::Setup, |()| LinkError::Left)),
    };
    drop(listener);
    let mut relay = Box::pin(relay(peer, inner, role));
    tokio::select! {
        biased;
        connected = connected => connected.map_err(LinkError::Refused)?,
        ended = &mut relay => return Err(ended.map_or_else(LinkError::Relay, |()| LinkError::Left)),
    }
    Ok(relay)
}

/// Accepts the connection from this process, and closes any other.
async fn accept_own(listener: &UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let peer = stream.peer_cred()?;
        if peer.pid() == Some(Pid::this().as_raw()) {
            return Ok(stream);
        }
        let (uid, pid) = (peer.uid(), peer.pid().unwrap_or(0));
        tracing::warn!("refused a connection of process {pid} of user {uid} to an internal socket");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

    #[tokio::test]
    async fn only_our_own_connection_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // Another process connects first, and says as much.
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))";
        let mut other = std::process::Command::new("python3");
        let other = other.args(["-c", script]).arg(&path).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut fds = [nix::poll::PollFd::new(listener.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::MAX).unwrap(), 1);
        let (ours, accepted) = tokio::join!(UnixStream::connect(&path), accept_own(&listener));
        let (mut ours, mut accepted) = (ours.unwrap(), accepted.unwrap());
        ours.write_all(b"ours").await.unwrap();
        let mut text = [0; 4];
        accepted.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"ours");
        assert_eq!(other.wait_with_output().unwrap().stdout, b"b''\n", "the other one is closed");
    }
}
