//! A handle on a language's kernel, across restarts of its process.

use std::sync::Arc;

use serde::Deserialize;

use super::attempt::{KernelAttempt, RESTARTS};
use super::execution::Execution;
use super::ready_kernel::{KernelEnd, KernelSettings, ReadyKernel};
use crate::process::{Control, ControlReceiver, ControlRequest};
use crate::supervisor::{Job, JobState};

/// The exit code without a kernel, as a shell's for a missing command.
const NO_KERNEL: i32 = 127;

/// Runs code in a Jupyter kernel, which is started at once and restarted when it exits.
pub(crate) struct Kernel {
    settings: Arc<KernelSettings>,
    job: Job<ReadyKernel, KernelEnd>,
}

impl Kernel {
    /// Starts the kernel in the background, in a task of the launcher's group.
    #[must_use]
    pub(crate) fn start(settings: KernelSettings) -> Self {
        let settings = Arc::new(settings);
        let attempt = KernelAttempt { settings: Arc::clone(&settings) };
        let name = format!("the {} kernel", settings.language);
        Self { job: Job::spawn(&settings.launcher.tasks, "kernel", name, RESTARTS, attempt), settings }
    }

    /// Runs code as soon as the kernel is ready. `control` can interrupt or terminate the run.
    pub(crate) async fn run(&self, code: &str, control: &Control) -> i32 {
        let mut control_requests = control.requests();
        let live = match self.ready(&mut control_requests).await {
            Ok(live) => live,
            Err(exit_code) => return exit_code,
        };
        let execution = Execution {
            client: &live.client,
            sink: &*self.settings.launcher.sink,
            input: &*self.settings.input,
            interrupt: &|| live.interrupt(),
        };
        let done = execution.run(code, &mut control_requests).await;
        if done.kernel_exits {
            live.exit_requested.cancel();
        }
        done.exit_code
    }

    /// Completions for a request of the agent; empty without a ready kernel.
    pub(crate) async fn complete(&self, request: &str) -> Vec<String> {
        let state = self.job.state();
        let Some(live) = ReadyKernel::of(&state) else { return Vec::new() };
        match completion(request) {
            Ok((code, cursor)) => live.client.complete(code, cursor).await,
            Err(error) => {
                tracing::warn!("malformed completion request: {error}");
                Vec::new()
            }
        }
    }

    /// Interrupts the kernel.
    pub(crate) fn interrupt(&self) {
        match ReadyKernel::of(&self.job.state()) {
            Some(live) => live.interrupt(),
            None => tracing::debug!("no kernel to interrupt"),
        }
    }

    /// Stops the kernel for good: by a message, then SIGTERM, then SIGKILL.
    pub(crate) async fn stop(&self) {
        self.job.stop();
        self.job.stopped().await;
    }

    /// Waits for a ready kernel. The error is the exit code of the run.
    async fn ready(&self, control_requests: &mut ControlReceiver) -> Result<ReadyKernel, i32> {
        if self.job.state().is_stopped() && !self.job.is_stopping() {
            self.job.start().await;
        }
        let settled = self.job.wait_for(|state| match state {
            JobState::Starting(_) => false,
            JobState::Ready(_) => ReadyKernel::of(state).is_some(),
            JobState::Stopping | JobState::Stopped { .. } => true,
        });
        let settled = tokio::select! {
            biased;
            request = control_requests.next() => return Err(match request {
                ControlRequest::Interrupt => -nix::libc::SIGINT,
                ControlRequest::Terminate => -nix::libc::SIGTERM,
            }),
            settled = settled => settled,
        };
        match settled {
            JobState::Ready(live) => Ok(live),
            JobState::Stopped { end: KernelEnd::Failed(reason), .. } => {
                tracing::error!("cannot run the code: {reason}");
                Err(NO_KERNEL)
            }
            JobState::Starting(_) | JobState::Stopping | JobState::Stopped { .. } => Err(-nix::libc::SIGTERM),
        }
    }
}

/// Code and cursor (in characters) of a completion request; without one, the cursor is at the end.
///
/// The agent's clients send the position as `row` and `col`, or not at all.
fn completion(request: &str) -> serde_json::Result<(String, usize)> {
    #[derive(Deserialize)]
    struct CompletionRequest {
        #[serde(default)]
        code: String,
        row: Option<usize>,
        col: Option<usize>,
        cursor_pos: Option<usize>,
    }
    let CompletionRequest { code, row, col, cursor_pos } = serde_json::from_str(request)?;
    let end = code.chars().count();
    let cursor = match (cursor_pos, row, col) {
        (Some(cursor), ..) => cursor,
        (None, Some(row), Some(col)) => {
            let lines: usize = code.split_inclusive('\n').take(row).map(|line| line.chars().count()).sum();
            let line = code.split('\n').nth(row).map_or(0, |line| line.chars().count());
            lines + col.min(line)
        }
        _ => end,
    };
    Ok((code, cursor.min(end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_cursor_is_where_the_request_says() {
        let cursor = |request: &str| completion(request).unwrap().1;
        assert_eq!(cursor(r#"{"code": "aé\nb.c\nd"}"#), 8);
        assert_eq!(cursor(r#"{"code": "aé\nb.c\nd", "row": 1, "col": 2, "line": "b.c", "post": "c"}"#), 5);
        assert_eq!(cursor(r#"{"code": "aé\nb.c\nd", "row": 0, "col": 99}"#), 2);
        assert_eq!(cursor(r#"{"code": "aé\nb.c\nd", "row": 9, "col": 1}"#), 8);
        assert_eq!(cursor(r#"{"code": "abc", "cursor_pos": 1}"#), 1);
        assert_eq!(completion("{}").unwrap(), (String::new(), 0));
        assert!(completion("[").is_err() && completion(r#"{"code": 1}"#).is_err());
    }

    proptest! {
        #[test]
        fn the_cursor_is_within_the_code(code in ".*", row: Option<usize>, col: Option<usize>, cursor_pos: Option<usize>) {
            let request = serde_json::json!({"code": code, "row": row, "col": col, "cursor_pos": cursor_pos});
            let (same, cursor) = completion(&request.to_string()).unwrap();
            prop_assert!(cursor <= same.chars().count());
            prop_assert_eq!(same, code);
        }
    }
}
