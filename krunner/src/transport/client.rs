//! The agent's side of the two sockets, for `krunner send` and the self-test.

use std::io;
use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use zeromq::{PullSocket, PushSocket, Socket, SocketRecv as _, SocketSend as _, ZmqError, ZmqMessage};

use super::link::{self, Link, LinkError};
use super::listener;
use super::relay::{ReceiveLimits, Role, SendProgress};
use super::reply_sender::framed_bytes;
use crate::tasks::{TaskGroup, blocking};

/// Interval between attempts to connect, and between checks of what has been acknowledged.
const POLL: Duration = Duration::from_millis(5);

/// A connection to a runner.
///
/// Each of its connections has a relay, as in the runner, so that [`RunnerClient::flush`] knows when ops have arrived:
/// the `zeromq` crate would lose queued messages when the program exits.
pub(crate) struct RunnerClient {
    ops: PushSocket,
    progress: Arc<SendProgress>,
    sent_bytes: u64,
    replies: Option<PullSocket>,
    tasks: TaskGroup,
}

/// Where a runner listens.
#[derive(Debug, Clone)]
pub(crate) struct RunnerAddress {
    /// Host name or IPv4 address.
    pub host: String,
    /// The PULL port that receives ops.
    pub in_port: u16,
    /// The PUSH port that sends replies.
    pub out_port: u16,
}

/// An error of [`RunnerClient`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunnerClientError {
    /// The TCP connection could not be established.
    #[error("cannot connect to a runner at {endpoint}")]
    Connect {
        /// The `tcp://host:port` that was tried.
        endpoint: String,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// The listener is not a runner.
    #[error("not a krunner endpoint (ZMTP handshake failed)")]
    Handshake(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection broke.
    #[error("lost the connection to the runner")]
    Broken(#[from] ZmqError),
    /// No reply arrived in time.
    #[error("no reply from the runner within {0:?}")]
    Silent(Duration),
    /// The runner did not acknowledge the op in time.
    #[error("the runner did not receive the op within {0:?}")]
    NotTaken(Duration),
    /// A reply did not have two frames.
    #[error("reply has {0} frames, expected 2")]
    FrameCount(usize),
}

impl From<LinkError> for RunnerClientError {
    fn from(error: LinkError) -> Self {
        Self::Handshake(error.into())
    }
}

/// An undecoded reply: type and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawReply {
    /// The type frame, e.g. `stdout`.
    pub kind: String,
    /// The payload frame; its encoding depends on the type.
    pub payload: Bytes,
}

impl RunnerClient {
    /// Connects, first for replies if `replies` is set. Retries while the port is closed. A runner sends its replies to
    /// the newest connection, so a connected agent misses them meanwhile.
    ///
    /// # Errors
    /// If that fails until the deadline.
    pub(crate) async fn connect(
        address: &RunnerAddress,
        replies: bool,
        deadline: Duration,
    ) -> Result<Self, RunnerClientError> {
        let tasks = TaskGroup::new();
        let replies = if replies {
            let stream = dial(&address.host, address.out_port, deadline).await?;
            let role = Role::Pull(ReceiveLimits::default());
            Some(open::<PullSocket>(stream, role, None, &tasks).await?)
        } else {
            None
        };
        let stream = dial(&address.host, address.in_port, deadline).await?;
        let progress = SendProgress::new(&stream, Arc::new(Notify::new())).map_err(LinkError::from)?;
        let ops = open::<PushSocket>(stream, Role::Push, Some(Arc::clone(&progress)), &tasks).await?;
        Ok(Self { ops, progress, sent_bytes: 0, replies, tasks })
    }

    /// Sends an op.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(crate) async fn send(&mut self, op: &str, payload: impl Into<Bytes>) -> Result<(), RunnerClientError> {
        let payload = payload.into();
        self.sent_bytes += framed_bytes(op.len()) + framed_bytes(payload.len());
        let mut message = ZmqMessage::from(op);
        message.push_back(payload);
        Ok(self.ops.send(message).await?)
    }

    /// Waits until the runner's host has acknowledged everything that was sent.
    ///
    /// # Errors
    /// If it has not until the deadline.
    pub(crate) async fn flush(&self, deadline: Duration) -> Result<(), RunnerClientError> {
        let taken = async {
            while self.progress.relayed_bytes() < self.sent_bytes || !self.progress.is_acknowledged() {
                sleep(POLL).await;
            }
        };
        timeout(deadline, taken).await.map_err(|_| RunnerClientError::NotTaken(deadline))
    }

    /// Receives the next reply.
    ///
    /// # Errors
    /// If none arrives within `patience`, or the connection is lost.
    pub(crate) async fn receive(&mut self, patience: Duration) -> Result<RawReply, RunnerClientError> {
        let Some(replies) = &mut self.replies else { return Err(RunnerClientError::Silent(Duration::ZERO)) };
        let message = timeout(patience, replies.recv()).await.map_err(|_| RunnerClientError::Silent(patience))??;
        let [kind, payload] =
            <[Bytes; 2]>::try_from(message.into_vec()).map_err(|frames| RunnerClientError::FrameCount(frames.len()))?;
        Ok(RawReply { kind: String::from_utf8_lossy(&kind).into_owned(), payload })
    }

    /// Closes both connections.
    pub(crate) async fn close(self) {
        // Remaining tasks end with the program.
        let _ = self.tasks.stop(POLL).await;
    }
}

/// Opens a socket on a connection and runs its relay in a task.
async fn open<S: Socket + 'static>(
    stream: TcpStream,
    role: Role,
    progress: Option<Arc<SendProgress>>,
    tasks: &TaskGroup,
) -> Result<S, LinkError> {
    let Link { socket, relay, .. } = link::open(stream, role, progress).await?;
    tasks.spawn("client", async move {
        if let Err(error) = relay.await {
            tracing::debug!("connection to the runner closed: {error}");
        }
    });
    Ok(socket)
}

/// tokio's own name lookup panics if it cannot start a thread.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let name = host.to_owned();
    let addresses: Vec<_> = blocking(move || (name, port).to_socket_addrs()).await?.collect();
    TcpStream::connect(&addresses[..]).await
}

/// Connects, and retries while the connection is refused.
async fn dial(host: &str, port: u16, deadline: Duration) -> Result<TcpStream, RunnerClientError> {
    let give_up_at = Instant::now() + deadline;
    let connected = loop {
        let connected = timeout_at(give_up_at, connect(host, port)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() + POLL < give_up_at => {
                sleep(POLL).await;
            }
            connected => break connected,
        }
    };
    let stream =
        connected.map_err(|source| RunnerClientError::Connect { endpoint: format!("tcp://{host}:{port}"), source })?;
    listener::tune(&stream);
    Ok(stream)
}
