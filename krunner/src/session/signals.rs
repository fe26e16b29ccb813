//! The signals that stop the runner.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Critical;

/// SIGINT and SIGTERM.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Watches from now on; the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch() -> Result<Self, Critical> {
        let setup = |source| Critical::Setup { what: "the handling of signals", source };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(setup)?,
            terminate: signal(SignalKind::terminate()).map_err(setup)?,
        })
    }

    /// The next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
