//! What a kernel's handle and its job share: how it is started, and its state.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::client::KernelClient;
use super::kernelspec::Interpreter;
use crate::config::ChildEnv;
use crate::process::{Control, InputSource, Launcher};
use crate::supervisor::JobState;

/// How a kernel is started.
pub(crate) struct KernelSettings {
    /// Part of the names of the language's kernelspecs.
    pub language: &'static str,
    /// Replaces `python` in kernelspecs.
    pub interpreter: Option<Interpreter>,
    /// How to install a kernel, for the error message.
    pub remedy: String,
    /// Starts the process and receives its output.
    pub launcher: Launcher,
    /// The environment of the process; its kernelspec may add variables.
    pub env: ChildEnv,
    /// Directory of the connection file.
    pub scratch: PathBuf,
    /// Source of the user's input.
    pub input: Arc<dyn InputSource>,
}

/// The state of a kernel's job.
pub(super) type KernelState = JobState<ReadyKernel, KernelEnd>;

/// Why no kernel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KernelEnd {
    /// The kernel cannot be started, and why. The next code tries again.
    Failed(Arc<str>),
    /// It ran code, or the session is stopping.
    Ended,
}

/// A kernel that is ready.
#[derive(Clone)]
pub(super) struct ReadyKernel {
    pub(super) client: Arc<KernelClient>,
    pub(super) process: Control,
    pub(super) interrupts_by_message: bool,
    /// Cancelled when the kernel's own code requested its exit: it accepts no more code.
    pub(super) exit_requested: CancellationToken,
}

impl ReadyKernel {
    /// The kernel of a state in which it accepts code.
    pub(super) fn of(state: &KernelState) -> Option<&Self> {
        match state {
            JobState::Ready(kernel) if !kernel.exit_requested.is_cancelled() => Some(kernel),
            _ => None,
        }
    }

    pub(super) fn interrupt(&self) {
        if self.interrupts_by_message {
            self.client.interrupt();
        } else {
            self.process.interrupt();
        }
    }
}
