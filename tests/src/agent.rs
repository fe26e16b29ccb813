//! The agent's unmodified client, driven through a Python process that speaks JSON lines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::runner::Runner;
use crate::wait;

type Waiting = Arc<Mutex<HashMap<u64, Sender<Reply>>>>;

/// The three commands of a batch run.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a> {
    /// Command of the clean step.
    pub clean: &'a str,
    /// Command of the build step.
    pub build: &'a str,
    /// Command of the exec step.
    pub exec: &'a str,
}

impl Steps<'_> {
    /// Skips every step.
    pub const NONE: Self = Self { clean: "", build: "", exec: "" };
    /// Leaves every step to the runtime's heuristic.
    pub const HEURISTIC: Self = Self { clean: "*", build: "*", exec: "*" };
}

/// What the client returned for one step of a run.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepResult {
    /// `clean-finished`, `build-finished`, `finished` or `waiting-input`.
    pub status: String,
    /// The exit code, in the steps that have one.
    pub exit_code: Option<i32>,
    /// The options of a `waiting-input` step.
    pub options: Value,
    /// All stdout of the step.
    pub stdout: String,
    /// All stderr of the step; the runner's log lines come this way too.
    pub stderr: String,
    /// All output in order: kind and value.
    pub console: Vec<(String, Value)>,
}

impl StepResult {
    /// The output of this kind.
    pub fn shown(&self, kind: &str) -> Vec<&Value> {
        self.console.iter().filter(|(shown, _)| shown == kind).map(|(_, value)| value).collect()
    }
}

/// All steps of a run, up to `finished`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Run {
    /// In the order in which the client returned them.
    pub steps: Vec<StepResult>,
}

impl Run {
    /// The only step with that status.
    #[track_caller]
    pub fn step(&self, status: &str) -> &StepResult {
        let mut found = self.steps.iter().filter(|step| step.status == status);
        match (found.next(), found.next()) {
            (Some(step), None) => step,
            _ => panic!("not exactly one step {status:?}: {self:#?}"),
        }
    }

    /// The exit code of each step that has one: of clean, build and exec in a batch run.
    pub fn codes(&self) -> Vec<i32> {
        self.steps.iter().filter_map(|step| step.exit_code).collect()
    }

    /// The result of the exec step.
    #[track_caller]
    pub fn exec(&self) -> &StepResult {
        self.step("finished")
    }

    /// The stdout of all steps.
    pub fn stdout(&self) -> String {
        self.steps.iter().map(|step| step.stdout.as_str()).collect()
    }

    /// The stderr of all steps.
    pub fn stderr(&self) -> String {
        self.steps.iter().map(|step| step.stderr.as_str()).collect()
    }
}

/// The lines of a stderr that the child wrote, without the runner's log lines (`c-kernel: ...`).
pub fn child_lines(stderr: &str) -> Vec<&str> {
    let is_log = |line: &str| {
        let prefix = line.split_once("-kernel: ").map(|(prefix, _)| prefix);
        prefix.is_some_and(|lang| lang.bytes().all(|byte| byte.is_ascii_lowercase()))
    };
    stderr.lines().filter(|line| !is_log(line)).collect()
}

#[derive(Deserialize)]
struct Reply {
    id: u64,
    #[serde(default)]
    value: Value,
    error: Option<String>,
}

/// A request whose reply has not arrived yet.
#[derive(Debug)]
#[must_use = "the failure of a request that is not waited for goes unnoticed"]
pub struct Pending<T> {
    what: String,
    reply: Receiver<Reply>,
    value: PhantomData<T>,
}

impl<T: DeserializeOwned> Pending<T> {
    /// Waits for the reply.
    #[track_caller]
    pub fn wait(self) -> T {
        let what = self.what;
        let reply = self
            .reply
            .recv_timeout(wait::PATIENCE)
            .unwrap_or_else(|error| panic!("{what}: no reply from the agent's client: {error}"));
        if let Some(error) = reply.error {
            panic!("{what}: {error}");
        }
        serde_json::from_value(reply.value).unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

/// The agent's client, connected to a runner.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    requests: Option<Mutex<ChildStdin>>,
    waiting: Waiting,
    next_id: AtomicU64,
    stderr: PathBuf,
}

impl Agent {
    /// Starts the client and makes it connect. The runner need not listen yet.
    #[track_caller]
    pub fn connect(python: &Path, runner: &Runner) -> Self {
        Self::connect_by(&[], python, &runner.root(), runner.ports())
    }

    /// Starts the client through a command that ends in `exec`ing its arguments, for other ports than the session's.
    #[track_caller]
    pub fn connect_by(prefix: &[&str], python: &Path, root: &Path, ports: (u16, u16)) -> Self {
        let stderr = root.with_file_name("agent-stderr");
        let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/driver.py");
        let mut argv: Vec<_> = prefix.iter().map(Into::into).collect();
        argv.extend([python.as_os_str().to_owned(), driver.into()]);
        let mut command = Command::new(&argv[0]);
        // Another release of the client goes before the environment's own.
        if let Some(packages) = std::env::var_os("KRUNNER_TEST_AGENT_PACKAGES") {
            command.env("PYTHONPATH", packages);
        }
        let mut child = command
            .args(&argv[1..])
            .args([ports.0.to_string(), ports.1.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a capture file"))
            .spawn()
            .expect("the agent's client starts");
        let requests = child.stdin.take().map(Mutex::new);
        let waiting = Waiting::default();
        let replies = BufReader::new(child.stdout.take().expect("a piped stdout"));
        let handed_over = Arc::clone(&waiting);
        thread::spawn(move || dispatch(replies, &handed_over));
        let next_id = AtomicU64::new(1);
        let agent = Self { child, requests, waiting, next_id, stderr };
        agent.open();
        agent
    }

    /// Sends a request and returns at once.
    #[track_caller]
    fn start<T>(&self, op: &str, mut request: Value) -> Pending<T> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        request["id"] = id.into();
        request["op"] = op.into();
        let (sender, reply) = mpsc::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let requests = self.requests.as_ref().expect("the client's stdin is open until the drop");
        let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(requests, "{request}").expect("the agent's client takes a request");
        Pending { what: op.to_owned(), reply, value: PhantomData }
    }

    /// Sends a request that has no result, and waits until the client has handled it.
    #[track_caller]
    fn order(&self, op: &str, request: Value) {
        let () = self.start(op, request).wait();
    }

    /// Reconnects the client.
    #[track_caller]
    pub fn open(&self) {
        self.order("open", json!({}));
    }

    /// Closes the client's sockets, as the agent does when it forgets a session.
    #[track_caller]
    pub fn close(&self) {
        self.order("close", json!({}));
    }

    /// Starts a batch run whose prompts get these answers.
    #[track_caller]
    pub fn start_batch(&self, steps: Steps<'_>, answers: &[&str]) -> Pending<Run> {
        let opts = json!({ "clean": steps.clean, "build": steps.build, "exec": steps.exec });
        self.start("batch", json!({ "opts": opts, "answers": answers }))
    }

    /// Runs a batch to its end.
    #[track_caller]
    pub fn batch(&self, steps: Steps<'_>) -> Run {
        self.start_batch(steps, &[]).wait()
    }

    /// Starts a batch run that has only an exec step.
    #[track_caller]
    pub fn start_exec(&self, command: &str) -> Pending<Run> {
        self.start_batch(Steps { exec: command, ..Steps::NONE }, &[])
    }

    /// Runs a batch that has only an exec step.
    #[track_caller]
    pub fn exec(&self, command: &str) -> Run {
        self.start_exec(command).wait()
    }

    /// Runs source text in query mode.
    #[track_caller]
    pub fn query(&self, code: &str) -> Run {
        self.start_query(code, &[]).wait()
    }

    /// Starts a run in query mode whose prompts get these answers.
    #[track_caller]
    pub fn start_query(&self, code: &str, answers: &[&str]) -> Pending<Run> {
        self.start("query", json!({ "code": code, "answers": answers }))
    }

    /// Interrupts the current run.
    #[track_caller]
    pub fn interrupt(&self) {
        self.order("interrupt", json!({}));
    }

    /// Requests the status and returns the start time in it, in seconds of the monotonic clock.
    #[track_caller]
    pub fn started_at(&self) -> f64 {
        let status: Value = self.start("status", json!({})).wait();
        let started_at = status["started_at"].as_f64();
        started_at.unwrap_or_else(|| panic!("no started_at in {status}"))
    }

    /// Requests completions and waits for the reply.
    #[track_caller]
    pub fn complete(&self, code: &str, opts: &Value) -> Value {
        self.start("complete", json!({ "code": code, "opts": opts })).wait()
    }

    /// Sends the text for a prompt.
    #[track_caller]
    pub fn input(&self, text: &str) {
        self.order("input", json!({ "text": text }));
    }

    /// Notifies the runner of an event.
    #[track_caller]
    pub fn event(&self, kind: &str, data: &Value) {
        self.order("event", json!({ "type": kind, "data": data }));
    }

    /// Requests the service definitions.
    #[track_caller]
    pub fn apps(&self) -> Value {
        self.start("apps", json!({})).wait()
    }

    /// Requests the start of a service and waits for the reply.
    #[track_caller]
    pub fn start_service(&self, info: &Value) -> Value {
        self.start("start_service", json!({ "info": info })).wait()
    }

    /// Requests the start of a service without waiting for the reply.
    #[track_caller]
    pub fn start_starting_service(&self, info: &Value) -> Pending<Value> {
        self.start("start_service", json!({ "info": info }))
    }

    /// Requests the start of a model service and waits for the reply.
    #[track_caller]
    pub fn start_model_service(&self, info: &Value) -> Value {
        self.start("start_model_service", json!({ "info": info })).wait()
    }

    /// Requests the stop of a service. There is no reply.
    #[track_caller]
    pub fn shutdown_service(&self, name: &str) {
        self.order("shutdown_service", json!({ "name": name }));
    }

    /// Sends frames that the client itself would never send.
    #[track_caller]
    pub fn raw(&self, frames: &[&[u8]]) {
        let frames: Vec<_> = frames.iter().map(|frame| base64(frame)).collect();
        self.order("raw", json!({ "frames": frames }));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The driver ends with its stdin; by force if it hangs.
        self.requests = None;
        let child = &mut self.child;
        if wait::within(wait::PATIENCE, || child.try_wait().ok().flatten()).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            let text = std::fs::read_to_string(&self.stderr).unwrap_or_default();
            eprintln!("--- agent stderr\n{text}---");
        }
    }
}

fn dispatch(replies: impl BufRead, waiting: &Waiting) {
    for line in replies.lines() {
        let Ok(line) = line else { break };
        let reply: Reply = serde_json::from_str(&line).expect("a reply line of the driver");
        let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id);
        if let Some(sender) = sender {
            let _ = sender.send(reply);
        }
    }
    // Dropping the senders tells waiting callers that no reply will come.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(*group.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = ALPHABET[bits >> (18 - 6 * i) & 63];
            text.push(if i <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
