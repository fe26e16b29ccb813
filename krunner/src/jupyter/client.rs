//! Requests to one kernel, and the tasks that wait for the replies.
//!
//! `sockets.rs` reads and writes the sockets and passes replies in here. A task that stops waiting removes its entries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::{
    CompleteRequest, ExecuteRequest, ExecutionState, InputReply, InputRequest, InterruptRequest, JupyterMessageContent,
    KernelInfoRequest, ShutdownRequest, Status,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::message::{KernelMessage, Signer};
use super::raw_json::for_each;

/// Queued messages per socket: the running request, completions, an interrupt.
const QUEUED_REQUESTS: usize = 8;

/// Queued input requests; a kernel sends one at a time.
const QUEUED_PROMPTS: usize = 4;

/// How long after its reply on the shell socket a kernel may take to publish its state on iopub.
const HEAR_PATIENCE: Duration = Duration::from_millis(200);

/// How long an interrupted kernel may take to reply before it is probed, and the interval of further probes.
const LOST_PROBE: Duration = Duration::from_millis(100);

/// Number of requests after which a kernel is assumed not to publish its state.
const HEAR_TRIES: usize = 5;

/// Completions of one request. No user reads more, and all requests together hold at most 4 MiB.
const MAX_MATCHES: usize = 4096;

/// Bytes of these, as JSON.
const MAX_MATCHES_BYTES: usize = 64 * 1024;

/// How a kernel exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KernelExit {
    /// The exit code of a run that the exit interrupted.
    pub(super) exit_code: i32,
}

/// An input request of the kernel.
#[derive(Debug)]
pub(super) struct KernelPrompt {
    /// Id of the execute request that it belongs to.
    pub(super) parent: String,
    pub(super) request: InputRequest,
}

/// Messages to the kernel, by socket.
pub(super) struct Outgoing {
    pub(super) shell: mpsc::Receiver<Vec<Bytes>>,
    pub(super) control: mpsc::Receiver<Vec<Bytes>>,
    pub(super) stdin: mpsc::Receiver<Vec<Bytes>>,
}

/// Client of one kernel.
pub(super) struct KernelClient {
    signer: Signer,
    shell: mpsc::Sender<Vec<Bytes>>,
    control: mpsc::Sender<Vec<Bytes>>,
    stdin: mpsc::Sender<Vec<Bytes>>,
    pending_requests: Mutex<PendingRequests>,
    prompt_sender: mpsc::Sender<KernelPrompt>,
    pub(super) prompts: AsyncMutex<mpsc::Receiver<KernelPrompt>>,
    end: watch::Sender<Option<KernelExit>>,
    has_run: AtomicBool,
    /// The implementation's name in `kernel_info_reply`.
    implementation: OnceLock<String>,
    pub(super) output: OutputActivity,
}

/// Waiting tasks by request id.
#[derive(Default)]
struct PendingRequests {
    replies: HashMap<String, oneshot::Sender<KernelMessage>>,
    idles: HashMap<String, oneshot::Sender<()>>,
    begins: HashMap<String, oneshot::Sender<()>>,
}

/// A request that was sent. Dropping it ends the wait.
pub(super) struct PendingReply {
    client: Arc<KernelClient>,
    pub(super) id: String,
    /// The reply, on the socket of the request.
    pub(super) reply: oneshot::Receiver<KernelMessage>,
    /// Resolves when the kernel is idle again and its output was delivered.
    pub(super) idle: oneshot::Receiver<()>,
    /// Resolves when the kernel is about to run the code (`execute_input`).
    pub(super) begun: oneshot::Receiver<()>,
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        let mut pending_requests = self.client.pending_requests();
        pending_requests.replies.remove(&self.id);
        pending_requests.idles.remove(&self.id);
        pending_requests.begins.remove(&self.id);
    }
}

impl KernelClient {
    pub(super) fn new(signer: Signer) -> (Arc<Self>, Outgoing) {
        let (shell, shell_out) = mpsc::channel(QUEUED_REQUESTS);
        let (control, control_out) = mpsc::channel(QUEUED_REQUESTS);
        let (stdin, stdin_out) = mpsc::channel(QUEUED_REQUESTS);
        let (prompt_sender, prompts) = mpsc::channel(QUEUED_PROMPTS);
        let client = Self {
            signer,
            shell,
            control,
            stdin,
            pending_requests: Mutex::default(),
            prompt_sender,
            prompts: AsyncMutex::new(prompts),
            end: watch::Sender::new(None),
            has_run: AtomicBool::new(false),
            implementation: OnceLock::new(),
            output: OutputActivity::default(),
        };
        (Arc::new(client), Outgoing { shell: shell_out, control: control_out, stdin: stdin_out })
    }

    /// Waits until the kernel replies and its iopub messages arrive; returns the name of its implementation.
    pub(super) async fn ready(self: &Arc<Self>) -> String {
        let mut implementation = String::new();
        for _ in 0..HEAR_TRIES {
            let Some(mut info) = self.ask(&self.shell, KernelInfoRequest {}).await else { break };
            if let Ok(reply) = (&mut info.reply).await {
                implementation = implementation_in(&reply.content);
                let _ = self.implementation.set(implementation.clone());
            }
            // The kernel publishes its state with every request; messages from before the subscription are lost.
            if timeout(HEAR_PATIENCE, &mut info.idle).await.is_ok() {
                return implementation;
            }
        }
        tracing::debug!("the kernel does not publish its state");
        implementation
    }

    /// Sends code to run.
    pub(super) async fn execute(self: &Arc<Self>, code: &str) -> Option<PendingReply> {
        self.has_run.store(true, Ordering::Relaxed);
        let request = ExecuteRequest {
            code: code.to_owned(),
            silent: false,
            store_history: true,
            user_expressions: None,
            allow_stdin: true,
            // Only completions are queued behind it, which an error must not abort.
            stop_on_error: false,
        };
        self.ask(&self.shell, request).await
    }

    /// Requests completions at this position, in characters.
    pub(super) async fn complete(self: &Arc<Self>, code: String, cursor_pos: usize) -> Vec<String> {
        let Some(mut pending) = self.ask(&self.shell, CompleteRequest { code, cursor_pos }).await else {
            return Vec::new();
        };
        let Ok(reply) = (&mut pending.reply).await else { return Vec::new() };
        match matches_in(&reply.content) {
            Ok(matches) => matches,
            Err(error) => {
                tracing::debug!("malformed completion reply: {error}");
                Vec::new()
            }
        }
    }

    /// Sends an interrupt message.
    pub(super) fn interrupt(&self) {
        self.tell(&self.control, InterruptRequest {});
    }

    /// Sends a shutdown request.
    pub(super) fn shut_down(&self) {
        self.tell(&self.control, ShutdownRequest { restart: false });
    }

    /// Sends the user's text to the kernel.
    pub(super) fn answer(&self, value: String) {
        self.tell(&self.stdin, InputReply { value, ..InputReply::default() });
    }

    /// Resolves when the kernel exited and its output was delivered.
    pub(super) async fn ended(&self) -> KernelExit {
        let mut end = self.end.subscribe();
        // Cannot fail: `self` has the sender.
        let end = end.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        end.unwrap_or(KernelExit { exit_code: -1 })
    }

    /// Whether a request waits for its reply.
    pub(super) fn is_busy(&self) -> bool {
        !self.pending_requests().replies.is_empty()
    }

    /// Whether the kernel ever got code to run.
    pub(super) fn has_run(&self) -> bool {
        self.has_run.load(Ordering::Relaxed)
    }

    /// Publishes that the kernel exited.
    pub(super) fn end(&self, end: KernelExit) {
        self.end.send_replace(Some(end));
    }

    /// Passes a reply to its waiting task.
    pub(super) fn replied(&self, message: KernelMessage) {
        match self.pending_requests().replies.remove(&message.head.parent) {
            Some(waiter) => _ = waiter.send(message),
            None => tracing::debug!("unexpected reply: {}", message.head.kind),
        }
    }

    /// Handles a published kernel state.
    pub(super) fn status(&self, message: &KernelMessage) {
        match serde_json::from_slice::<Status>(&message.content) {
            Ok(Status { execution_state: ExecutionState::Idle }) => {
                if let Some(waiter) = self.pending_requests().idles.remove(&message.head.parent) {
                    let _ = waiter.send(());
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("malformed kernel status: {error}"),
        }
    }

    /// Handles `execute_input` of this request.
    pub(super) fn begun(&self, request: &str) {
        if let Some(waiter) = self.pending_requests().begins.remove(request) {
            let _ = waiter.send(());
        }
    }

    /// Resolves when the kernel will never reply to this execute request because it was interrupted within its own code.
    ///
    /// ipykernel then catches the exception, publishes `idle`, and sends no `execute_reply`; later requests work
    /// (`dispatch_shell`, ipykernel/kernelbase.py). It replies to the requests of a socket in order, so the reply to a later
    /// request proves that this one is lost. For kernels that may reply out of order only `idle` proves it.
    pub(super) async fn lost(self: &Arc<Self>, request: &str) {
        loop {
            sleep(LOST_PROBE).await;
            let Some(mut info) = self.ask(&self.shell, KernelInfoRequest {}).await else {
                return std::future::pending().await;
            };
            let is_answered = tokio::select! {
                biased;
                reply = &mut info.reply => reply.is_ok(),
                // Another interrupt may have lost this reply, too.
                _ = &mut info.idle => false,
            };
            if !is_answered {
                continue;
            }
            // Earlier iopub messages were delivered by then.
            let _ = timeout(LOST_PROBE, &mut info.idle).await;
            if !self.pending_requests().idles.contains_key(request) || self.is_sequential() {
                return;
            }
        }
    }

    fn is_sequential(&self) -> bool {
        self.implementation.get().is_some_and(|name| name == "ipython")
    }

    /// Queues an input request of the kernel.
    pub(super) fn asked(&self, prompt_request: KernelPrompt) {
        if self.prompt_sender.try_send(prompt_request).is_err() {
            tracing::warn!("the kernel sent too many input requests; dropping one");
        }
    }

    async fn ask(
        self: &Arc<Self>,
        socket: &mpsc::Sender<Vec<Bytes>>,
        content: impl Into<JupyterMessageContent>,
    ) -> Option<PendingReply> {
        let (id, frames) = self.signer.request(content);
        let (tell_reply, reply) = oneshot::channel();
        let (tell_idle, idle) = oneshot::channel();
        let (tell_begun, begun) = oneshot::channel();
        {
            let mut pending_requests = self.pending_requests();
            pending_requests.replies.insert(id.clone(), tell_reply);
            pending_requests.idles.insert(id.clone(), tell_idle);
            pending_requests.begins.insert(id.clone(), tell_begun);
        }
        let pending = PendingReply { client: Arc::clone(self), id, reply, idle, begun };
        // Fails when the sockets are closed.
        socket.send(frames).await.ok()?;
        Some(pending)
    }

    /// Sends without waiting for a reply or for space in the queue: a kernel that reads nothing would not react anyway.
    fn tell(&self, socket: &mpsc::Sender<Vec<Bytes>>, content: impl Into<JupyterMessageContent>) {
        let (_, frames) = self.signer.request(content);
        if socket.try_send(frames).is_err() {
            tracing::debug!("the kernel's message queue is full; dropping a message");
        }
    }

    fn pending_requests(&self) -> MutexGuard<'_, PendingRequests> {
        self.pending_requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The matches of a `complete_reply`, within [`MAX_MATCHES`] and [`MAX_MATCHES_BYTES`].
fn matches_in(reply: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        matches: &'a RawValue,
    }
    let reply: Reply = serde_json::from_slice(reply)?;
    let (mut matches, mut bytes, mut omitted) = (Vec::new(), 0, 0_usize);
    for_each(reply.matches, |value| {
        // What does not fit ends the list: kernels send the best matches first.
        bytes += value.get().len();
        if omitted == 0 && matches.len() < MAX_MATCHES && bytes <= MAX_MATCHES_BYTES {
            matches.push(serde_json::from_str(value.get())?);
        } else {
            omitted += 1;
        }
        Ok(())
    })?;
    if omitted > 0 {
        tracing::debug!("too many completions: {omitted} are omitted");
    }
    Ok(matches)
}

/// The implementation's name in a `kernel_info_reply`.
fn implementation_in(info: &[u8]) -> String {
    #[derive(Default, Deserialize)]
    struct Info {
        #[serde(default)]
        implementation: String,
    }
    serde_json::from_slice(info).unwrap_or_else(|_| Info::default()).implementation
}

/// What the reader of the kernel's output does.
#[derive(Clone, Copy, Default)]
pub(super) enum ReaderState {
    /// It delivers output, or has not begun to read.
    #[default]
    Busy,
    /// It waits for a message, since then.
    Idle(Instant),
    /// It waits for the rest of a message, since then.
    InMessage(Instant),
}

/// Tracks whether the kernel is publishing output.
#[derive(Default)]
pub(super) struct OutputActivity(Mutex<ReaderState>);

impl OutputActivity {
    /// The reader waits from now on, in this state.
    pub(super) fn begin_wait(&self, state: fn(Instant) -> ReaderState) {
        self.set(state(Instant::now()));
    }

    /// What the reader waited for has arrived.
    pub(super) fn end_wait(&self) {
        self.set(ReaderState::Busy);
    }

    fn set(&self, state: ReaderState) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn state(&self) -> ReaderState {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the output has been idle for this long.
    pub(super) async fn wait_idle(&self, long: Duration) {
        let idle = || if let ReaderState::Idle(since) = self.state() { Some(since.elapsed()) } else { None };
        wait_for(long, idle).await;
    }

    /// Waits until nothing has arrived for this long, also in the middle of a message.
    pub(super) async fn wait_silent(&self, long: Duration) {
        let silent = || match self.state() {
            ReaderState::Busy => None,
            ReaderState::Idle(since) | ReaderState::InMessage(since) => Some(since.elapsed()),
        };
        wait_for(long, silent).await;
    }
}

/// Waits until something has lasted for this long.
async fn wait_for(long: Duration, lasted: impl Fn() -> Option<Duration>) {
    loop {
        let left = long.saturating_sub(lasted().unwrap_or_default());
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(matches: &serde_json::Value) -> Vec<String> {
        let reply =
            json!({"status": "ok", "matches": matches, "cursor_start": 0, "cursor_end": 1, "metadata": {"a": [1]}});
        matches_in(reply.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn matches_are_bounded_and_the_first_ones_kept() {
        assert_eq!(matches(&json!(["a", "é\n"])), ["a", "é\n"]);
        let many: Vec<_> = (0..3 * MAX_MATCHES).map(|number| number.to_string()).collect();
        assert_eq!(matches(&json!(many)), many[..MAX_MATCHES]);
        let long: Vec<_> = (0..100).map(|number| format!("{number:01000}")).collect();
        assert_eq!(matches(&json!(long)), long[..MAX_MATCHES_BYTES / 1002]);
        let (first, rest) = ("a", "b".repeat(MAX_MATCHES_BYTES));
        assert_eq!(matches(&json!([first, rest, "c"])), [first]);
        assert!(matches_in(b"{}").is_err() && matches_in(br#"{"matches": [1]}"#).is_err());
    }
}
