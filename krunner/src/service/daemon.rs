//! Services that daemonize: the first process exits with 0, and another one listens.
//!
//! The daemon is not our child, so its exit is detected by its port, and it is stopped by the pid that owns the port. The same
//! holds for a program of the user that listened before the service was requested. A process that took the port over from it
//! is left alone.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tokio::time::sleep;

use crate::process::{ChildStatus, CommandOutcome, Control};
use crate::supervisor::{PortOwner, ProgramExit, is_open_in_session, session_listener, wait_until_in_session};

/// From the exit of the first process to the daemon's listener; most daemons listen before the first process exits.
pub(super) const LISTEN_TIMEOUT: Duration = Duration::from_secs(3);

/// Polling interval while the daemon runs.
const PATIENT_POLL: Duration = Duration::from_secs(1);

/// From SIGTERM to SIGKILL, and from SIGKILL to giving up.
const TERM_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a process that exited may have left a daemon.
pub(super) fn may_have_forked(ended: &ProgramExit) -> bool {
    ended.outcome == CommandOutcome::Exited(ChildStatus::Code(0))
}

/// Watches a listener until it is gone, and stops it on request.
pub(super) async fn follow(name: &str, port: u16, control: &Control) {
    let Some(daemon) = session_listener(port).await else {
        return tracing::info!("service {name} stopped listening on port {port}");
    };
    tokio::select! {
        () = closed(port) => tracing::info!("service {name} stopped listening on port {port}"),
        () = control.terminated() => stop(name, port, &daemon).await,
    }
}

async fn closed(port: u16) {
    while is_open_in_session(port).await {
        sleep(PATIENT_POLL).await;
    }
}

async fn stop(name: &str, port: u16, daemon: &PortOwner) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match session_listener(port).await {
            Some(owner) if !daemon.is_still(&owner) => {
                return tracing::warn!("port {port} of service {name} was taken over by {owner}, which keeps running");
            }
            Some(PortOwner { pid: Some(pid), .. }) => {
                // Fails if it exited meanwhile, or belongs to another user; the port tells.
                let _ = kill(pid, signal);
            }
            _ => {}
        }
        if wait_until_in_session(port, false, TERM_TIMEOUT).await {
            tracing::info!("service {name} was stopped");
            return;
        }
    }
    tracing::warn!("cannot stop service {name}: something still listens on port {port}");
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::supervisor::{port_owner, wait_until};

    /// A program that waits, with a listener as its stdin.
    fn program_with(listener: TcpListener) -> Child {
        let stdin = Stdio::from(std::os::fd::OwnedFd::from(listener));
        Command::new("sleep").arg("60").stdin(stdin).process_group(0).spawn().unwrap()
    }

    #[tokio::test]
    async fn only_the_daemon_itself_is_stopped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut daemon = program_with(listener);
        let owner = port_owner(port).await.unwrap();
        daemon.kill().unwrap();
        // A reaper of another test may have waited for it.
        let _ = daemon.wait();
        assert!(wait_until(port, false, TERM_TIMEOUT).await);
        let mut other = program_with(TcpListener::bind(("127.0.0.1", port)).unwrap());
        stop("test", port, &owner).await;
        assert!(is_open_in_session(port).await, "it took the port over and keeps running");
        let owner = port_owner(port).await.unwrap();
        stop("test", port, &owner).await;
        assert!(!is_open_in_session(port).await);
        let _ = other.wait();
    }
}
