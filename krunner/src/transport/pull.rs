//! The ports that receive messages: ops (PULL) and terminal input (SUB).

use bytes::Bytes;
use tokio::sync::mpsc;

use super::listener::{self, end_of_link};
use super::socket::{self, FrameLimits, ReceiveLimits, SocketType};
use crate::error::FatalError;
use crate::tasks::TaskGroup;

/// Queue between a connection and the session, which receives messages at once; each may be large.
const QUEUED_MESSAGES: usize = 1;

const MIB: usize = 1024 * 1024;

/// An op carries at most what came to Backend.AI in one piece: 1 MiB by HTTP, 4 MiB by a websocket (aiohttp's
/// defaults). Twice that leaves room for installations that raised them. A command line ends at 128 KiB
/// (`MAX_ARG_STRLEN`), an order for a service at 1 MiB.
///
/// An op has two frames; a few more are accepted so that a wrong count is logged instead of closing the connection.
pub(super) const OP_LIMITS: FrameLimits = FrameLimits { message_bytes: 8 * MIB as u64, message_frames: 16 };

/// The large messages of all connections: four of the longest.
const OP_POOL_BYTES: usize = 32 * MIB;

/// Terminal input comes from a websocket, which accepts messages up to 4 MiB (aiohttp's default).
const TYPED_LIMITS: FrameLimits = FrameLimits { message_bytes: 4 * MIB as u64, message_frames: 16 };

/// Two of the longest.
const TYPED_POOL_BYTES: usize = 8 * MIB;

/// Messages from all peers, each as its frames.
pub(crate) type Inbound = mpsc::Receiver<Vec<Bytes>>;

/// Binds the port for ops and receives from all peers.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn listen(port: u16, tasks: &TaskGroup) -> Result<Inbound, FatalError> {
    receive("replin", port, SocketType::Pull, ReceiveLimits::new(OP_LIMITS, OP_POOL_BYTES), tasks).await
}

/// Binds the port for terminal input and subscribes to everything that its peers publish.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn subscribe(name: &'static str, port: u16, tasks: &TaskGroup) -> Result<Inbound, FatalError> {
    receive(name, port, SocketType::Sub, ReceiveLimits::new(TYPED_LIMITS, TYPED_POOL_BYTES), tasks).await
}

async fn receive(
    name: &'static str,
    port: u16,
    socket_type: SocketType,
    limits: ReceiveLimits,
    tasks: &TaskGroup,
) -> Result<Inbound, FatalError> {
    let listener = listener::bind(name, port).await?;
    let (messages, inbound) = mpsc::channel(QUEUED_MESSAGES);
    listener::accept(listener, tasks, move |stream, _, progress| {
        let (messages, limits) = (messages.clone(), limits.clone());
        async move { end_of_link(socket::receive(stream, socket_type, limits, messages, progress).await) }
    });
    Ok(inbound)
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
