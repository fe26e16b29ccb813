//! Services that daemonize: the first process exits with 0, and another one listens.
//!
//! The daemon is not our child, so its exit is detected by its port, and it is stopped by the pid that owns the port. The same
//! holds for a program of the user that listened before the service was requested.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tokio::time::{Instant, sleep};

use super::listeners;
use super::process::ServiceExit;
use crate::process::{ChildStatus, CommandOutcome, Control};

/// From the exit of the first process to the daemon's listener; most daemons listen before the first process exits.
pub(super) const LISTEN_TIMEOUT: Duration = Duration::from_secs(3);

/// Polling interval while waiting for the listener or its end.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// Polling interval while the daemon runs.
const PATIENT_POLL: Duration = Duration::from_secs(1);

/// From SIGTERM to SIGKILL, and from SIGKILL to giving up.
const TERM_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a process that exited may have left a daemon.
pub(super) fn may_have_forked(ended: &ServiceExit) -> bool {
    ended.outcome == CommandOutcome::Exited(ChildStatus::Code(0))
}

/// Waits for the daemon's listener; `false` if there is none in time.
pub(super) async fn wait_for_listener(port: u16, patience: Duration) -> bool {
    wait_until(patience, true, port).await
}

/// Watches a listener until it is gone, and stops it on request.
pub(super) async fn follow(name: &str, port: u16, control: &Control) {
    tokio::select! {
        () = closed(port) => tracing::info!("service {name} stopped listening on port {port}"),
        () = control.terminated() => stop(name, port).await,
    }
}

/// Waits until the port is open or closed; `false` at the timeout.
async fn wait_until(patience: Duration, open: bool, port: u16) -> bool {
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
        if let Some(pid) = listeners::port_owner(port).await.and_then(|owner| owner.pid) {
            let _ = kill(pid, signal);
        }
        if wait_until(TERM_TIMEOUT, false, port).await {
            tracing::info!("service {name} was stopped");
            return;
        }
    }
    tracing::warn!("cannot stop service {name}: something still listens on port {port}");
}
