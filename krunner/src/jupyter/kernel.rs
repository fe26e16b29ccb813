//! The handle on a language's kernel, whichever process that is at the moment.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::execution::Execution;
use super::kernelspec::Interpreter;
use super::supervisor::Supervisor;
use crate::config::ChildEnv;
use crate::process::{Asked, Asks, Control, InputSource, Launcher};

/// What a language without a kernel answers to code, as a shell says it of a command that is not there.
const NO_KERNEL: i32 = 127;

/// What a kernel is started with.
pub struct KernelSettings {
    /// What the names of the language's kernelspecs have in them.
    pub language: &'static str,
    /// Stands for `python` in kernelspecs.
    pub interpreter: Option<Interpreter>,
    /// How a user gets a kernel who has none.
    pub remedy: String,
    /// Starts the process and takes its output.
    pub launcher: Launcher,
    /// The environment of the process, to which its kernelspec may add.
    pub env: ChildEnv,
    /// Where the file with its address is put.
    pub scratch: PathBuf,
    /// Asks the user.
    pub input: Arc<dyn InputSource>,
}

/// What the kernel is at the moment; see the supervisor's essay.
#[derive(Clone)]
pub(super) enum State {
    Starting,
    Ready(Live),
    /// It cannot be started, and why. The next code tries again.
    Failed(Arc<str>),
    Stopped,
}

/// A kernel that answers.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) client: Arc<Client>,
    pub(super) process: Control,
    pub(super) interrupts_by_message: bool,
    /// It was asked to end by its own code.
    pub(super) exits: Arc<Notify>,
}

impl Live {
    fn interrupt(&self) {
        if self.interrupts_by_message {
            self.client.interrupt();
        } else {
            self.process.interrupt();
        }
    }
}

/// What handle and supervisor share.
pub(super) struct Shared {
    pub(super) settings: KernelSettings,
    pub(super) state: watch::Sender<State>,
    /// Somebody wants a kernel that could not be started.
    pub(super) wanted: Notify,
    /// The kernel is to end.
    pub(super) stop: CancellationToken,
}

impl Shared {
    /// No further code is for this kernel; whether any could have been.
    pub(super) fn leave(&self, client: &Arc<Client>) -> bool {
        self.state.send_if_modified(|state| {
            let was_ready = matches!(state, State::Ready(live) if Arc::ptr_eq(&live.client, client));
            if was_ready {
                *state = State::Starting;
            }
            was_ready
        })
    }
}

/// Runs code in a Jupyter kernel, which is started at once and again when it has died.
pub struct Kernel {
    shared: Arc<Shared>,
}

impl Kernel {
    /// Begins to start the kernel, in a task of the launcher's group.
    #[must_use]
    pub fn start(settings: KernelSettings) -> Self {
        let tasks = settings.launcher.tasks.clone();
        let shared = Arc::new(Shared {
            settings,
            state: watch::Sender::new(State::Starting),
            wanted: Notify::new(),
            stop: CancellationToken::new(),
        });
        tasks.spawn("kernel", Supervisor::new(Arc::clone(&shared)).run());
        Self { shared }
    }

    /// Runs code as soon as the kernel is ready; see [`crate::process::Control`] for what may be asked meanwhile.
    pub async fn run(&self, code: &str, control: &Control) -> i32 {
        let mut asks = control.asks();
        let live = match self.ready(&mut asks).await {
            Ok(live) => live,
            Err(exit_code) => return exit_code,
        };
        let execution = Execution {
            client: &live.client,
            sink: &*self.shared.settings.launcher.sink,
            input: &*self.shared.settings.input,
            interrupt: &|| live.interrupt(),
        };
        let done = execution.run(code, &mut asks).await;
        if done.kernel_exits {
            self.shared.leave(&live.client);
            live.exits.notify_one();
        }
        done.exit_code
    }

    /// Completions for a request of the agent; none while there is no kernel.
    pub async fn complete(&self, request: &str) -> Vec<String> {
        let state = self.shared.state.borrow().clone();
        let State::Ready(live) = state else { return Vec::new() };
        match completion(request) {
            Ok((code, cursor)) => live.client.complete(code, cursor).await,
            Err(error) => {
                tracing::warn!("a malformed completion request: {error}");
                Vec::new()
            }
        }
    }

    /// Interrupts whatever the kernel does.
    pub fn interrupt(&self) {
        match &*self.shared.state.borrow() {
            State::Ready(live) => live.interrupt(),
            _ => tracing::debug!("there is no kernel to interrupt"),
        }
    }

    /// Ends the kernel: by a message, SIGTERM, SIGKILL. None is started again.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        // Cannot fail: we keep the sending end.
        let _ = self.shared.state.subscribe().wait_for(|state| matches!(state, State::Stopped)).await;
    }

    /// Waits for a kernel; the exit code of the run when there is none.
    async fn ready(&self, asks: &mut Asks) -> Result<Live, i32> {
        let mut state = self.shared.state.subscribe();
        if matches!(*state.borrow_and_update(), State::Failed(_)) {
            self.shared.wanted.notify_one();
            let _ = state.changed().await;
        }
        let settled = state.wait_for(|state| !matches!(state, State::Starting));
        let settled = tokio::select! {
            biased;
            asked = asks.next() => return Err(match asked {
                Asked::Interrupt => -nix::libc::SIGINT,
                Asked::Terminate => -nix::libc::SIGTERM,
            }),
            settled = settled => settled.map_or(State::Stopped, |state| state.clone()),
        };
        match settled {
            State::Ready(live) => Ok(live),
            State::Failed(reason) => {
                tracing::error!("the code is not run: {reason}");
                Err(NO_KERNEL)
            }
            State::Starting | State::Stopped => Err(-nix::libc::SIGTERM),
        }
    }
}

/// Code and cursor (in characters) of a completion request; without one, the cursor is at the end.
///
/// The agent's clients send the position as `row` and `col`, or not at all.
fn completion(request: &str) -> serde_json::Result<(String, usize)> {
    #[derive(Deserialize)]
    struct Request {
        #[serde(default)]
        code: String,
        row: Option<usize>,
        col: Option<usize>,
        cursor_pos: Option<usize>,
    }
    let Request { code, row, col, cursor_pos } = serde_json::from_str(request)?;
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
