//! A user's command that runs on an event, with a text on its stdin.
//!
//! Only one instance runs at a time: events that occur meanwhile are skipped. The command has a deadline, and its
//! output is shown only if it fails. A failure is reported once, until the command succeeds again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::command::Command;
use super::control::Control;
use super::exit_reason::NoExplanation;
use super::launcher::{Console, Launcher};
use super::reaper::Reaper;
use super::sink::{OutputSink, RichOutput};
use crate::config::ChildEnv;
use crate::error::chain;
use crate::tasks::TaskGroup;
use crate::wire::Stream;
use crate::writer::Writer;

/// Called when a hook fails.
pub(crate) type OnFailure = Box<dyn Fn(&str) + Send + Sync>;

/// A hook command and its state.
#[derive(Clone)]
pub(crate) struct Hook(Arc<HookState>);

struct HookState {
    command: Command,
    timeout: Duration,
    env: ChildEnv,
    launcher: Launcher,
    is_running: AtomicBool,
    has_failed: AtomicBool,
    on_failure: OnFailure,
}

impl Hook {
    /// A hook with a timeout and an environment.
    #[must_use]
    pub(crate) fn new(
        argv: Vec<String>,
        timeout: Duration,
        env: ChildEnv,
        reaper: Reaper,
        tasks: TaskGroup,
        on_failure: OnFailure,
    ) -> Self {
        let launcher = Launcher {
            reaper,
            console: Console { stdout: Writer::discard(), stderr: Writer::discard() },
            sink: Arc::new(Discard),
            logs: None,
            tasks,
            reasons: Arc::new(NoExplanation),
        };
        let (is_running, has_failed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(HookState {
            command: Command::argv(argv),
            timeout,
            env,
            launcher,
            is_running,
            has_failed,
            on_failure,
        }))
    }

    /// Starts the command unless it is running already. Does not wait.
    pub(crate) fn start(&self, input: Vec<u8>) {
        if self.0.is_running.swap(true, Ordering::Relaxed) {
            tracing::debug!("`{}` is still running; not starting it again", self.0.command);
            return;
        }
        let state = Arc::clone(&self.0);
        self.0.launcher.tasks.spawn("hook", async move {
            state.run(input).await;
            state.is_running.store(false, Ordering::Relaxed);
        });
    }
}

impl HookState {
    async fn run(&self, input: Vec<u8>) {
        let command = self.command.clone().with_input(input);
        let ended = self.launcher.capture(&command, &self.env, &Control::new(), self.timeout).await;
        let had_failed = self.has_failed.swap(ended.is_err(), Ordering::Relaxed);
        if let Some(error) = ended.err().filter(|_| !had_failed) {
            (self.on_failure)(&chain(&error));
        }
    }
}

/// Discards all output.
struct Discard;

#[async_trait]
impl OutputSink for Discard {
    async fn deliver(&self, _: Stream, _: Bytes) {}

    async fn show(&self, _: RichOutput) {}
}
