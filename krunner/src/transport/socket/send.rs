//! The sending end of a connection.

use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use zeromq::{PushSocket, SocketSend as _, ZmqMessage};

use super::link::{self, Backend, ConnectionLost, Link, LinkError};
use super::progress::SendProgress;
use super::relay::Role;

/// The length of a frame on the wire: a header of 2 bytes up to a length of 255, of 9 beyond (ZMTP 3.0).
pub(in crate::transport) fn framed_bytes(payload_bytes: usize) -> u64 {
    payload_bytes as u64 + if payload_bytes > 255 { 9 } else { 2 }
}

/// Opens a connection on which messages are sent. Bytes move only while the returned future is polled; it ends with the
/// connection. `progressed` is notified whenever the network took bytes.
pub(in crate::transport) async fn open_sender(
    stream: TcpStream,
    progressed: Arc<Notify>,
) -> Result<(MessageSender, impl Future<Output = Result<(), LinkError>> + Send), LinkError> {
    let progress = SendProgress::new(&stream, progressed)?;
    let Link { socket, backend, relay, .. } = link::open(stream, Role::Send(Arc::clone(&progress))).await?;
    Ok((MessageSender { socket, _backend: backend, progress }, async move { Ok(relay.await?) }))
}

/// Sends messages to one peer and knows how much of them the network took.
pub(in crate::transport) struct MessageSender {
    socket: PushSocket,
    _backend: Backend,
    progress: Arc<SendProgress>,
}

impl MessageSender {
    /// Hands a message to the socket.
    ///
    /// # Errors
    /// If the peer disconnected.
    pub(in crate::transport) async fn send(&mut self, [kind, payload]: [Bytes; 2]) -> Result<(), ConnectionLost> {
        self.progress.hand_over(framed_bytes(kind.len()) + framed_bytes(payload.len()));
        let mut message = ZmqMessage::from(kind);
        message.push_back(payload);
        Ok(self.socket.send(message).await?)
    }

    /// Bytes of messages that the TCP socket has accepted.
    pub(in crate::transport) fn relayed_bytes(&self) -> u64 {
        self.progress.relayed_bytes()
    }

    /// Whether the peer's kernel has acknowledged all messages.
    pub(in crate::transport) fn is_acknowledged(&self) -> bool {
        self.progress.is_acknowledged()
    }

    /// Shuts the connection down; its relay notices.
    pub(in crate::transport) fn close_connection(&self) {
        self.progress.close_connection();
    }
}
