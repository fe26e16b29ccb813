//! How far a connection's outbound messages got. Shared by the sender, which hands them over, and the relay.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::sys;

/// Progress of the outbound direction, in bytes after the handshake.
#[derive(Debug)]
pub(super) struct SendProgress {
    /// Length of the messages handed to the socket, so that each value it has is the end of a message.
    handed: AtomicU64,
    /// Bytes that the TCP socket has accepted.
    relayed: AtomicU64,
    changed: Arc<Notify>,
    tcp: OwnedFd,
}

impl SendProgress {
    pub(super) fn new(tcp: &TcpStream, changed: Arc<Notify>) -> io::Result<Arc<Self>> {
        let tcp = tcp.as_fd().try_clone_to_owned()?;
        Ok(Arc::new(Self { handed: AtomicU64::new(0), relayed: AtomicU64::new(0), changed, tcp }))
    }

    /// Counts a message that the socket gets next.
    pub(super) fn hand_over(&self, bytes: u64) {
        self.handed.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn handed_bytes(&self) -> u64 {
        self.handed.load(Ordering::Relaxed)
    }

    pub(super) fn relayed_bytes(&self) -> u64 {
        self.relayed.load(Ordering::Relaxed)
    }

    /// Counts bytes that the TCP socket accepted.
    pub(super) fn relay(&self, bytes: usize) {
        if bytes > 0 {
            self.relayed.fetch_add(bytes as u64, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.relayed_bytes() >= self.handed_bytes() && sys::unsent_bytes(self.tcp.as_fd()).is_ok_and(|bytes| bytes == 0)
    }

    pub(super) fn close_connection(&self) {
        if let Err(error) = shutdown(self.tcp.as_raw_fd(), Shutdown::Both) {
            tracing::debug!("connection already closed: {error}");
        }
    }
}
