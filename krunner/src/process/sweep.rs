//! Terminates the processes that user code left behind, at shutdown.
//!
//! As subreaper we are the parent of every orphaned descendant, so one scan of the process table finds them all,
//! whatever process group or session they are in.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

/// Interval between scans of the process table.
const POLL: Duration = Duration::from_millis(20);

/// Interval between scans in [`kill_children`].
const KILL_POLL: Duration = Duration::from_millis(2);

/// Sends SIGTERM to all remaining children, and SIGKILL to those that are left after `patience`.
///
/// More orphans appear as their parents exit, so the scan repeats until no child is left.
pub(crate) async fn terminate_orphans(patience: Duration) {
    let kill_at = Instant::now() + patience;
    let give_up_at = kill_at + patience;
    let mut told = Vec::new();
    while Instant::now() < give_up_at {
        let children = children();
        if children.is_empty() {
            return;
        }
        let impatient = Instant::now() >= kill_at;
        for pid in children {
            if impatient {
                let _ = kill(pid, Signal::SIGKILL);
            } else if !told.contains(&pid) {
                let _ = kill(pid, Signal::SIGTERM);
                told.push(pid);
            }
        }
        tokio::time::sleep(POLL).await;
    }
    tracing::warn!("some processes could not be killed: {:?}", children());
}

/// Kills all descendants for a fast shutdown: children, then grandchildren as they are reparented to us.
pub(crate) async fn kill_children(deadline: Duration) {
    let give_up_at = Instant::now() + deadline;
    loop {
        let children = children();
        if children.is_empty() || Instant::now() >= give_up_at {
            return;
        }
        for pid in children {
            let _ = kill(pid, Signal::SIGKILL);
        }
        tokio::time::sleep(KILL_POLL).await;
    }
}

/// Our children that are still running. A pid cannot be reused before we reap it.
fn children() -> Vec<Pid> {
    let me = Pid::this().as_raw();
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    processes
        .filter_map(|process| process.ok()?.stat().ok())
        .filter(|stat| stat.ppid == me && stat.state != 'Z')
        .map(|stat| Pid::from_raw(stat.pid))
        .collect()
}
