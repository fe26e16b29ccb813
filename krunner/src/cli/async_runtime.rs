//! The async runtime of a command: one thread.

use std::os::unix::net::UnixStream;

use anyhow::Context as _;

use crate::process::explain_limit;
use crate::tasks::start_core_threads;

/// Runs on a single-threaded runtime: the cores belong to user code.
pub(super) fn in_runtime<T>(main: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    start_core_threads().map_err(explain_limit).context("cannot start a thread")?;
    // Tokio makes one of these for its signal handlers and panics if it cannot.
    drop(UnixStream::pair().map_err(explain_limit).context("cannot set up signal handlers")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(explain_limit)?;
    runtime.block_on(main)
}
