//! One run of code in a kernel that is ready.
//!
//! ```text
//! asked ──▶ running ──answer──▶ draining ──idle──▶ done
//!             │  ▲                  └ nothing published for a while
//!   input ────┘  └ text
//!             └ the kernel's end, or the runner's ──▶ done, never with 0
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, Pending, Question};
use crate::process::{Asked, Asks, InputSource, OutputSink, Stream};

/// A kernel that has answered and then published nothing for so long will not say that it is idle.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Requests for input and output come by different sockets: what was printed first arrives within this.
const PROMPT_PATIENCE: Duration = Duration::from_millis(15);

/// What is asked for in place of a text that nobody can type: a kernel takes it for the end of the input.
const END_OF_INPUT: &str = "\u{4}";

const CHUNK_BYTES: usize = 64 * 1024;

/// What came of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) exit_code: i32,
    /// The code has asked the kernel to end, which it will.
    pub(super) kernel_exits: bool,
}

impl Done {
    fn with(exit_code: i32) -> Self {
        Self { exit_code, kernel_exits: false }
    }
}

/// What a run needs of the world.
pub(super) struct Execution<'a> {
    pub(super) client: &'a Arc<Client>,
    pub(super) sink: &'a dyn OutputSink,
    pub(super) input: &'a dyn InputSource,
    /// Interrupts the kernel.
    pub(super) interrupt: &'a (dyn Fn() + Send + Sync),
}

enum Event {
    Answer(Result<Bytes, ()>),
    Asked(Asked),
    Question(Question),
    Typed(String),
    End(i32),
}

impl Execution<'_> {
    /// Runs code to its exit code; all of its output has been delivered then.
    pub(super) async fn run(&self, code: &str, asks: &mut Asks) -> Done {
        let mut questions = self.client.questions.lock().await;
        // Those of a run before are of no interest.
        while questions.try_recv().is_ok() {}
        let Some(mut pending) = self.client.execute(code).await else {
            return Done::with(self.client.ended().await.exit_code);
        };
        let mut typing = None;
        let answer = loop {
            let typed = async {
                match &mut typing {
                    Some(typing) => std::pin::Pin::as_mut(typing).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                answer = &mut pending.reply => Event::Answer(answer.map(|message| message.content).map_err(drop)),
                end = self.client.ended() => Event::End(end.exit_code),
                asked = asks.next() => Event::Asked(asked),
                Some(question) = questions.recv() => Event::Question(question),
                typed = typed => Event::Typed(typed),
            };
            match event {
                Event::Answer(Ok(answer)) => break answer,
                Event::Answer(Err(())) => return Done::with(self.client.ended().await.exit_code),
                Event::End(exit_code) => return Done::with(exit_code),
                Event::Asked(Asked::Interrupt) => (self.interrupt)(),
                Event::Asked(Asked::Terminate) => return Done::with(-nix::libc::SIGTERM),
                Event::Question(question) if question.parent == pending.id => {
                    typing = Some(Box::pin(self.ask(question)));
                }
                Event::Question(_) => tracing::debug!("a request for input of a run that has ended"),
                Event::Typed(text) => {
                    typing = None;
                    self.client.answer(text);
                }
            }
        };
        drop(typing);
        let done = verdict(&answer);
        if self.drain(&mut pending, asks).await { done } else { Done::with(-nix::libc::SIGTERM) }
    }

    /// Waits for the rest of the output; `false` when the runner's end comes first.
    async fn drain(&self, pending: &mut Pending, asks: &mut Asks) -> bool {
        let terminated = async { while asks.next().await != Asked::Terminate {} };
        tokio::select! {
            biased;
            _ = &mut pending.idle => true,
            _ = self.client.ended() => true,
            () = terminated => false,
            () = self.client.flow.dry_for(DRAIN_PATIENCE) => true,
        }
    }

    async fn ask(&self, question: Question) -> String {
        self.client.flow.dry_for(PROMPT_PATIENCE).await;
        let mut prompt = Bytes::from(question.request.prompt);
        while !prompt.is_empty() {
            let chunk = prompt.split_to(prompt.len().min(CHUNK_BYTES));
            self.sink.deliver(Stream::Stdout, chunk).await;
        }
        self.input.ask(question.request.password).await.unwrap_or_else(|| END_OF_INPUT.to_owned())
    }
}

/// What an answer to a request to run code says.
fn verdict(answer: &[u8]) -> Done {
    #[derive(Default, Deserialize)]
    struct Answer {
        #[serde(default)]
        status: Value,
        #[serde(default)]
        ename: Value,
        #[serde(default)]
        evalue: Value,
        #[serde(default)]
        payload: Value,
    }
    let answer: Answer = serde_json::from_slice(answer).unwrap_or_default();
    let exit_code = match (answer.status.as_str(), answer.ename.as_str()) {
        (Some("ok"), _) => 0,
        (_, Some("SystemExit")) => system_exit(answer.evalue.as_str().unwrap_or_default()),
        _ => 1,
    };
    let exits = |payload: &Value| payload["source"] == "ask_exit" && !is_true(&payload["keepkernel"]);
    let kernel_exits = answer.payload.as_array().is_some_and(|payloads| payloads.iter().any(exits));
    Done { exit_code, kernel_exits }
}

/// The exit code of a `SystemExit` whose argument is printed like this (docs.python.org/3/library/exceptions.html).
fn system_exit(argument: &str) -> i32 {
    match argument {
        "" | "None" | "False" => 0,
        // Anything else is a message, which means failure.
        _ => argument.parse().unwrap_or(1),
    }
}

/// As Python has it.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn code(answer: &Value) -> i32 {
        verdict(answer.to_string().as_bytes()).exit_code
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
        assert_eq!(verdict(b"").exit_code, 1);
        assert_eq!(verdict(b"[]").exit_code, 1);
        assert_eq!(code(&json!({})), 1);
        assert_eq!(code(&json!({"status": 0, "payload": {"source": "ask_exit"}})), 1);
    }

    #[test]
    fn the_kernels_own_exit_is_noticed() {
        let exits = |payload: Value| verdict(json!({"status": "ok", "payload": payload}).to_string().as_bytes());
        assert!(exits(json!([{"source": "page"}, {"source": "ask_exit", "keepkernel": false}])).kernel_exits);
        assert!(!exits(json!([{"source": "ask_exit", "keepkernel": true}])).kernel_exits);
        assert!(!exits(json!([{"source": "ask_exit", "keepkernel": 3}])).kernel_exits);
        assert!(!exits(json!([{"source": "page"}])).kernel_exits);
    }
}
