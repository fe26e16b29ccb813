//! The agent's side of the two sockets: for `krunner send` and the self-test.

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
use super::outbox::framed_bytes;
use super::relay::{Intake, Progress, Role};
use crate::tasks::{TaskGroup, blocking};

/// Between two attempts to connect, and between two looks at what has been acknowledged.
const POLL: Duration = Duration::from_millis(5);

/// A connection to a runner.
///
/// Its connections have a relay each, as the runner's have, so that [`Client::flush`] knows when ops have
/// arrived: the `zeromq` crate would lose what is queued when the program ends.
pub struct Client {
    ops: PushSocket,
    progress: Arc<Progress>,
    sent_bytes: u64,
    replies: Option<PullSocket>,
    tasks: TaskGroup,
}

/// Where a runner listens.
#[derive(Debug, Clone)]
pub struct Address {
    /// Name or IPv4 address.
    pub host: String,
    /// Its port for ops.
    pub in_port: u16,
    /// Its port for replies.
    pub out_port: u16,
}

/// Why a client could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to a runner at {endpoint}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody listens who is not a runner.
    #[error("what listens there is no runner")]
    Handshake(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection broke.
    #[error("the connection to the runner is broken")]
    Broken(#[from] ZmqError),
    /// No reply came in time.
    #[error("the runner has sent nothing for {0:?}")]
    Silent(Duration),
    /// The runner has not taken what was sent.
    #[error("the runner has not taken the op within {0:?}")]
    NotTaken(Duration),
    /// A reply has not the form of one.
    #[error("a reply of {0} frames where 2 are expected")]
    FrameCount(usize),
}

impl From<LinkError> for ClientError {
    fn from(error: LinkError) -> Self {
        Self::Handshake(error.into())
    }
}

/// A reply as it came: type and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawReply {
    /// E.g. `stdout`.
    pub kind: String,
    /// Depends on the type.
    pub payload: Bytes,
}

impl Client {
    /// Connects, first for replies if they are wanted: a runner sends its replies to the connection made
    /// last, so an agent that is connected misses them meanwhile. Tries until the runner is there.
    ///
    /// # Errors
    /// When that has not worked at the deadline.
    pub async fn connect(address: &Address, replies: bool, deadline: Duration) -> Result<Self, ClientError> {
        let tasks = TaskGroup::new();
        let replies = if replies {
            let stream = dial(&address.host, address.out_port, deadline).await?;
            let role = Role::Pull(Intake::default());
            Some(open::<PullSocket>(stream, role, None, &tasks).await?)
        } else {
            None
        };
        let stream = dial(&address.host, address.in_port, deadline).await?;
        let progress = Progress::new(&stream, Arc::new(Notify::new())).map_err(LinkError::from)?;
        let ops = open::<PushSocket>(stream, Role::Push, Some(Arc::clone(&progress)), &tasks).await?;
        Ok(Self { ops, progress, sent_bytes: 0, replies, tasks })
    }

    /// Sends an op.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, op: &str, payload: impl Into<Bytes>) -> Result<(), ClientError> {
        let payload = payload.into();
        self.sent_bytes += framed_bytes(op.len()) + framed_bytes(payload.len());
        let mut message = ZmqMessage::from(op);
        message.push_back(payload);
        Ok(self.ops.send(message).await?)
    }

    /// Waits until the runner's machine has all that was sent.
    ///
    /// # Errors
    /// When it has not at the deadline.
    pub async fn flush(&self, deadline: Duration) -> Result<(), ClientError> {
        let taken = async {
            while self.progress.relayed_bytes() < self.sent_bytes || !self.progress.is_acknowledged() {
                sleep(POLL).await;
            }
        };
        timeout(deadline, taken).await.map_err(|_| ClientError::NotTaken(deadline))
    }

    /// The next reply.
    ///
    /// # Errors
    /// When none comes within `patience`, or the connection breaks.
    pub async fn receive(&mut self, patience: Duration) -> Result<RawReply, ClientError> {
        let Some(replies) = &mut self.replies else { return Err(ClientError::Silent(Duration::ZERO)) };
        let message = timeout(patience, replies.recv()).await.map_err(|_| ClientError::Silent(patience))??;
        let [kind, payload] =
            <[Bytes; 2]>::try_from(message.into_vec()).map_err(|frames| ClientError::FrameCount(frames.len()))?;
        Ok(RawReply { kind: String::from_utf8_lossy(&kind).into_owned(), payload })
    }

    /// Ends both connections.
    pub async fn close(self) {
        // Nothing is left to be waited for; what still runs ends with the program.
        let _ = self.tasks.stop(POLL).await;
    }
}

/// A socket on a connection, with the relay between them in a task.
async fn open<S: Socket + 'static>(
    stream: TcpStream,
    role: Role,
    progress: Option<Arc<Progress>>,
    tasks: &TaskGroup,
) -> Result<S, LinkError> {
    let Link { socket, relay, .. } = link::open(stream, role, progress).await?;
    tasks.spawn("client", async move {
        if let Err(error) = relay.await {
            tracing::debug!("the connection to the runner has ended: {error}");
        }
    });
    Ok(socket)
}

/// tokio's own look-up of a name panics when the kernel has no thread for it.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let name = host.to_owned();
    let addresses: Vec<_> = blocking(move || (name, port).to_socket_addrs()).await?.collect();
    TcpStream::connect(&addresses[..]).await
}

/// Connects, trying again while nobody listens.
async fn dial(host: &str, port: u16, deadline: Duration) -> Result<TcpStream, ClientError> {
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
        connected.map_err(|source| ClientError::Connect { endpoint: format!("tcp://{host}:{port}"), source })?;
    listener::tune(&stream);
    Ok(stream)
}
