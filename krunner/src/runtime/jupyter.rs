//! The engine of languages whose query mode is a Jupyter kernel.

use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use crate::jupyter::{Interpreter, Kernel, KernelSettings};
use crate::process::Control;

/// The kernel of a language.
pub(super) struct JupyterKernel {
    /// Part of the names of its kernelspecs.
    pub(super) name: &'static str,
    /// Replaces `python` in its kernelspec.
    pub(super) interpreter: Option<Interpreter>,
    /// How to install a kernel, for the error message.
    pub(super) remedy: String,
}

/// The description for `krunner languages`.
pub(super) fn kernel_description(name: &str) -> String {
    format!("a Jupyter kernel whose name contains \"{name}\"")
}

impl JupyterKernel {
    /// Starts the kernel in the background.
    pub(super) fn start(self, context: EngineContext) -> Arc<dyn Engine> {
        let EngineContext { launcher, env, paths, input, .. } = context;
        let Self { name: language, interpreter, remedy } = self;
        let scratch = paths.temporary();
        Arc::new(Kernel::start(KernelSettings { language, interpreter, remedy, launcher, env, scratch, input }))
    }
}

#[async_trait]
impl Engine for Kernel {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        Kernel::run(self, code, control).await
    }

    async fn complete(&self, request: &str) -> Vec<String> {
        Kernel::complete(self, request).await
    }

    fn interrupt(&self) {
        Kernel::interrupt(self);
    }

    async fn stop(&self) {
        Kernel::stop(self).await;
    }
}
