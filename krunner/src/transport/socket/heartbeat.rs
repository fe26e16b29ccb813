//! The answer to a peer's heartbeat. The inbound half of a relay leaves it here for the outbound half.
//!
//! Holds at most one PONG: of several PINGs that arrive while the peer reads nothing, the last one is answered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

/// A PONG that has not been sent yet.
#[derive(Debug, Default)]
pub(super) struct PendingPong {
    pong: Mutex<Option<BytesMut>>,
    changed: Notify,
}

impl PendingPong {
    /// Replaces the PONG to send.
    pub(super) fn set(&self, pong: BytesMut) {
        *self.lock() = Some(pong);
        self.changed.notify_one();
    }

    /// Takes the PONG to send.
    pub(super) fn take(&self) -> Option<BytesMut> {
        self.lock().take()
    }

    /// Whether there is one.
    pub(super) fn is_set(&self) -> bool {
        self.lock().is_some()
    }

    /// Resolves after [`Self::set`].
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Option<BytesMut>> {
        self.pong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
