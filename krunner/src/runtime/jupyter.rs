//! The engine of languages whose query mode is a Jupyter kernel.

use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, Surroundings};
use crate::jupyter::{Interpreter, Kernel, KernelSettings};
use crate::process::Control;

/// What distinguishes a language's kernel.
pub(super) struct JupyterKernel {
    /// What the names of its kernelspecs have in them.
    pub(super) name: &'static str,
    /// Stands for `python` in its kernelspec.
    pub(super) interpreter: Option<Interpreter>,
    /// Told to a user who has no kernel: how to get one.
    pub(super) remedy: String,
}

/// For `krunner languages`.
pub(super) fn phrase(name: &str) -> String {
    format!("a Jupyter kernel whose name has \"{name}\" in it")
}

impl JupyterKernel {
    /// Begins to start the kernel.
    pub(super) fn start(self, surroundings: Surroundings) -> Arc<dyn Engine> {
        let Surroundings { launcher, env, paths, input, .. } = surroundings;
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
