//! Reaching into a step that runs: interrupt it, end it, or wait for what it has written so far.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

/// What is asked of a running step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// How often SIGINT was asked for.
    pub(super) interrupts: u32,
    /// TERM, then KILL.
    pub(super) terminate: bool,
}

/// What is asked of a step while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To interrupt what it does, as Ctrl-C would.
    Interrupt,
    /// To come to its end.
    Terminate,
}

/// The demands on a step, one after the other; those made before are the first.
pub struct Asks {
    demands: watch::Receiver<Demand>,
    interrupts: u32,
}

impl Asks {
    /// Resolves with the next. After [`Asked::Terminate`] there are no others.
    pub async fn next(&mut self) -> Asked {
        loop {
            let demand = *self.demands.borrow_and_update();
            if demand.terminate {
                return Asked::Terminate;
            } else if demand.interrupts != self.interrupts {
                let is_new = demand.interrupts > self.interrupts;
                self.interrupts = demand.interrupts;
                if is_new {
                    return Asked::Interrupt;
                }
            }
            if self.demands.changed().await.is_err() {
                // Whoever could ask is gone.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Asks a pump to deliver what its pipe holds now, and to say when that is done.
pub(super) type Settle = oneshot::Sender<()>;

/// The handle on one step, whichever program of it runs at the moment.
///
/// An interrupt sticks: a step of several programs starts none after it.
#[derive(Clone, Default)]
pub struct Control {
    demand: Arc<watch::Sender<Demand>>,
    paused: Arc<watch::Sender<bool>>,
    pumps: Arc<Mutex<Vec<mpsc::Sender<Settle>>>>,
}

impl Control {
    /// A handle on a step that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends SIGINT to the process group.
    pub fn interrupt(&self) {
        self.demand.send_modify(|demand| demand.interrupts += 1);
    }

    /// Ends the process group: SIGTERM, and SIGKILL when that has not helped.
    pub fn terminate(&self) {
        self.demand.send_modify(|demand| demand.terminate = true);
    }

    /// Forgets interrupts that were meant for something else; the end stays the end.
    pub fn forget_interrupts(&self) {
        self.demand.send_modify(|demand| demand.interrupts = 0);
    }

    /// Whether the end was demanded.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.demand.borrow().terminate
    }

    /// Stops the process group, or lets it go on (SIGSTOP, SIGCONT).
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Whether the process group is to stand still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Resolves when the end was demanded.
    pub async fn terminated(&self) {
        // Cannot fail: `self` keeps the sending end.
        let _ = self.demands().wait_for(|demand| demand.terminate).await;
    }

    /// Waits until all that the program has written before this call is with the sink.
    pub async fn settle(&self) {
        let pumps = self.pumps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for pump in pumps {
            let (done, settled) = oneshot::channel();
            // A pump that is gone has delivered everything.
            if pump.send(done).await.is_ok() {
                let _ = settled.await;
            }
        }
    }

    /// The demands on this step, from its beginning.
    #[must_use]
    pub fn asks(&self) -> Asks {
        Asks { demands: self.demands(), interrupts: 0 }
    }

    pub(super) fn pauses(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    pub(super) fn demands(&self) -> watch::Receiver<Demand> {
        self.demand.subscribe()
    }

    pub(super) fn set_pumps(&self, pumps: Vec<mpsc::Sender<Settle>>) {
        *self.pumps.lock().unwrap_or_else(PoisonError::into_inner) = pumps;
    }
}
