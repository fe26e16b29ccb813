//! The agent's side of the two sockets: for `krunner send` and the self-test.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use zeromq::{PullSocket, PushSocket, Socket as _, SocketRecv as _, SocketSend as _, ZmqError, ZmqMessage};

/// A connection to a runner.
pub struct Client {
    ops: PushSocket,
    replies: PullSocket,
}

/// Why a client could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not a runner.
    #[error("cannot connect to a runner at {endpoint}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        source: ZmqError,
    },
    /// The connection broke.
    #[error("the connection to the runner is broken")]
    Broken(#[from] ZmqError),
    /// No reply came in time.
    #[error("the runner has sent nothing for {0:?}")]
    Silent(Duration),
    /// A reply has not the form of one.
    #[error("a reply of {0} frames where 2 are expected")]
    FrameCount(usize),
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
    /// Connects both sockets, the one for replies first; tries until the runner is there.
    ///
    /// # Errors
    /// When that has not worked at the deadline.
    pub async fn connect(host: &str, in_port: u16, out_port: u16, deadline: Duration) -> Result<Self, ClientError> {
        let mut client = Self { ops: PushSocket::new(), replies: PullSocket::new() };
        let connected = |endpoint: String, result: Result<Result<(), ZmqError>, _>| match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(ClientError::Connect { endpoint, source }),
            Err(_) => Err(ClientError::Connect { endpoint, source: ZmqError::ConnectTimeout(deadline) }),
        };
        let endpoint = format!("tcp://{host}:{out_port}");
        let result = timeout(deadline, client.replies.connect(&endpoint)).await;
        connected(endpoint, result)?;
        let endpoint = format!("tcp://{host}:{in_port}");
        let result = timeout(deadline, client.ops.connect(&endpoint)).await;
        connected(endpoint, result)?;
        Ok(client)
    }

    /// Sends an op.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, op: &str, payload: impl Into<Bytes>) -> Result<(), ClientError> {
        let mut message = ZmqMessage::from(op);
        message.push_back(payload.into());
        Ok(self.ops.send(message).await?)
    }

    /// The next reply.
    ///
    /// # Errors
    /// When none comes within `patience`, or the connection breaks.
    pub async fn receive(&mut self, patience: Duration) -> Result<RawReply, ClientError> {
        let message = timeout(patience, self.replies.recv()).await.map_err(|_| ClientError::Silent(patience))??;
        let [kind, payload] =
            <[Bytes; 2]>::try_from(message.into_vec()).map_err(|frames| ClientError::FrameCount(frames.len()))?;
        Ok(RawReply { kind: String::from_utf8_lossy(&kind).into_owned(), payload })
    }
}
