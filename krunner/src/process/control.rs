//! Controls a running step: interrupt it, terminate it, pause it, or flush its output.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

/// The requests made to a step so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ControlState {
    /// How many interrupts were requested.
    pub(super) interrupts: u32,
    /// Whether termination was requested.
    pub(super) terminate: bool,
}

/// A request to a running step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlRequest {
    /// Interrupt it, as Ctrl-C does.
    Interrupt,
    /// Terminate it: SIGTERM, then SIGKILL.
    Terminate,
}

/// Receives the requests to a step one by one, starting with those made before the receiver existed.
pub(crate) struct ControlReceiver {
    state: watch::Receiver<ControlState>,
    interrupts: u32,
}

impl ControlReceiver {
    /// Resolves to the next request. [`ControlRequest::Terminate`] is the last one.
    pub(crate) async fn next(&mut self) -> ControlRequest {
        loop {
            let state = *self.state.borrow_and_update();
            if state.terminate {
                return ControlRequest::Terminate;
            } else if state.interrupts != self.interrupts {
                let is_new = state.interrupts > self.interrupts;
                self.interrupts = state.interrupts;
                if is_new {
                    return ControlRequest::Interrupt;
                }
            }
            if self.state.changed().await.is_err() {
                // All `Control` handles are gone.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Tells a pump to deliver what its pipe holds now; answered when that is done.
pub(super) type FlushRequest = oneshot::Sender<()>;

/// A handle to one step, whichever of its programs is running.
///
/// An interrupt is sticky: a step with several programs starts no further one.
#[derive(Clone, Default)]
pub(crate) struct Control {
    state: Arc<watch::Sender<ControlState>>,
    paused: Arc<watch::Sender<bool>>,
    pumps: Arc<Mutex<Vec<mpsc::Sender<FlushRequest>>>>,
}

impl Control {
    /// A handle to a step that has not started.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Requests SIGINT for the process group.
    pub(crate) fn interrupt(&self) {
        self.state.send_modify(|state| state.interrupts += 1);
    }

    /// Requests the termination of the process group: SIGTERM, then SIGKILL after a timeout.
    pub(crate) fn terminate(&self) {
        self.state.send_modify(|state| state.terminate = true);
    }

    /// Discards interrupts that were meant for an earlier program. Termination cannot be undone.
    pub(crate) fn forget_interrupts(&self) {
        self.state.send_modify(|state| state.interrupts = 0);
    }

    /// Whether termination was requested.
    #[must_use]
    pub(crate) fn is_terminated(&self) -> bool {
        self.state.borrow().terminate
    }

    /// Stops or continues the process group (SIGSTOP, SIGCONT).
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Whether the process group should be stopped.
    #[must_use]
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Resolves when termination is requested.
    pub(crate) async fn terminated(&self) {
        // Cannot fail: `self` holds the sender.
        let _ = self.watch().wait_for(|state| state.terminate).await;
    }

    /// Waits until the sink has received everything that the program wrote before this call.
    pub(crate) async fn flush_output(&self) {
        let pumps = self.pumps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for pump in pumps {
            let (done, flushed) = oneshot::channel();
            // A pump that has stopped has delivered everything.
            if pump.send(done).await.is_ok() {
                let _ = flushed.await;
            }
        }
    }

    /// A receiver of all requests to this step.
    #[must_use]
    pub(crate) fn requests(&self) -> ControlReceiver {
        ControlReceiver { state: self.watch(), interrupts: 0 }
    }

    pub(super) fn pauses(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    pub(super) fn watch(&self) -> watch::Receiver<ControlState> {
        self.state.subscribe()
    }

    pub(super) fn set_pumps(&self, pumps: Vec<mpsc::Sender<FlushRequest>>) {
        *self.pumps.lock().unwrap_or_else(PoisonError::into_inner) = pumps;
    }
}
