//! The one place that waits for children, ours and the orphans we adopt as subreaper.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::oom_score::OomRank;
use super::outcome::Exit;
use crate::sys;
use crate::tasks::TaskGroup;

type Waiters = HashMap<Pid, oneshot::Sender<Exit>>;

/// Is shown each child that has ended while `/proc` still knows it, and the signal that has ended it.
pub type Witness = Box<dyn Fn(Pid, Option<i32>) + Send + Sync>;

/// Hands each exit status to whoever started the process; statuses of orphans end here.
#[derive(Clone)]
pub struct Reaper {
    waiters: Arc<Mutex<Waiters>>,
    witness: Arc<Witness>,
    rank: OomRank,
}

impl Reaper {
    /// Makes this process the subreaper of its descendants and starts reaping.
    ///
    /// # Errors
    /// When SIGCHLD cannot be watched.
    pub fn start(tasks: &TaskGroup, witness: Witness, rank: OomRank) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut child_signals = signal(SignalKind::child())?;
        let reaper = Self { waiters: Arc::default(), witness: Arc::new(witness), rank };
        let task = reaper.clone();
        tasks.spawn("reaper", async move {
            while child_signals.recv().await.is_some() {
                task.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a process, ranked as a child in the eyes of the OOM killer, and registers for its exit status.
    ///
    /// Both happen under the lock that [`Self::reap`] takes, so that a child cannot be reaped
    /// before it is known; nor can the one that std makes and waits for when `exec` fails.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<(Child, Pid, oneshot::Receiver<Exit>)> {
        self.rank.apply(command);
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (tell, told) = oneshot::channel();
        waiters.insert(pid, tell);
        Ok((child, pid, told))
    }

    /// Collects every child that has ended.
    fn reap(&self) {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sys::Ended { pid, signal }) = sys::ended_child() {
            (self.witness)(pid, signal);
            let Some(exit) = sys::reap(pid).map(Exit::from_status) else { return };
            match waiters.remove(&pid) {
                // The waiter may have given up; its child is reaped all the same.
                Some(waiter) => _ = waiter.send(exit),
                None => tracing::debug!("reaped the orphan {pid}: {exit:?}"),
            }
        }
    }
}
