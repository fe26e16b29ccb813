//! One run of code in a kernel that is ready.
//!
//! ```text
//! sent ───▶ running ──reply──▶ draining ──idle──▶ done
//!             │  ▲                  └ nothing published for a while
//!   input ────┘  └ text
//!             └ the kernel exits, or the runner stops ──▶ done, never with 0
//! ```
//!
//! **Interrupts.** A kernel ignores SIGINT between requests. A SIGINT in the kernel's own code, just before or after the user's
//! code, loses the reply. So an interrupt waits until the kernel reports that the code runs. If that takes longer than
//! [`BEGIN_PATIENCE`], the kernel may be busy with an earlier request: it is interrupted then, and again when the code begins. The
//! next one comes [`REPEAT_PAUSE`] later if the code still runs, and after an interrupt a missing reply is detected
//! (`KernelClient::lost`): the run then ends as interrupted, and the kernel keeps its variables.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::client::{KernelClient, KernelPrompt, PendingReply};
use super::raw_json::{for_each, string};
use crate::process::{ControlReceiver, ControlRequest, InputSource, OutputSink, Stream};

/// A kernel that replied and then published nothing for this long will not publish `idle`.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Input requests and output use different sockets: output printed before a request arrives within this time.
const PROMPT_PATIENCE: Duration = Duration::from_millis(15);

/// Sent if there is no input source: the kernel takes it for the end of the input.
const END_OF_INPUT: &str = "\u{4}";

/// How long an interrupt waits for the code to begin: the kernel may be busy with an earlier request.
const BEGIN_PATIENCE: Duration = Duration::from_millis(500);

/// Minimum time between two interrupts. Users press the key several times, and a second interrupt while the kernel reports the
/// first may kill it.
const REPEAT_PAUSE: Duration = Duration::from_millis(300);

/// Printed for an interrupt that the kernel did not report.
const INTERRUPTED: &[u8] = b"KeyboardInterrupt\n";

/// The exit code of interrupted code, as for any exception.
const INTERRUPTED_EXIT_CODE: i32 = 1;

const CHUNK_BYTES: usize = 64 * 1024;

/// The result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExecutionResult {
    pub(super) exit_code: i32,
    /// The code requested the kernel's exit.
    pub(super) kernel_exits: bool,
}

impl ExecutionResult {
    fn with(exit_code: i32) -> Self {
        Self { exit_code, kernel_exits: false }
    }
}

/// The dependencies of a run.
pub(super) struct Execution<'a> {
    pub(super) client: &'a Arc<KernelClient>,
    pub(super) sink: &'a dyn OutputSink,
    pub(super) input: &'a dyn InputSource,
    /// Interrupts the kernel.
    pub(super) interrupt: &'a (dyn Fn() + Send + Sync),
}

enum ExecutionEvent {
    Reply(Result<Bytes, ()>),
    Control(ControlRequest),
    Prompt(KernelPrompt),
    Typed(String),
    /// The code began to run.
    Begun,
    /// A delayed interrupt is due.
    InterruptDue,
    /// The reply will not come.
    Lost,
    KernelEnded(i32),
}

impl Execution<'_> {
    /// Runs code and returns when its output was delivered.
    pub(super) async fn run(&self, code: &str, control_requests: &mut ControlReceiver) -> ExecutionResult {
        let mut prompts = self.client.prompts.lock().await;
        // Drop input requests of earlier runs.
        while prompts.try_recv().is_ok() {}
        let Some(mut pending) = self.client.execute(code).await else {
            return ExecutionResult::with(self.client.ended().await.exit_code);
        };
        let mut typing = None;
        let (mut has_begun, mut is_interrupt_due, mut is_interrupted) = (false, false, false);
        let interrupt_due = sleep(BEGIN_PATIENCE);
        let mut next_interrupt = Instant::now();
        let request = pending.id.clone();
        let lost = self.client.lost(&request);
        tokio::pin!(interrupt_due, lost);
        let answer = loop {
            let typed = async {
                match &mut typing {
                    Some(typing) => std::pin::Pin::as_mut(typing).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                answer = &mut pending.reply => ExecutionEvent::Reply(answer.map(|message| message.content).map_err(drop)),
                end = self.client.ended() => ExecutionEvent::KernelEnded(end.exit_code),
                request = control_requests.next() => ExecutionEvent::Control(request),
                Some(prompt_request) = prompts.recv() => ExecutionEvent::Prompt(prompt_request),
                typed = typed => ExecutionEvent::Typed(typed),
                _ = &mut pending.begun, if !has_begun => ExecutionEvent::Begun,
                () = &mut interrupt_due, if is_interrupt_due => ExecutionEvent::InterruptDue,
                () = &mut lost, if is_interrupted => ExecutionEvent::Lost,
            };
            has_begun |= matches!(event, ExecutionEvent::Begun);
            match event {
                ExecutionEvent::Reply(Ok(answer)) => break answer,
                ExecutionEvent::Reply(Err(())) => return ExecutionResult::with(self.client.ended().await.exit_code),
                ExecutionEvent::KernelEnded(exit_code) => return ExecutionResult::with(exit_code),
                ExecutionEvent::Control(ControlRequest::Interrupt) if is_interrupt_due => {}
                ExecutionEvent::Control(ControlRequest::Interrupt) if !has_begun => {
                    interrupt_due.as_mut().reset(Instant::now() + BEGIN_PATIENCE);
                    is_interrupt_due = true;
                }
                ExecutionEvent::Control(ControlRequest::Interrupt) if next_interrupt > Instant::now() => {
                    interrupt_due.as_mut().reset(next_interrupt);
                    is_interrupt_due = true;
                }
                // An earlier interrupt may have met a kernel between two requests, which ignores it.
                ExecutionEvent::Begun if !is_interrupt_due && !is_interrupted => {}
                ExecutionEvent::Control(ControlRequest::Interrupt)
                | ExecutionEvent::Begun
                | ExecutionEvent::InterruptDue => {
                    (self.interrupt)();
                    (is_interrupt_due, is_interrupted) = (false, true);
                    next_interrupt = Instant::now() + REPEAT_PAUSE;
                }
                ExecutionEvent::Lost => return self.interrupted().await,
                ExecutionEvent::Control(ControlRequest::Terminate) => {
                    return ExecutionResult::with(-nix::libc::SIGTERM);
                }
                ExecutionEvent::Prompt(prompt_request) if prompt_request.parent == pending.id => {
                    typing = Some(Box::pin(self.ask(prompt_request)));
                }
                ExecutionEvent::Prompt(_) => tracing::debug!("ignoring an input request of a finished run"),
                ExecutionEvent::Typed(text) => {
                    typing = None;
                    self.client.answer(text);
                }
            }
        };
        drop(typing);
        let done = result_of(&answer);
        if self.drain(&mut pending, control_requests).await { done } else { ExecutionResult::with(-nix::libc::SIGTERM) }
    }

    /// Handles an interrupt that lost the reply.
    async fn interrupted(&self) -> ExecutionResult {
        tracing::info!("the kernel was interrupted and sent no reply: the step ends as interrupted");
        self.client.output.wait_idle(PROMPT_PATIENCE).await;
        self.sink.deliver(Stream::Stderr, Bytes::from_static(INTERRUPTED)).await;
        ExecutionResult::with(INTERRUPTED_EXIT_CODE)
    }

    /// Waits for the rest of the output; `false` if the runner stops first.
    async fn drain(&self, pending: &mut PendingReply, control_requests: &mut ControlReceiver) -> bool {
        let terminated = async { while control_requests.next().await != ControlRequest::Terminate {} };
        tokio::select! {
            biased;
            _ = &mut pending.idle => true,
            _ = self.client.ended() => true,
            () = terminated => false,
            () = self.client.output.wait_idle(DRAIN_PATIENCE) => true,
        }
    }

    async fn ask(&self, prompt_request: KernelPrompt) -> String {
        self.client.output.wait_idle(PROMPT_PATIENCE).await;
        let mut prompt = Bytes::from(prompt_request.request.prompt);
        while !prompt.is_empty() {
            let chunk = prompt.split_to(prompt.len().min(CHUNK_BYTES));
            self.sink.deliver(Stream::Stdout, chunk).await;
        }
        self.input.ask(prompt_request.request.password).await.unwrap_or_else(|| END_OF_INPUT.to_owned())
    }
}

/// Parses an `execute_reply`.
fn result_of(answer: &[u8]) -> ExecutionResult {
    #[derive(Default, Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        status: Option<&'a RawValue>,
        #[serde(borrow)]
        ename: Option<&'a RawValue>,
        #[serde(borrow)]
        evalue: Option<&'a RawValue>,
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
    }
    let answer: Reply = serde_json::from_slice(answer).unwrap_or_default();
    let [status, ename] = [answer.status, answer.ename].map(|value| value.and_then(string));
    let exit_code = match (status.as_deref(), ename.as_deref()) {
        (Some("ok"), _) => 0,
        (_, Some("SystemExit")) => system_exit(&answer.evalue.and_then(string).unwrap_or_default()),
        _ => 1,
    };
    let mut kernel_exits = false;
    if let Some(payloads) = answer.payload {
        // What is no list requests nothing.
        let _ = for_each(payloads, |payload| {
            kernel_exits |= requests_exit(payload);
            Ok(())
        });
    }
    ExecutionResult { exit_code, kernel_exits }
}

/// Whether a payload is a request to exit.
fn requests_exit(payload: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        source: Option<&'a RawValue>,
        #[serde(borrow)]
        keepkernel: Option<&'a RawValue>,
    }
    serde_json::from_str::<Payload>(payload.get()).is_ok_and(|payload| {
        payload.source.and_then(string).is_some_and(|source| source == "ask_exit")
            && !payload.keepkernel.is_some_and(is_true)
    })
}

/// The exit code of a `SystemExit` with this argument (docs.python.org/3/library/exceptions.html).
fn system_exit(argument: &str) -> i32 {
    match argument {
        "" | "None" | "False" => 0,
        // Anything else is a message, which means failure.
        _ => argument.parse().unwrap_or(1),
    }
}

/// Python's truth value of a bool or a number.
fn is_true(value: &RawValue) -> bool {
    match serde_json::from_str::<f64>(value.get()) {
        Ok(number) => number != 0.0,
        Err(_) => value.get() == "true",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn code(answer: &Value) -> i32 {
        result_of(answer.to_string().as_bytes()).exit_code
    }

    #[test]
    fn exit_codes() {
        assert_eq!(code(&json!({"status": "ok", "execution_count": 1})), 0);
        assert_eq!(code(&json!({"status": "error", "ename": "ValueError", "evalue": "3", "traceback": []})), 1);
        assert_eq!(code(&json!({"status": "aborted"})), 1);
        let exit = |argument: &str| code(&json!({"status": "error", "ename": "SystemExit", "evalue": argument}));
        assert_eq!([exit("3"), exit("0"), exit(""), exit("None"), exit("-1")], [3, 0, 0, 0, -1]);
        assert_eq!([exit("True"), exit("False"), exit("a message"), exit("99999999999")], [1, 0, 1, 1]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_no_success() {
        assert_eq!(result_of(b"").exit_code, 1);
        assert_eq!(result_of(b"[]").exit_code, 1);
        assert_eq!(code(&json!({})), 1);
        assert_eq!(code(&json!({"status": 0, "payload": {"source": "ask_exit"}})), 1);
    }

    #[test]
    fn the_kernels_own_exit_is_noticed() {
        let exits = |payload: Value| result_of(json!({"status": "ok", "payload": payload}).to_string().as_bytes());
        assert!(exits(json!([{"source": "page"}, {"source": "ask_exit", "keepkernel": false}])).kernel_exits);
        assert!(!exits(json!([{"source": "ask_exit", "keepkernel": true}])).kernel_exits);
        assert!(!exits(json!([{"source": "ask_exit", "keepkernel": 3}])).kernel_exits);
        assert!(!exits(json!([{"source": "page"}])).kernel_exits);
    }
}
