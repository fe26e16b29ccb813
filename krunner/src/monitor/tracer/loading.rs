//! The loader thread of the tracer.
//!
//! Capabilities are per thread (capabilities(7)). This thread is started before any other and inherits them; the main
//! thread then drops its own, so that no later thread and no child has any. The loader drops its capabilities before it
//! reports completion. The programs stay attached.

use std::io;
use std::thread;

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

use super::bpf::{self, Attached, Target};
use super::probe::{self, ProbeRoots};
use crate::error::chain;
use crate::sys;

/// Name of the thread in `/proc/PID/task/*/comm`.
pub(crate) const LOADER_THREAD: &str = "oom-loader";

/// The pending result of the loader thread.
#[derive(Debug)]
pub(crate) struct Loading(oneshot::Receiver<Result<Attached, String>>);

impl Loading {
    /// Starts the thread. Must be called while no other thread exists.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(crate) fn start(target: Target) -> io::Result<Self> {
        let (done, loaded) = oneshot::channel();
        thread::Builder::new().name(LOADER_THREAD.to_owned()).spawn(move || {
            // The verifier fails with EAGAIN if a signal is pending for the thread (`do_check`, kernel/bpf/verifier.c);
            // other threads handle signals. The call cannot fail.
            let _ = SigSet::all().thread_block();
            let attached = attach(&target);
            // Before reporting completion: once the tracer is in use, no thread has capabilities.
            let dropped =
                sys::drop_added().map_err(|error| format!("cannot drop the capabilities used for loading: {error}"));
            // Fails if the monitor task has ended.
            let _ = done.send(dropped.and(attached));
        })?;
        Ok(Self(loaded))
    }

    /// Waits until the tracer is attached.
    ///
    /// # Errors
    /// With the reason why it is not.
    pub(in crate::monitor) async fn attached(self) -> Result<Attached, String> {
        self.0.await.unwrap_or_else(|_| Err("bug: the OOM tracer's loader thread panicked".to_owned()))
    }
}

/// Loads and attaches the tracer in this thread, and detaches it again.
///
/// # Errors
/// With the reason why it cannot be attached.
pub(crate) fn try_to_attach(target: &Target) -> Result<(), String> {
    attach(target).map(drop)
}

/// Attaches the tracer. On failure it probes the host, so that the error contains a remedy.
fn attach(target: &Target) -> Result<Attached, String> {
    // File capabilities may be permitted but not effective. If raising fails, so does the load below.
    let _ = sys::raise_permitted();
    bpf::attach(target).map_err(|error| {
        let findings = probe::probe_host(&ProbeRoots::default(), sys::try_bpf());
        let message = chain(&error);
        match findings.choose().why_not_better.first() {
            Some(reason) if reason.what == message => reason.to_string(),
            Some(reason) => format!("{message}: {reason}"),
            None => message,
        }
    })
}
