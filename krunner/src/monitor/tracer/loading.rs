//! The thread that loads the tracer.
//!
//! Capabilities belong to threads (capabilities(7)). This one is started before any other and inherits
//! them; the main thread drops its own right then, so that no later thread and no child has any. This
//! one drops the last of them before it tells that it is done, and what it attached stays.

use std::io;
use std::thread;

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

use super::bpf::{self, Attached, Target};
use super::probe::{self, ProbeRoots};
use crate::error::chain;
use crate::sys;

/// What the thread is called in `/proc/PID/task/*/comm`.
pub const LOADER_THREAD: &str = "oom-loader";

/// A tracer that is being loaded.
#[derive(Debug)]
pub struct Loading(oneshot::Receiver<Result<Attached, String>>);

impl Loading {
    /// Starts the thread. To be called before there are others.
    ///
    /// # Errors
    /// When the kernel has no room for a thread.
    pub fn start(target: Target) -> io::Result<Self> {
        let (done, loaded) = oneshot::channel();
        thread::Builder::new().name(LOADER_THREAD.to_owned()).spawn(move || {
            // A thread that a signal waits for is refused with EAGAIN (`do_check`, kernel/bpf/verifier.c); there are
            // other threads to take it. The call cannot fail.
            let _ = SigSet::all().thread_block();
            let attached = attach(&target);
            // Before anybody hears of it: whoever sees the tracer at work is to find nobody with capabilities.
            let dropped =
                sys::drop_added().map_err(|error| format!("cannot drop the capabilities that loading took: {error}"));
            // Fails when the runner has ended meanwhile.
            let _ = done.send(dropped.and(attached));
        })?;
        Ok(Self(loaded))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// With a sentence about what is in the way.
    pub(in crate::monitor) async fn attached(self) -> Result<Attached, String> {
        self.0.await.unwrap_or_else(|_| Err("a bug: the loader of the OOM tracer panicked".to_owned()))
    }
}

/// Loads and attaches, and lets it go again, in this thread.
///
/// # Errors
/// With a sentence about what is in the way.
pub fn try_to_attach(target: &Target) -> Result<(), String> {
    attach(target).map(drop)
}

/// What is refused is looked into, so that the sentence says what would help.
fn attach(target: &Target) -> Result<Attached, String> {
    // A file's capabilities may be there only to be raised. What cannot be is refused in a moment.
    let _ = sys::raise_permitted();
    bpf::attach(target).map_err(|error| {
        let findings = probe::of_this_host(&ProbeRoots::default(), sys::try_bpf());
        let told = chain(&error);
        match findings.choose().why_not_better.first() {
            Some(reason) if reason.what == told => reason.to_string(),
            Some(reason) => format!("{told}: {reason}"),
            None => told,
        }
    })
}
