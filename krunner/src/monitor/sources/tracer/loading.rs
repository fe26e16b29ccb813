//! The loader thread of the tracer.
//!
//! Capabilities are per thread (capabilities(7)). This thread is started before any other and inherits them; the main
//! thread then drops its own, so that no later thread and no child has any. The loader drops its capabilities before it
//! reports completion. The programs stay attached.

use std::{io, thread};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

use super::bpf::{self, Attached, LoadError, Target};
use super::checks::KERNEL_BTF;
use super::findings::Obstacle;
use super::probe::{self, ProbeRoots};
use crate::error::chain;
use crate::sys;

/// Name of the thread in `/proc/PID/task/*/comm`.
pub(crate) const LOADER_THREAD: &str = "oom-loader";

/// Why the tracer is not attached, with the host's obstacle and its remedy if there is one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadingError {
    /// Loading failed for a reason that the probe does not know.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Loading failed because of an obstacle.
    #[error("{}: {obstacle}", chain(.error))]
    Obstructed {
        /// The error of loading.
        error: Box<LoadError>,
        /// The first obstacle that the probe found.
        obstacle: Obstacle,
    },
    /// The probe failed to read the kernel's BTF as well.
    #[error("{0}")]
    Btf(Obstacle),
    /// The thread would keep its capabilities.
    #[error("cannot drop the capabilities used for loading")]
    Capabilities(#[source] io::Error),
    /// The thread ended without a result.
    #[error("bug: the OOM tracer's loader thread panicked")]
    Panicked,
}

/// The pending result of the loader thread.
#[derive(Debug)]
pub(crate) struct Loading(oneshot::Receiver<Result<Attached, LoadingError>>);

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
            let dropped = sys::drop_added().map_err(LoadingError::Capabilities);
            // Fails if the monitor task has ended.
            let _ = done.send(dropped.and(attached));
        })?;
        Ok(Self(loaded))
    }

    /// Waits until the tracer is attached.
    ///
    /// # Errors
    /// With the reason why it is not.
    pub(in crate::monitor) async fn attached(self) -> Result<Attached, LoadingError> {
        self.0.await.unwrap_or(Err(LoadingError::Panicked))
    }
}

/// Loads and attaches the tracer in this thread, and detaches it again.
///
/// # Errors
/// With the reason why it cannot be attached.
pub(crate) fn try_to_attach(target: &Target) -> Result<(), LoadingError> {
    attach(target).map(drop)
}

/// Attaches the tracer. On failure it probes the host, so that the error contains a remedy.
fn attach(target: &Target) -> Result<Attached, LoadingError> {
    // File capabilities may be permitted but not effective. If raising fails, so does the load below.
    let _ = sys::raise_permitted();
    // aya may raise this limit of the whole process on kernels before 5.11, and programs would inherit that.
    let memlock = getrlimit(Resource::RLIMIT_MEMLOCK);
    let attached = bpf::attach(target);
    if let Ok((soft, hard)) = memlock {
        // Lowering it again is always allowed.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
    }
    attached.map_err(|error| {
        let findings = probe::probe_host(&ProbeRoots::default(), sys::try_bpf());
        explain(error, findings.choose().why_not_better.into_iter().next())
    })
}

/// If the probe failed to read the BTF as well, its finding says the same and has a remedy.
fn explain(error: LoadError, obstacle: Option<Obstacle>) -> LoadingError {
    match (error, obstacle) {
        (LoadError::Btf(_), Some(obstacle)) if obstacle.check == KERNEL_BTF => LoadingError::Btf(obstacle),
        (error, Some(obstacle)) => LoadingError::Obstructed { error: Box::new(error), obstacle },
        (error, None) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::BtfError;
    use super::*;

    #[test]
    fn error_texts_name_the_obstacle_once() {
        let obstacle = |check, what: &str| Obstacle { check, what: what.to_owned(), remedy: Some("do it".to_owned()) };
        let empty = || LoadError::from(BtfError::Empty);
        let refused = || LoadError::Refused(io::ErrorKind::PermissionDenied.into());
        let errors = [
            explain(refused(), None),
            explain(refused(), Some(obstacle("capabilities", "none held"))),
            explain(empty(), Some(obstacle("lockdown", "confidentiality"))),
            explain(empty(), Some(obstacle(KERNEL_BTF, &chain(&BtfError::Empty)))),
            LoadingError::Capabilities(io::ErrorKind::PermissionDenied.into()),
            LoadingError::Panicked,
        ];
        insta::assert_snapshot!(errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n"), @r"
        bpf(2) failed: permission denied
        bpf(2) failed: permission denied: none held (remedy: do it)
        the kernel's BTF file is empty (masked by the container runtime?): confidentiality (remedy: do it)
        the kernel's BTF file is empty (masked by the container runtime?) (remedy: do it)
        cannot drop the capabilities used for loading: permission denied
        bug: the OOM tracer's loader thread panicked
        ");
    }
}
