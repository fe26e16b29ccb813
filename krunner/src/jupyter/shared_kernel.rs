//! What a kernel's handle and its supervisor share: how it is started, and its state.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::client::KernelClient;
use super::kernelspec::Interpreter;
use crate::config::ChildEnv;
use crate::process::{Control, InputSource, Launcher};

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

/// The kernel's state; see the diagram in `supervisor.rs`.
#[derive(Clone)]
pub(super) enum KernelState {
    Starting,
    Ready(ReadyKernel),
    /// The kernel cannot be started, and why. The next code tries again.
    Failed(Arc<str>),
    Stopped,
}

/// A kernel that is ready.
#[derive(Clone)]
pub(super) struct ReadyKernel {
    pub(super) client: Arc<KernelClient>,
    pub(super) process: Control,
    pub(super) interrupts_by_message: bool,
    /// Notified when the kernel's own code requested its exit.
    pub(super) exits: Arc<Notify>,
}

impl ReadyKernel {
    pub(super) fn interrupt(&self) {
        if self.interrupts_by_message {
            self.client.interrupt();
        } else {
            self.process.interrupt();
        }
    }
}

/// State shared by handle and supervisor.
pub(super) struct SharedKernel {
    pub(super) settings: KernelSettings,
    pub(super) state: watch::Sender<KernelState>,
    /// Notified when code needs a kernel that could not be started.
    pub(super) wanted: Notify,
    /// Cancelled to stop the kernel.
    pub(super) stop: CancellationToken,
}

impl SharedKernel {
    /// Accepts no more code for this kernel; returns whether it was ready.
    pub(super) fn retire(&self, client: &Arc<KernelClient>) -> bool {
        self.state.send_if_modified(|state| {
            let was_ready = matches!(state, KernelState::Ready(live) if Arc::ptr_eq(&live.client, client));
            if was_ready {
                *state = KernelState::Starting;
            }
            was_ready
        })
    }
}
