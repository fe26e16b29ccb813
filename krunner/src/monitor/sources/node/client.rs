//! The connection of a runner to the node of its machine.
//!
//! ```text
//!  waiting ─ connect, greet ─▶ greeting ─ Hello ─▶ connected ─ Kill, Missed ─▶ (events)
//!     ▲                           │ Refused, silent     │ end of file, malformed, silent
//!     └──────── back-off ─────────┴─────────────────────┘ NodeEvent::Lost
//! ```
//!
//! A socket that is not there is tried again with the longest pause and costs one system call. What the node sent before it ended
//! is read first. The task of the monitor polls [`NodeClient::next`], which may be cancelled at any time.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, socket, sockopt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::protocol::{
    ALIVE_INTERVAL, FromNode, GREETING_PATIENCE, MAX_FROM_NODE_BYTES, NodeKill, SOCKET, SOCKET_VARIABLE, ToNode,
    VERSION, Wants,
};
use super::{FrameBuffer, NodeFrameError, encode};
use crate::monitor::model::clock;

/// First pause before another attempt.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause. A node that starts later is found within this time.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// A node that says nothing for this long is not used any more.
const SILENCE: Duration = ALIVE_INTERVAL.saturating_mul(3);

/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;

/// Why there is no connection to the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The socket cannot be reached.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// What listens may be a program of this container.
    #[error("the socket belongs to a process of this PID namespace (pid {pid}, uid {uid}), not to the host's node")]
    NotTheNode {
        /// The PID of the process that listens, here.
        pid: i32,
        /// Its user, here.
        uid: u32,
    },
    /// The node does not serve us.
    #[error("refused: {0}")]
    Refused(String),
    /// The node speaks another version.
    #[error("the node speaks version {theirs} of the protocol, krunner speaks {VERSION}")]
    Version {
        /// The node's version.
        theirs: u32,
    },
    /// The node sent something else.
    #[error(transparent)]
    Frame(#[from] NodeFrameError),
    /// The node did not greet first.
    #[error("no greeting")]
    NoGreeting,
    /// The node said nothing for too long.
    #[error("no sign of life")]
    Silent,
    /// The node closed the connection, or it broke.
    #[error("the connection ended")]
    Ended(#[source] Option<io::Error>),
}

/// What happened at the node's socket.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    /// The node delivers OOM kills from now on.
    Connected {
        /// The node's release.
        version: String,
        /// Kills that an earlier connection did not take.
        missed: u64,
    },
    /// An OOM kill of this container.
    Kill(Box<NodeKill>),
    /// A kill in this container by a user-space OOM killer of the host.
    DaemonKill {
        /// Name of its process.
        daemon: String,
        /// The kill, without limit and trigger.
        kill: Box<NodeKill>,
    },
    /// Kills that the node could not deliver.
    Missed(u64),
    /// Records that the node's tracer dropped; kills may be missing.
    RecordsLost(u64),
    /// The node does not deliver any more.
    Lost(NodeError),
    /// Nothing yet, and why.
    Unavailable(NodeError),
}

/// The socket that a runner uses: [`SOCKET_VARIABLE`], or the usual one. `None` if it is set to nothing.
#[must_use]
pub(crate) fn socket_path(variable: Option<OsString>) -> Option<PathBuf> {
    let path = variable.map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    (!path.as_os_str().is_empty()).then_some(path)
}

/// The name of the variable that [`socket_path`] is about.
pub(crate) const VARIABLE: &str = SOCKET_VARIABLE;

/// A connection to the node, or the attempt at one.
#[derive(Debug)]
pub(crate) struct NodeClient {
    path: PathBuf,
    /// Whether our PID namespace is the host's, where the node runs.
    is_on_host: bool,
    state: ClientState,
    pause: Duration,
}

#[derive(Debug)]
enum ClientState {
    Waiting { until: Instant },
    Greeting(Connection),
    Connected(Connection),
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    frames: FrameBuffer,
    /// When the next message is overdue.
    until: Instant,
}

impl NodeClient {
    /// Connects at the first [`Self::next`].
    #[must_use]
    pub(crate) fn new(path: PathBuf, is_on_host: bool) -> Self {
        let state = ClientState::Waiting { until: Instant::now() };
        Self { path, is_on_host, state, pause: MIN_PAUSE }
    }

    /// Waits for the next event.
    pub(crate) async fn next(&mut self) -> NodeEvent {
        loop {
            let event = match &mut self.state {
                ClientState::Waiting { until } => {
                    sleep_until(*until).await;
                    match Connection::open(&self.path, self.is_on_host) {
                        Ok(connection) => self.state = ClientState::Greeting(connection),
                        Err(error) => return self.give_up(error),
                    }
                    continue;
                }
                ClientState::Greeting(connection) => connection.message(None).await.and_then(greeted),
                ClientState::Connected(connection) => connection.message(Some(SILENCE)).await.map(event),
            };
            match event {
                Ok(Some(event)) => return self.changed(event),
                Ok(None) => {}
                Err(error) => return self.give_up(error),
            }
        }
    }

    fn changed(&mut self, event: NodeEvent) -> NodeEvent {
        if let NodeEvent::Connected { .. } = &event {
            self.pause = MIN_PAUSE;
            let waiting = ClientState::Waiting { until: Instant::now() };
            if let ClientState::Greeting(connection) = std::mem::replace(&mut self.state, waiting) {
                let until = Instant::now() + SILENCE;
                self.state = ClientState::Connected(Connection { until, ..connection });
            }
        }
        event
    }

    fn give_up(&mut self, error: NodeError) -> NodeEvent {
        let was_connected = matches!(self.state, ClientState::Connected(_));
        if is_absent(&error) {
            self.pause = MAX_PAUSE;
        }
        self.state = ClientState::Waiting { until: Instant::now() + with_jitter(self.pause) };
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        if was_connected { NodeEvent::Lost(error) } else { NodeEvent::Unavailable(error) }
    }
}

impl Connection {
    fn open(path: &Path, is_on_host: bool) -> Result<Self, NodeError> {
        let stream = connect(path, Wants::Kills, is_on_host)?;
        let stream = UnixStream::from_std(stream).map_err(NodeError::Connect)?;
        let until = Instant::now() + GREETING_PATIENCE;
        Ok(Self { stream, frames: FrameBuffer::new(MAX_FROM_NODE_BYTES), until })
    }

    /// The next message; the deadline moves by `extends` with each.
    async fn message(&mut self, extends: Option<Duration>) -> Result<FromNode, NodeError> {
        loop {
            if let Some(message) = self.frames.next()? {
                if let Some(extends) = extends {
                    self.until = Instant::now() + extends;
                }
                return Ok(message);
            }
            timeout_at(self.until, self.stream.readable()).await.map_err(|_| NodeError::Silent)?.map_err(ended)?;
            let mut bytes = [0; READ_BYTES];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(NodeError::Ended(None)),
                Ok(length) => self.frames.push(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(ended(error)),
            }
        }
    }
}

/// Connects and greets. A unix socket connects or fails at once, and takes a greeting at once. The stream does not block.
pub(super) fn connect(path: &Path, wants: Wants, is_on_host: bool) -> Result<StdStream, NodeError> {
    // In blocking mode a full queue of connections would be waited for without end.
    let mut stream = connect_now(path).map_err(NodeError::Connect)?;
    check_owner(&stream, is_on_host)?;
    let hello = ToNode::Hello { protocol: VERSION, version: env!("CARGO_PKG_VERSION").to_owned(), wants };
    stream.write_all(&encode(&hello)).map_err(ended)?;
    Ok(stream)
}

fn connect_now(path: &Path) -> io::Result<StdStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(StdStream::from(socket))
}

/// The node runs in the host's PID namespace, so in a container it has no PID (unix(7), `SO_PEERCRED`). On the host it is root's.
fn check_owner(stream: &impl AsFd, is_on_host: bool) -> Result<(), NodeError> {
    let owner = getsockopt(stream, sockopt::PeerCredentials).map_err(|error| NodeError::Connect(error.into()))?;
    let is_node = if is_on_host { owner.uid() == 0 } else { owner.pid() == 0 };
    if is_node { Ok(()) } else { Err(NodeError::NotTheNode { pid: owner.pid(), uid: owner.uid() }) }
}

fn greeted(message: FromNode) -> Result<Option<NodeEvent>, NodeError> {
    match message {
        FromNode::Hello { protocol: VERSION, version, missed } => Ok(Some(NodeEvent::Connected { version, missed })),
        FromNode::Hello { protocol, .. } => Err(NodeError::Version { theirs: protocol }),
        FromNode::Refused { reason } => Err(NodeError::Refused(reason)),
        _ => Err(NodeError::NoGreeting),
    }
}

fn event(message: FromNode) -> Option<NodeEvent> {
    match message {
        FromNode::Kill(kill) => Some(NodeEvent::Kill(kill)),
        FromNode::DaemonKill { daemon, kill } => Some(NodeEvent::DaemonKill { daemon, kill }),
        FromNode::Missed { kills } => Some(NodeEvent::Missed(kills)),
        FromNode::RecordsLost { records } => Some(NodeEvent::RecordsLost(records)),
        // The end of the connection follows a refusal.
        FromNode::Refused { .. }
        | FromNode::Hello { .. }
        | FromNode::Alive
        | FromNode::Status(_)
        | FromNode::Unknown => None,
    }
}

fn ended(error: io::Error) -> NodeError {
    NodeError::Ended(Some(error))
}

/// Whether there is no node on this machine, or none for this container.
fn is_absent(error: &NodeError) -> bool {
    matches!(error, NodeError::Connect(error) if error.kind() == io::ErrorKind::NotFound)
        || matches!(error, NodeError::NotTheNode { .. } | NodeError::Refused(_) | NodeError::Version { .. })
}

/// Between three quarters of the pause and all of it, so that the runners of a machine do not return at the same moment.
fn with_jitter(pause: Duration) -> Duration {
    let quarter = pause / 4;
    let spread = (clock::boot_ns() ^ u64::from(std::process::id())) % 1024;
    pause.saturating_sub(quarter * u32::try_from(spread).unwrap_or(0) / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_names_another_socket_or_none() {
        assert_eq!(socket_path(None), Some(PathBuf::from(SOCKET)));
        assert_eq!(socket_path(Some("/x".into())), Some(PathBuf::from("/x")));
        assert_eq!(socket_path(Some("".into())), None);
    }

    #[test]
    fn jitter_shortens_a_pause_by_a_quarter_at_most() {
        for _ in 0..100 {
            let pause = with_jitter(MAX_PAUSE);
            assert!(pause <= MAX_PAUSE && pause >= MAX_PAUSE * 3 / 4, "{pause:?}");
        }
    }
}
