//! The last act: ending what user code left behind.
//!
//! As subreaper we are the parent of every descendant whose own parent has ended, so one look at the
//! process table finds them all, whatever group or session they moved to.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

/// Between two looks at the process table.
const POLL: Duration = Duration::from_millis(20);

/// The same when killing.
const KILL_POLL: Duration = Duration::from_millis(2);

/// Ends all remaining children: SIGTERM, and SIGKILL for what is left after `patience`.
///
/// Orphans appear while their parents end, so the table is read again until it is empty.
pub async fn end_adopted_children(patience: Duration) {
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
    tracing::warn!("some processes could not be ended: {:?}", children());
}

/// Kills all descendants at once, for a shutdown that has to be quick: children, and theirs as they
/// become ours.
pub async fn kill_children(deadline: Duration) {
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

/// Our children that still run; a pid cannot be reused before we have reaped it.
fn children() -> Vec<Pid> {
    let me = Pid::this().as_raw();
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    processes
        .filter_map(|process| process.ok()?.stat().ok())
        .filter(|stat| stat.ppid == me && stat.state != 'Z')
        .map(|stat| Pid::from_raw(stat.pid))
        .collect()
}
