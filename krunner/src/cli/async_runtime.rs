//! The async runtime of a command: one thread.

use crate::tasks::start_core_threads;

/// Runs on a single-threaded runtime: the cores belong to user code.
pub(super) fn in_runtime<T>(main: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    start_core_threads();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main)
}
