//! Query mode of languages whose `code` is not a file to compile and run: state lives on between steps.
//!
//! Engines are a Jupyter kernel, a shell on a pseudoterminal, or a session on a server. The runtime creates its engine once
//! ([`Runtime::engine`](super::Runtime::engine)). The engine then starts and restarts its processes by itself, in tasks of
//! the launcher's group.

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::{ChildEnv, Paths};
use crate::process::{Control, InputSource, Launcher};
use crate::terminal::TerminalTransport;

/// The dependencies of an engine.
#[derive(Clone)]
pub(crate) struct EngineContext {
    /// Starts processes. Its sink receives their output, its task group runs the engine's tasks.
    pub launcher: Launcher,
    /// The complete environment of children.
    pub env: ChildEnv,
    /// Paths of the container.
    pub paths: Paths,
    /// Source of the user's input.
    pub input: Arc<dyn InputSource>,
    /// The transport of the terminal, for a runtime that [has one](super::Runtime::has_terminal).
    pub terminal_transport: Option<Arc<dyn TerminalTransport>>,
}

/// Runs `code` for a session.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Runs one step to its exit code. All of its output is with the sink when this returns. Called for one
    /// step at a time.
    ///
    /// Must heed [`Control::requests`]: after [`Terminate`](crate::process::ControlRequest::Terminate) it returns within
    /// two seconds, with a code other than 0.
    async fn run(&self, code: &str, control: &Control) -> i32;

    /// Completions for a request of the agent (JSON with `code` and, perhaps, a cursor), also while a step
    /// runs. The session gives up on it after twenty seconds, by dropping the future.
    async fn complete(&self, _request: &str) -> Vec<String> {
        Vec::new()
    }

    /// `interrupt` while no step runs; a step that does is asked by its [`Control`].
    fn interrupt(&self) {}

    /// Ends what the engine has started, within three seconds. No step is run after it.
    async fn stop(&self) {}
}
