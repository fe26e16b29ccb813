//! Query mode of languages whose `code` is no file to compile and run: something lives on between steps.
//!
//! A Jupyter kernel, a shell on a pseudoterminal, a session on a server. The runtime makes its engine once
//! ([`Runtime::engine`](super::Runtime::engine)); from then on the engine looks after itself, in tasks of
//! the launcher's group: it starts, restarts and reports without being asked.

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::{ChildEnv, Paths};
use crate::process::{Control, InputSource, Launcher};

/// What an engine works with.
#[derive(Clone)]
pub struct Surroundings {
    /// Starts its processes; its sink takes their output, its task group runs the engine's tasks.
    pub launcher: Launcher,
    /// The environment of children, complete.
    pub env: ChildEnv,
    /// Where things are.
    pub paths: Paths,
    /// Asks the user.
    pub input: Arc<dyn InputSource>,
}

/// Runs `code` for a session.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Runs one step to its exit code. All of its output is with the sink when this returns. Called for one
    /// step at a time.
    ///
    /// Must heed [`Control::asks`]: after [`Terminate`](crate::process::Asked::Terminate) it returns within
    /// two seconds, with a code other than 0.
    async fn run(&self, code: &str, control: &Control) -> i32;

    /// Completions for a request of the agent (JSON with `code` and, perhaps, a cursor), also while a step
    /// runs. The session gives up on it after a few seconds, by dropping the future.
    async fn complete(&self, _request: &str) -> Vec<String> {
        Vec::new()
    }

    /// `interrupt` while no step runs; a step that does is asked by its [`Control`].
    fn interrupt(&self) {}

    /// Ends what the engine has started, within three seconds. No step is run after it.
    async fn stop(&self) {}
}
