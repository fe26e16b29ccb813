//! The signals that stop the runner, and their senders.

use std::fmt;

use nix::sys::signal::Signal as SignalNumber;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::FatalError;
use crate::sys::{SenderNote, SignalSender};

static SIGINT_SENDER: SenderNote = SenderNote::new();
static SIGTERM_SENDER: SenderNote = SenderNote::new();

/// Receives SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// A signal that stops the runner.
#[derive(Debug)]
pub(crate) struct StopSignal {
    signal: SignalNumber,
    /// `None` if unknown: only the sender of the first signal since the last check is recorded.
    sender: Option<SignalSender>,
}

impl Signals {
    /// Installs the handlers; from now on the signals do not terminate the process.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub(crate) fn watch() -> Result<Self, FatalError> {
        let setup = |source| FatalError::Setup { what: "signal handlers", source };
        // Before tokio's handlers, so that the sender is recorded when tokio wakes us: actions run in the order of
        // their registration.
        SIGINT_SENDER.watch(SignalNumber::SIGINT as i32).map_err(setup)?;
        SIGTERM_SENDER.watch(SignalNumber::SIGTERM as i32).map_err(setup)?;
        // Beyond RLIMIT_FSIZE a write fails with EFBIG instead of killing the runner. Programs get the default action.
        drop(signal(SignalKind::from_raw(SignalNumber::SIGXFSZ as i32)).map_err(setup)?);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(setup)?,
            terminate: signal(SignalKind::terminate()).map_err(setup)?,
        })
    }

    /// Receives the next signal.
    pub(crate) async fn next(&mut self) -> StopSignal {
        tokio::select! {
            _ = self.interrupt.recv() => StopSignal { signal: SignalNumber::SIGINT, sender: SIGINT_SENDER.take() },
            _ = self.terminate.recv() => StopSignal { signal: SignalNumber::SIGTERM, sender: SIGTERM_SENDER.take() },
        }
    }
}

impl StopSignal {
    /// Logs the signal, as a warning if a process of this container sent it, which may be a user's `pkill`.
    pub(super) fn log(&self) {
        match self.sender {
            Some(SignalSender::Process { .. }) => tracing::warn!("shutting down: {self}"),
            _ => tracing::info!("shutting down: {self}"),
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.signal.as_str())?;
        match &self.sender {
            None => Ok(()),
            Some(SignalSender::Kernel) => f.write_str(" from the kernel (Ctrl-C at a terminal)"),
            Some(SignalSender::Outside { uid }) => write!(f, " from outside this container (uid {uid})"),
            Some(SignalSender::Process { pid, uid, name }) if name.is_empty() => {
                write!(f, " from PID {pid} (uid {uid})")
            }
            Some(SignalSender::Process { pid, uid, name }) => {
                write!(f, " from PID {pid} ({}, uid {uid})", name.escape_debug())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sender: Option<SignalSender>) -> String {
        StopSignal { signal: SignalNumber::SIGTERM, sender }.to_string()
    }

    #[test]
    fn sender_is_named_as_far_as_it_is_known() {
        assert_eq!(shown(None), "SIGTERM");
        assert_eq!(shown(Some(SignalSender::Outside { uid: 0 })), "SIGTERM from outside this container (uid 0)");
        let process = |name: &str| Some(SignalSender::Process { pid: 77, uid: 1000, name: name.to_owned() });
        assert_eq!(shown(process("pkill")), "SIGTERM from PID 77 (pkill, uid 1000)");
        assert_eq!(shown(process("")), "SIGTERM from PID 77 (uid 1000)");
        assert_eq!(shown(process("a\nb")), "SIGTERM from PID 77 (a\\nb, uid 1000)");
    }
}
