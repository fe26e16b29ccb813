//! Progress of the session's start, for services that wait for it.
//!
//! ```text
//! Runtime ──▶ Bootstrap ──▶ Complete        services may start
//! ```
//!
//! A service may use what the runtime's initialization and the bootstrap script install, so none starts before both are done.
//! The session publishes the phase in a watch channel.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::ChildEnv;

/// The phase of a session's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartPhase {
    /// The runtime is being initialized.
    Runtime,
    /// The bootstrap script is running.
    Bootstrap,
    /// Services and steps may run.
    Complete,
}

impl StartPhase {
    /// What services still wait for, for messages.
    #[must_use]
    pub(crate) fn pending(self) -> Option<&'static str> {
        match self {
            Self::Runtime => Some("the runtime's initialization"),
            Self::Bootstrap => Some("the bootstrap script"),
            Self::Complete => None,
        }
    }
}

/// The phase, and the environment of children once the runtime has completed it.
#[derive(Debug, Clone)]
pub(crate) struct StartProgress {
    /// The current phase.
    pub phase: StartPhase,
    /// `None` until the runtime is initialized.
    pub env: Option<Arc<ChildEnv>>,
}

/// Publishes the progress of a session's start.
#[derive(Debug)]
pub(crate) struct StartPublisher(watch::Sender<StartProgress>);

impl StartPublisher {
    /// A start in its first phase, and its receiver.
    #[must_use]
    pub(crate) fn new() -> (Self, watch::Receiver<StartProgress>) {
        let (publisher, progress) = watch::channel(StartProgress { phase: StartPhase::Runtime, env: None });
        (Self(publisher), progress)
    }

    /// Publishes that the runtime is initialized, with the environment of children.
    pub(crate) fn runtime_ready(&self, env: &ChildEnv) {
        self.0.send_replace(StartProgress { phase: StartPhase::Bootstrap, env: Some(Arc::new(env.clone())) });
    }

    /// Publishes that the bootstrap script exited, or that there is none.
    pub(crate) fn complete(&self) {
        self.0.send_modify(|progress| progress.phase = StartPhase::Complete);
    }
}
