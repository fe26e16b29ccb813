//! The agent's side of the two sockets, for `krunner send` and the self-test.

use std::io;
use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::listener;
use super::socket::{self, ConnectionLost, FrameLimits, LinkError, MessageReceiver, MessageSender, ReceiveLimits};
use crate::tasks::{TaskGroup, blocking};

/// Interval between attempts to connect, and between checks of what has been acknowledged.
const POLL: Duration = Duration::from_millis(5);

/// A reply is output of 64 KiB, or an object to display of 10 MiB at most.
const REPLY_LIMITS: FrameLimits = FrameLimits { message_bytes: 16 * 1024 * 1024, message_frames: 16 };

/// A client has one connection: one of the longest.
const REPLY_POOL_BYTES: usize = 16 * 1024 * 1024;

/// A connection to a runner.
///
/// Each of its connections has a relay, as in the runner, so that [`RunnerClient::flush`] knows when ops have arrived:
/// the `zeromq` crate would lose queued messages when the program exits.
pub(crate) struct RunnerClient {
    ops: MessageSender,
    /// Its sender is dropped when the connection for ops closes.
    ops_open: watch::Receiver<()>,
    replies: Option<MessageReceiver>,
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
    #[error("lost the connection to the runner: it exited, was killed or restarted")]
    Broken(#[from] ConnectionLost),
    /// The connection closed before the op was acknowledged.
    #[error("lost the connection to the runner before it received the op")]
    Closed,
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

impl RunnerClientError {
    /// Whether a runner was there, and did not answer or was lost.
    pub(crate) fn is_no_answer(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Closed | Self::Silent(_) | Self::NotTaken(_))
    }
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
            let limits = ReceiveLimits::new(REPLY_LIMITS, REPLY_POOL_BYTES);
            let (receiver, relay) = socket::open_receiver(stream, limits).await?;
            // The receiver reports the end of its connection itself.
            let _ = run(relay, &tasks);
            Some(receiver)
        } else {
            None
        };
        let stream = dial(&address.host, address.in_port, deadline).await?;
        let (ops, relay) = socket::open_sender(stream, Arc::new(Notify::new())).await?;
        let ops_open = run(relay, &tasks);
        Ok(Self { ops, ops_open, replies, tasks })
    }

    /// Sends an op.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(crate) async fn send(&mut self, op: &str, payload: impl Into<Bytes>) -> Result<(), RunnerClientError> {
        Ok(self.ops.send([Bytes::copy_from_slice(op.as_bytes()), payload.into()]).await?)
    }

    /// Waits until the runner's host has acknowledged everything that was sent.
    ///
    /// # Errors
    /// If it has not until the deadline, or the connection closed before.
    pub(crate) async fn flush(&self, deadline: Duration) -> Result<(), RunnerClientError> {
        let taken = async {
            while !self.ops.is_acknowledged() {
                if self.ops_open.has_changed().is_err() {
                    return Err(RunnerClientError::Closed);
                }
                sleep(POLL).await;
            }
            Ok(())
        };
        timeout(deadline, taken).await.map_err(|_| RunnerClientError::NotTaken(deadline))?
    }

    /// Receives the next reply.
    ///
    /// # Errors
    /// If none arrives within `patience`, or the connection is lost.
    pub(crate) async fn receive(&mut self, patience: Duration) -> Result<RawReply, RunnerClientError> {
        let Some(replies) = &mut self.replies else { return Err(RunnerClientError::Silent(Duration::ZERO)) };
        let message = timeout(patience, replies.receive()).await.map_err(|_| RunnerClientError::Silent(patience))??;
        let [kind, payload] =
            <[Bytes; 2]>::try_from(message).map_err(|frames| RunnerClientError::FrameCount(frames.len()))?;
        Ok(RawReply { kind: String::from_utf8_lossy(&kind).into_owned(), payload })
    }

    /// Closes both connections.
    pub(crate) async fn close(self) {
        // Remaining tasks end with the program.
        let _ = self.tasks.stop(POLL).await;
    }
}

/// Runs the relay of a connection in a task. The sender of the returned channel is dropped when the connection closes.
fn run(relay: impl Future<Output = Result<(), LinkError>> + Send + 'static, tasks: &TaskGroup) -> watch::Receiver<()> {
    let (open, is_open) = watch::channel(());
    tasks.spawn("client", async move {
        let _open = open;
        if let Err(error) = relay.await {
            tracing::debug!("connection to the runner closed: {error}");
        }
    });
    is_open
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
