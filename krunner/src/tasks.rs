//! The only place that spawns tasks.
//!
//! A task belongs to a group and stops when the group is cancelled. A panic is logged and resolves
//! [`TaskGroup::failed`], which ends the session.

mod blocking;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use blocking::{blocking, start_core_threads};

/// A set of tasks that are cancelled together.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskGroup {
    tracker: TaskTracker,
    cancelled: CancellationToken,
    failed: CancellationToken,
    panicked: Arc<OnceLock<&'static str>>,
}

impl TaskGroup {
    /// An empty group.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it returns or the group is cancelled, whichever comes first.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (cancelled, failed, panicked) = (self.cancelled.clone(), self.failed.clone(), Arc::clone(&self.panicked));
        self.tracker.spawn(async move {
            let guarded = AssertUnwindSafe(cancelled.run_until_cancelled(task)).catch_unwind();
            if guarded.await.is_err() {
                tracing::error!("internal error: task `{name}` panicked; shutting down");
                let _ = panicked.set(name);
                failed.cancel();
            }
        });
    }

    /// Resolves to the name of the task when a task of this group panics.
    pub(crate) async fn failed(&self) -> &'static str {
        self.failed.cancelled().await;
        self.panicked.get().copied().unwrap_or("unnamed")
    }

    /// Cancels the tasks and waits for them to stop; `false` if some are still running at the deadline.
    #[must_use]
    pub(crate) async fn stop(&self, deadline: Duration) -> bool {
        self.cancelled.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_surfaces_with_the_name_of_the_task() {
        let group = TaskGroup::new();
        group.spawn("broken", async { panic!("on purpose") });
        assert_eq!(group.failed().await, "broken");
    }

    #[tokio::test]
    async fn stopping_ends_a_task_that_waits_forever() {
        let group = TaskGroup::new();
        group.spawn("waits", std::future::pending());
        assert!(group.stop(Duration::from_secs(10)).await);
    }
}
