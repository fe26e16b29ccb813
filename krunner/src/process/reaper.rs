//! The only place that waits for children: our own, and orphans that we adopt as subreaper.
//!
//! A spawn returns when the program was executed or that failed, which takes long on a mount that hangs. So spawns run
//! on other threads (see `spawn`), without the lock. Until one returns, std itself may wait for its child, whose `exec`
//! failed. Each child reports its pid before its `exec` (see [`early_pid`](super::early_pid)), so the others can be reaped meanwhile. Until it
//! has, any unknown child may be that one, so only children that are already known are reaped.
//!
//! A child that another thread forks meanwhile has copies of the descriptors by which std learns of an `exec`. They are
//! closed by its own `exec`, which may hang. So spawns run one after the other, but none waits for longer than
//! [`FORK_PATIENCE`] for the one before it.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::early_pid::EarlyPid;
use super::oom_score::OomScorePolicy;
use super::outcome::ChildStatus;
use crate::sys::{self, ExitedChild};
use crate::tasks::TaskGroup;

/// Called for each exited child before it is reaped, while `/proc` still shows it, with the signal that killed it.
pub(crate) type ExitObserver = Box<dyn Fn(Pid, Option<i32>) + Send + Sync>;

/// A spawn that takes longer has forked, and hangs in `exec`.
const FORK_PATIENCE: Duration = Duration::from_millis(200);

type SpawnId = u64;

/// A spawn that is running.
struct Spawning {
    id: SpawnId,
    began: Instant,
    /// `None` if the child cannot report it.
    pid: Option<Arc<EarlyPid>>,
}

#[derive(Default)]
struct ReaperState {
    waiters: HashMap<Pid, oneshot::Sender<ChildStatus>>,
    spawning: Vec<Spawning>,
    next_spawn: SpawnId,
}

impl ReaperState {
    /// An exited child that may be reaped now.
    fn exited_child(&self) -> Option<ExitedChild> {
        if self.spawning.is_empty() {
            return sys::exited_child();
        }
        self.waiters.keys().find_map(|pid| sys::exited_child_with(*pid)).or_else(|| self.exited_orphan())
    }

    /// An exited child that no spawn waits for, once all of those that are running have forked.
    fn exited_orphan(&self) -> Option<ExitedChild> {
        let spawning: Option<Vec<Pid>> = self.spawning.iter().map(|spawn| spawn.pid.as_ref()?.get()).collect();
        let spawning = spawning?;
        sys::exited_child().filter(|child| !spawning.contains(&child.pid))
    }

    /// How long the next spawn has to wait for those before it.
    fn wait_for_forks(&self, now: Instant) -> Option<Duration> {
        let left = self.spawning.iter().map(|spawn| (spawn.began + FORK_PATIENCE).saturating_duration_since(now));
        left.max().filter(|left| !left.is_zero())
    }

    fn begin_spawn(&mut self, pid: Option<Arc<EarlyPid>>) -> SpawnId {
        let id = self.next_spawn;
        self.next_spawn += 1;
        self.spawning.push(Spawning { id, began: Instant::now(), pid });
        id
    }
}

/// Sends each exit status to the task that spawned the process; statuses of orphans are discarded.
#[derive(Clone)]
pub(crate) struct Reaper {
    state: Arc<Mutex<ReaperState>>,
    /// A spawn has ended.
    spawned: Arc<Condvar>,
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
        let (state, spawned) = (Arc::default(), Arc::default());
        let reaper = Self { state, spawned, exit_observer: Arc::new(exit_observer), rank };
        let task = reaper.clone();
        tasks.spawn("reaper", async move {
            loop {
                let next = child_signals.recv();
                // The signal may have come before the spawn's child had reported its pid.
                let signal = if task.is_spawning() { timeout(FORK_PATIENCE, next).await } else { Ok(next.await) };
                if signal == Ok(None) {
                    return;
                }
                task.reap();
            }
        });
        Ok(reaper)
    }

    /// Spawns a process with a child's `oom_score_adj` and registers for its exit status. The child reports to `pid`. May block.
    pub(super) fn spawn(
        &self,
        command: &mut Command,
        pid: Option<Arc<EarlyPid>>,
    ) -> io::Result<(Child, Pid, oneshot::Receiver<ChildStatus>)> {
        self.rank.apply(command);
        let id = self.begin_spawn(pid.clone());
        let spawned = command.spawn();
        if let Some(pid) = pid {
            pid.spawn_returned();
        }
        let mut state = self.lock();
        state.spawning.retain(|other| other.id != id);
        self.spawned.notify_all();
        let spawned = spawned.map(|child| {
            let pid = Pid::from_raw(child.id().cast_signed());
            let (exit_tx, exit_rx) = oneshot::channel();
            state.waiters.insert(pid, exit_tx);
            (child, pid, exit_rx)
        });
        drop(state);
        // Their signals came while the spawn ran.
        self.reap();
        spawned
    }

    /// Whether this process spawned that child, which is not an adopted orphan.
    pub(crate) fn has_spawned(&self, pid: Pid) -> bool {
        self.lock().waiters.contains_key(&pid)
    }

    fn is_spawning(&self) -> bool {
        !self.lock().spawning.is_empty()
    }

    fn begin_spawn(&self, pid: Option<Arc<EarlyPid>>) -> SpawnId {
        let mut state = self.lock();
        while let Some(left) = state.wait_for_forks(Instant::now()) {
            state = self.spawned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.begin_spawn(pid)
    }

    /// Reaps every exited child, but those that a running spawn may wait for.
    fn reap(&self) {
        let mut state = self.lock();
        while let Some(ExitedChild { pid, signal }) = state.exited_child() {
            (self.exit_observer)(pid, signal);
            let Some(exit) = sys::reap(pid).map(ChildStatus::from_status) else { return };
            match state.waiters.remove(&pid) {
                // The waiter may be gone; its child is reaped anyway.
                Some(waiter) => _ = waiter.send(exit),
                None => tracing::debug!("reaped orphan {pid}: {exit:?}"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ReaperState> {
        // No code that may panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "reaper_tests.rs"]
mod tests;
