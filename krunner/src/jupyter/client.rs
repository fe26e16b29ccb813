//! What is asked of one kernel, and who waits for the answer.
//!
//! The requests of all tasks meet here; the sockets are read and written in one place, `sockets.rs`, which hands
//! answers in. Whoever stops waiting leaves nothing behind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::{
    CompleteReply, CompleteRequest, ExecuteRequest, ExecutionState, InputReply, InputRequest, InterruptRequest,
    JupyterMessageContent, KernelInfoRequest, ShutdownRequest, Status,
};
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::message::{Message, Signer};

/// Requests that wait for the kernel to take them: one that runs, completions, an interrupt.
const QUEUED_REQUESTS: usize = 8;

/// Requests for input that a run has not looked at; a kernel asks one thing at a time.
const QUEUED_QUESTIONS: usize = 4;

/// How long a kernel that answers on its shell may take to be heard where it publishes.
const HEAR_PATIENCE: Duration = Duration::from_millis(200);

/// How often a kernel is asked before it is taken to publish nothing unasked.
const HEAR_TRIES: usize = 5;

/// How a kernel came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// For the run that it cut short.
    pub(super) exit_code: i32,
}

/// A kernel asks the user.
#[derive(Debug)]
pub(super) struct Question {
    /// The request in whose course it asks.
    pub(super) parent: String,
    pub(super) request: InputRequest,
}

/// Messages on their way to the kernel, by socket.
pub(super) struct Outgoing {
    pub(super) shell: mpsc::Receiver<Vec<Bytes>>,
    pub(super) control: mpsc::Receiver<Vec<Bytes>>,
    pub(super) stdin: mpsc::Receiver<Vec<Bytes>>,
}

/// One kernel, as its users see it.
pub(super) struct Client {
    signer: Signer,
    shell: mpsc::Sender<Vec<Bytes>>,
    control: mpsc::Sender<Vec<Bytes>>,
    stdin: mpsc::Sender<Vec<Bytes>>,
    book: Mutex<Book>,
    tell_question: mpsc::Sender<Question>,
    pub(super) questions: AsyncMutex<mpsc::Receiver<Question>>,
    end: watch::Sender<Option<End>>,
    has_run: AtomicBool,
    pub(super) flow: Flow,
}

/// Who waits for what, by the id of the request.
#[derive(Default)]
struct Book {
    replies: HashMap<String, oneshot::Sender<Message>>,
    idles: HashMap<String, oneshot::Sender<()>>,
}

/// A request whose answers are awaited. Dropping it ends the wait.
pub(super) struct Pending {
    client: Arc<Client>,
    pub(super) id: String,
    /// The answer on the socket it was asked at.
    pub(super) reply: oneshot::Receiver<Message>,
    /// All that it has published has been delivered.
    pub(super) idle: oneshot::Receiver<()>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut book = self.client.book();
        book.replies.remove(&self.id);
        book.idles.remove(&self.id);
    }
}

impl Client {
    pub(super) fn new(signer: Signer) -> (Arc<Self>, Outgoing) {
        let (shell, shell_out) = mpsc::channel(QUEUED_REQUESTS);
        let (control, control_out) = mpsc::channel(QUEUED_REQUESTS);
        let (stdin, stdin_out) = mpsc::channel(QUEUED_REQUESTS);
        let (tell_question, questions) = mpsc::channel(QUEUED_QUESTIONS);
        let client = Self {
            signer,
            shell,
            control,
            stdin,
            book: Mutex::default(),
            tell_question,
            questions: AsyncMutex::new(questions),
            end: watch::Sender::new(None),
            has_run: AtomicBool::new(false),
            flow: Flow::default(),
        };
        (Arc::new(client), Outgoing { shell: shell_out, control: control_out, stdin: stdin_out })
    }

    /// Returns when the kernel answers, and is heard where it publishes; with the name of its implementation.
    pub(super) async fn ready(self: &Arc<Self>) -> String {
        let mut implementation = String::new();
        for _ in 0..HEAR_TRIES {
            let Some(mut info) = self.ask(&self.shell, KernelInfoRequest {}).await else { break };
            if let Ok(reply) = (&mut info.reply).await {
                implementation = implementation_in(&reply.content);
            }
            // Its state is published with every request; what it says before we have subscribed is lost.
            if timeout(HEAR_PATIENCE, &mut info.idle).await.is_ok() {
                return implementation;
            }
        }
        tracing::debug!("the kernel does not publish its state");
        implementation
    }

    /// Asks to run code.
    pub(super) async fn execute(self: &Arc<Self>, code: &str) -> Option<Pending> {
        self.has_run.store(true, Ordering::Relaxed);
        let request = ExecuteRequest {
            code: code.to_owned(),
            silent: false,
            store_history: true,
            user_expressions: None,
            allow_stdin: true,
            // Nothing of ours waits behind it but completions, which an error must not answer.
            stop_on_error: false,
        };
        self.ask(&self.shell, request).await
    }

    /// Asks for completions of the code before this position, in characters.
    pub(super) async fn complete(self: &Arc<Self>, code: String, cursor_pos: usize) -> Vec<String> {
        let Some(mut pending) = self.ask(&self.shell, CompleteRequest { code, cursor_pos }).await else {
            return Vec::new();
        };
        let Ok(reply) = (&mut pending.reply).await else { return Vec::new() };
        match serde_json::from_slice::<CompleteReply>(&reply.content) {
            Ok(reply) => reply.matches,
            Err(error) => {
                tracing::debug!("a malformed answer to a completion request: {error}");
                Vec::new()
            }
        }
    }

    /// Interrupts by message.
    pub(super) fn interrupt(&self) {
        self.tell(&self.control, InterruptRequest {});
    }

    /// Asks the kernel to end.
    pub(super) fn shut_down(&self) {
        self.tell(&self.control, ShutdownRequest { restart: false });
    }

    /// Hands the user's text to the kernel.
    pub(super) fn answer(&self, value: String) {
        self.tell(&self.stdin, InputReply { value, ..InputReply::default() });
    }

    /// Resolves with the kernel's end; all that it has published is delivered by then.
    pub(super) async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        // Cannot fail: `self` keeps the sending end.
        let end = end.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        end.unwrap_or(End { exit_code: -1 })
    }

    /// Whether a run waits for its answer.
    pub(super) fn is_busy(&self) -> bool {
        !self.book().replies.is_empty()
    }

    /// Whether it was ever asked to run code.
    pub(super) fn has_run(&self) -> bool {
        self.has_run.load(Ordering::Relaxed)
    }

    /// The kernel has come to its end.
    pub(super) fn end(&self, end: End) {
        self.end.send_replace(Some(end));
    }

    /// An answer has arrived.
    pub(super) fn replied(&self, message: Message) {
        match self.book().replies.remove(&message.head.parent) {
            Some(waiter) => _ = waiter.send(message),
            None => tracing::debug!("an answer that nobody waits for: {}", message.head.kind),
        }
    }

    /// The kernel's state has been published.
    pub(super) fn status(&self, message: &Message) {
        match serde_json::from_slice::<Status>(&message.content) {
            Ok(Status { execution_state: ExecutionState::Idle }) => {
                if let Some(waiter) = self.book().idles.remove(&message.head.parent) {
                    let _ = waiter.send(());
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("a malformed status of the kernel: {error}"),
        }
    }

    /// The kernel asks.
    pub(super) fn asked(&self, question: Question) {
        if self.tell_question.try_send(question).is_err() {
            tracing::warn!("the kernel asks for input, and nobody answers its questions; this one is dropped");
        }
    }

    async fn ask(
        self: &Arc<Self>,
        socket: &mpsc::Sender<Vec<Bytes>>,
        content: impl Into<JupyterMessageContent>,
    ) -> Option<Pending> {
        let (id, frames) = self.signer.request(content);
        let (tell_reply, reply) = oneshot::channel();
        let (tell_idle, idle) = oneshot::channel();
        {
            let mut book = self.book();
            book.replies.insert(id.clone(), tell_reply);
            book.idles.insert(id.clone(), tell_idle);
        }
        let pending = Pending { client: Arc::clone(self), id, reply, idle };
        // Fails when the sockets are closed.
        socket.send(frames).await.ok()?;
        Some(pending)
    }

    /// Sends without waiting for an answer, nor for room: a kernel that takes nothing would not heed it either.
    fn tell(&self, socket: &mpsc::Sender<Vec<Bytes>>, content: impl Into<JupyterMessageContent>) {
        let (_, frames) = self.signer.request(content);
        if socket.try_send(frames).is_err() {
            tracing::debug!("the kernel takes no more messages");
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing else of a kernel's description matters here.
fn implementation_in(info: &[u8]) -> String {
    #[derive(Default, Deserialize)]
    struct Info {
        #[serde(default)]
        implementation: String,
    }
    serde_json::from_slice(info).unwrap_or_else(|_| Info::default()).implementation
}

/// Whether what the kernel publishes keeps coming.
#[derive(Default)]
pub(super) struct Flow {
    /// Since when there is nothing to deliver.
    dry_since: Mutex<Option<Instant>>,
}

impl Flow {
    pub(super) fn set_dry(&self, dry: bool) {
        *self.dry_since.lock().unwrap_or_else(PoisonError::into_inner) = dry.then(Instant::now);
    }

    /// Waits until nothing has come for so long.
    pub(super) async fn dry_for(&self, long: Duration) {
        loop {
            let dry = self.dry_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed());
            let left = long.saturating_sub(dry.unwrap_or_default());
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}
