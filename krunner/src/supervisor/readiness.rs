//! When a child that runs is ready to be used.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::listeners::{self, PortOwner};

/// Polling interval of the port right after the start: sshd listens within milliseconds, and the session's first `status`
/// waits for it.
const FIRST_POLL: Duration = Duration::from_millis(10);

/// How long [`FIRST_POLL`] is used.
const FIRST_FOR: Duration = Duration::from_secs(1);

/// Polling interval while a response is likely to wait for the port.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// How long after the start [`EAGER_POLL`] is used.
const EAGER_FOR: Duration = Duration::from_secs(15);

/// Polling interval afterwards.
const PATIENT_POLL: Duration = Duration::from_millis(500);

/// How to see that a child is ready.
pub(crate) trait ChildReadiness: Send {
    /// Resolves when it is ready; dropped when it ended.
    fn ready(self) -> impl Future<Output = ()> + Send;
}

/// A child without any is ready as soon as it runs.
impl<R: ChildReadiness> ChildReadiness for Option<R> {
    async fn ready(self) {
        if let Some(readiness) = self {
            readiness.ready().await;
        }
    }
}

/// A child is ready when its port has a listener of this session. One of another user, which came after the child's start,
/// does not count: it would receive what the agent means for the child.
#[derive(Debug)]
pub(crate) struct PortReadiness {
    port: u16,
}

/// The port already has a listener, which would be mistaken for the child.
#[derive(Debug, thiserror::Error)]
#[error("port {port} is already in use by {owner}")]
pub(crate) struct PortTaken {
    /// The child's port.
    pub port: u16,
    /// The listening process.
    pub owner: PortOwner,
}

impl PortReadiness {
    /// For a child that has not started yet.
    ///
    /// # Errors
    /// When the port already has a listener.
    pub(crate) async fn of_free_port(port: u16) -> Result<Self, PortTaken> {
        match listeners::port_owner(port).await {
            Some(owner) => Err(PortTaken { port, owner }),
            None => Ok(Self { port }),
        }
    }
}

impl ChildReadiness for PortReadiness {
    async fn ready(self) {
        let begun = Instant::now();
        let mut is_told = false;
        while !listeners::is_open_in_session(self.port).await {
            if !is_told && let Some(owner) = listeners::port_owner(self.port).await {
                // It may have been opened by this session meanwhile.
                is_told = !owner.may_be_of_this_session();
                if is_told {
                    tracing::warn!(
                        "port {} is used by {owner} of another user, which is not taken for the service",
                        self.port
                    );
                }
            }
            sleep(poll_after(begun.elapsed())).await;
        }
    }
}

fn poll_after(elapsed: Duration) -> Duration {
    match elapsed {
        elapsed if elapsed < FIRST_FOR => FIRST_POLL,
        elapsed if elapsed < EAGER_FOR => EAGER_POLL,
        _ => PATIENT_POLL,
    }
}
