//! The only place that waits for children: our own, and orphans that we adopt as subreaper.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::oom_score::OomScorePolicy;
use super::outcome::ChildStatus;
use crate::sys;
use crate::tasks::TaskGroup;

type Waiters = HashMap<Pid, oneshot::Sender<ChildStatus>>;

/// Called for each exited child before it is reaped, while `/proc` still shows it, with the signal that killed it.
pub(crate) type ExitObserver = Box<dyn Fn(Pid, Option<i32>) + Send + Sync>;

/// Sends each exit status to the task that spawned the process; statuses of orphans are discarded.
#[derive(Clone)]
pub(crate) struct Reaper {
    waiters: Arc<Mutex<Waiters>>,
    exit_observer: Arc<ExitObserver>,
    rank: OomScorePolicy,
}

impl Reaper {
    /// Makes this process the subreaper of its descendants and starts reaping.
    ///
    /// # Errors
    /// If no SIGCHLD handler can be installed.
    pub(crate) fn start(tasks: &TaskGroup, exit_observer: ExitObserver, rank: OomScorePolicy) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut child_signals = signal(SignalKind::child())?;
        let reaper = Self { waiters: Arc::default(), exit_observer: Arc::new(exit_observer), rank };
        let task = reaper.clone();
        tasks.spawn("reaper", async move {
            while child_signals.recv().await.is_some() {
                task.reap();
            }
        });
        Ok(reaper)
    }

    /// Spawns a process with a child's `oom_score_adj` and registers for its exit status.
    ///
    /// Both happen under the lock that [`Self::reap`] takes, so that a child cannot be reaped before it is registered.
    /// The same holds for the child that std forks and waits for when `exec` fails.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<(Child, Pid, oneshot::Receiver<ChildStatus>)> {
        self.rank.apply(command);
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (exit_tx, exit_rx) = oneshot::channel();
        waiters.insert(pid, exit_tx);
        Ok((child, pid, exit_rx))
    }

    /// Reaps every exited child.
    fn reap(&self) {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sys::ExitedChild { pid, signal }) = sys::exited_child() {
            (self.exit_observer)(pid, signal);
            let Some(exit) = sys::reap(pid).map(ChildStatus::from_status) else { return };
            match waiters.remove(&pid) {
                // The waiter may be gone; its child is reaped anyway.
                Some(waiter) => _ = waiter.send(exit),
                None => tracing::debug!("reaped orphan {pid}: {exit:?}"),
            }
        }
    }
}
