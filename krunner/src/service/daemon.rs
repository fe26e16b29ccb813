//! A service whose program puts itself into the background: the first process ends well, and another one listens.
//!
//! That one is no child that we have started, so its end is seen by its port, and it is stopped by the id of whoever
//! listens there.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::job::Progress;
use super::listeners;
use super::supervised::Ended;
use crate::process::{Control, Exit, Outcome};

/// From the end of the first process to the listener of the other; most listen before they let the first end.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Between two looks while it is waited for, and while it is stopped.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// Between two looks while it runs.
const PATIENT_POLL: Duration = Duration::from_secs(1);

/// From SIGTERM to SIGKILL, and from there to giving up.
const TERM_PATIENCE: Duration = Duration::from_secs(2);

/// Whether the end of a process may be the beginning of a daemon.
pub(super) fn may_begin(ended: &Ended) -> bool {
    ended.outcome == Outcome::Ended(Exit::Code(0))
}

/// Waits for the daemon's listener; whether there is one.
pub(super) async fn comes(port: u16, patience: Duration) -> bool {
    until(patience, true, port).await
}

/// Stays with a daemon to its end.
pub(super) async fn follow(name: &str, port: u16, tell: &watch::Sender<Progress>, control: &Control) {
    tracing::info!("the service {name} goes on in the background");
    tell.send_replace(Progress::Open);
    tokio::select! {
        () = closed(port) => tracing::info!("the service {name} has left port {port}"),
        () = control.terminated() => stop(name, port).await,
    }
}

/// Waits for the port to be open, or not; whether it came to that.
async fn until(patience: Duration, open: bool, port: u16) -> bool {
    let deadline = Instant::now() + patience;
    while listeners::is_open(port).await != open {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(EAGER_POLL).await;
    }
    true
}

async fn closed(port: u16) {
    while listeners::is_open(port).await {
        sleep(PATIENT_POLL).await;
    }
}

async fn stop(name: &str, port: u16) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if let Some(pid) = listeners::holder(port).await.and_then(|holder| holder.pid) {
            let _ = kill(pid, signal);
        }
        if until(TERM_PATIENCE, false, port).await {
            tracing::info!("the service {name} was ended");
            return;
        }
    }
    tracing::warn!("the service {name} could not be ended: something still listens on port {port}");
}
