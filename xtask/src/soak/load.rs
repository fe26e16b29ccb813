//! The clients that send: steps, `status`, and services with everything else.
//!
//! ```text
//! steps ──────┐                      ┌──▶ steps      each client checks what it is owed
//! status ─────┼──▶ runner ──▶ reader ┤
//! services ───┘                      └──▶ services
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use krunner_tests::zmtp::{Peer, dial};
use krunner_tests::{Message, Runner, free_port};
use serde_json::{Value, json};

use super::replies::{ReplyReader, Shared};

/// How long a reply may take; a Jupyter kernel may have to start before its first.
const PATIENCE: Duration = Duration::from_mins(1);

const STATUS_INTERVAL: Duration = Duration::from_millis(50);
const SERVICE_INTERVAL: Duration = Duration::from_millis(300);

/// An interrupt that a shell gets before it becomes another program is forgotten, so it is sent again.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);

/// OOM kills and deaths of kernels take longer than other steps.
const RARELY: u64 = 40;

/// The commands of steps that depend on the machine.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// Asks for input and prints `answer: <TEXT>`.
    pub(super) ask: String,
    /// Is OOM-killed in the limited cgroup.
    pub(super) kill: Option<String>,
    /// Whether `code` runs in a Jupyter kernel.
    pub(super) has_kernel: bool,
}

/// The running clients.
pub(super) struct Load {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    steps: JoinHandle<()>,
    services: JoinHandle<()>,
    statuses: JoinHandle<()>,
    reader: JoinHandle<()>,
}

/// What one client does until it is told to stop.
type ClientWork = Box<dyn FnOnce(&Shared, &AtomicBool) + Send>;

impl Load {
    pub(super) fn start(runner: &Runner, programs: &Programs) -> Self {
        let (replin, replout) = runner.ports();
        let (shared, stop) = (Arc::new(Shared::default()), Arc::new(AtomicBool::new(false)));
        let (reader, channels) = ReplyReader::new(replout);
        let spawn = |name: &'static str, work: ClientWork| {
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            thread::spawn(move || {
                // The harness panics with the reason.
                if catch_unwind(AssertUnwindSafe(|| work(&shared, &stop))).is_err() {
                    shared.problem(format!("the client for {name} gave up"));
                }
            })
        };
        let reader = spawn("replies", Box::new(move |shared, _| reader.run(shared)));
        let (programs, steps, services) = (programs.clone(), channels.steps, channels.services);
        let steps =
            spawn("steps", Box::new(move |shared, stop| StepClient::new(replin, steps, programs).run(shared, stop)));
        let services =
            spawn("services", Box::new(move |shared, stop| ServiceClient::new(replin, services).run(shared, stop)));
        let statuses = spawn("status", Box::new(move |shared, _| ask_for_status(replin, shared)));
        Self { shared, stop, steps, services, statuses, reader }
    }

    pub(super) fn take_latencies(&self) -> Vec<Duration> {
        self.shared.take_latencies()
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.shared.problems().is_empty()
    }

    /// Ends the clients after their last replies. Returns the number of replies by kind, and what was wrong.
    pub(super) fn stop(self) -> (Value, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        // Each ends with its problem noted.
        let _ = (self.steps.join(), self.services.join());
        self.shared.clients_done();
        let _ = (self.statuses.join(), self.reader.join());
        let mut problems = self.shared.problems();
        let owed = self.shared.statuses_owed();
        if owed > 0 {
            problems.push(format!("{owed} `status` replies are missing"));
        }
        (json!(self.shared.counts()), problems)
    }
}

/// Asks until all other clients have ended, and once more.
fn ask_for_status(port: u16, shared: &Shared) {
    let mut ops = Peer::connect(port, "PUSH");
    let mut is_last = false;
    while !is_last {
        is_last = shared.status_sent();
        ops.send(&[b"status", b"now"]);
        thread::sleep(STATUS_INTERVAL);
    }
}

/// A message within [`PATIENCE`].
fn next(replies: &Receiver<Message>, what: &str) -> Result<Message, String> {
    replies.recv_timeout(PATIENCE).map_err(|_| format!("no reply: {what}"))
}

/// A step that is over.
struct Ended {
    kind: String,
    code: i64,
    stdout: String,
}

struct StepClient {
    ops: Peer,
    replies: Receiver<Message>,
    programs: Programs,
}

impl StepClient {
    fn new(port: u16, replies: Receiver<Message>, programs: Programs) -> Self {
        Self { ops: Peer::connect(port, "PUSH"), replies, programs }
    }

    fn run(mut self, shared: &Shared, stop: &AtomicBool) {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            if let Err(problem) = self.round(round) {
                return shared.problem(problem);
            }
        }
    }

    /// One of each kind of step.
    fn round(&mut self, round: u64) -> Result<(), String> {
        self.expect(&format!("echo soak-{round}"), 0, &format!("soak-{round}\n"))?;
        let numbers: Vec<String> = (1..=3000).map(|number: u32| number.to_string()).collect();
        let count = numbers.join("\n") + "\n";
        self.expect("seq 1 3000", 0, &count)?;
        self.expect("exit 7", 7, "")?;
        self.expect("kill -9 $$", -9, "")?;
        self.expect("(sleep 0.05 > /dev/null 2>&1 &); echo left", 0, "left\n")?;
        self.failed_build()?;
        self.interrupted()?;
        self.asked(round)?;
        if self.programs.has_kernel {
            self.code(&format!("print({round} * 2)"), 0, &format!("{}\n", round * 2))?;
        }
        if round.is_multiple_of(RARELY) {
            self.killed(round)?;
        }
        Ok(())
    }

    fn send(&mut self, op: &str, payload: &str) {
        self.ops.send(&[op.as_bytes(), payload.as_bytes()]);
    }

    /// Reads up to the end of a step; `on_reply` sees the others and what was written so far.
    fn ended(&mut self, what: &str, mut on_reply: impl FnMut(&mut Self, &Message, &str)) -> Result<Ended, String> {
        let mut stdout = String::new();
        loop {
            let message = next(&self.replies, what)?;
            if message.ends_step() {
                return Ok(Ended { code: message.exit_code(), kind: message.kind, stdout });
            }
            if message.kind == "stdout" {
                stdout.push_str(&String::from_utf8_lossy(&message.payload));
            }
            on_reply(self, &message, &stdout);
        }
    }

    fn check(ended: &Ended, command: &str, code: i64, stdout: &str) -> Result<(), String> {
        if (ended.code, ended.stdout.as_str()) == (code, stdout) {
            return Ok(());
        }
        let shown: String = ended.stdout.chars().take(200).collect();
        Err(format!("`{command}`: {} {}, stdout {shown:?}", ended.kind, ended.code))
    }

    fn expect(&mut self, command: &str, code: i64, stdout: &str) -> Result<(), String> {
        self.send("exec", command);
        let ended = self.ended(command, |_, _, _| ())?;
        Self::check(&ended, command, code, stdout)
    }

    fn code(&mut self, code: &str, exit_code: i64, stdout: &str) -> Result<(), String> {
        self.send("code", code);
        let ended = self.ended(code, |_, _, _| ())?;
        Self::check(&ended, code, exit_code, stdout)
    }

    fn failed_build(&mut self) -> Result<(), String> {
        self.send("clean", "true");
        self.send("build", "exit 3");
        self.send("exec", "echo not run");
        for (kind, code) in [("clean-finished", 0), ("build-finished", 3), ("finished", 127)] {
            let ended = self.ended(kind, |_, _, _| ())?;
            if ended.kind != kind {
                return Err(format!("{} instead of {kind}", ended.kind));
            }
            Self::check(&ended, kind, code, "")?;
        }
        Ok(())
    }

    fn interrupted(&mut self) -> Result<(), String> {
        let command = "echo held; exec sleep 600";
        self.send("exec", command);
        let deadline = Instant::now() + PATIENCE;
        let mut is_held = false;
        while Instant::now() < deadline {
            if is_held {
                self.send("interrupt", "");
            }
            match self.replies.recv_timeout(if is_held { INTERRUPT_INTERVAL } else { PATIENCE }) {
                Ok(message) if message.ends_step() && message.exit_code() == -2 => return Ok(()),
                Ok(message) if message.ends_step() => {
                    return Err(format!("`{command}` ended with {}", message.exit_code()));
                }
                Ok(message) => is_held = is_held || message.kind == "stdout",
                Err(_) => {}
            }
        }
        Err(format!("`{command}` is not interrupted"))
    }

    fn asked(&mut self, round: u64) -> Result<(), String> {
        let ask = self.programs.ask.clone();
        self.send("exec", &ask);
        let ended = self.ended(&ask, |client, message, _| {
            if message.kind == "waiting-input" {
                client.send("input", &round.to_string());
            }
        })?;
        Self::check(&ended, &ask, 0, &format!("answer: <{round}>\n"))
    }

    /// An OOM kill, and the death of the kernel, which is followed by another.
    fn killed(&mut self, round: u64) -> Result<(), String> {
        if let Some(kill) = self.programs.kill.clone() {
            self.send("exec", &format!("{kill} > /dev/null; echo code $?"));
            let ended = self.ended("an OOM kill", |_, _, _| ())?;
            Self::check(&ended, "an OOM kill", 0, "code 137\n")?;
        }
        if self.programs.has_kernel {
            self.send("code", "import os; os.kill(os.getpid(), 9)");
            let ended = self.ended("a kernel that dies", |_, _, _| ())?;
            if ended.code == 0 {
                return Err(format!("a kernel that died in round {round}: exit code 0"));
            }
        }
        Ok(())
    }
}

struct ServiceClient {
    ops: Peer,
    op_port: u16,
    replies: Receiver<Message>,
    port: u16,
}

impl ServiceClient {
    fn new(op_port: u16, replies: Receiver<Message>) -> Self {
        Self { ops: Peer::connect(op_port, "PUSH"), op_port, replies, port: free_port() }
    }

    fn run(mut self, shared: &Shared, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if let Err(problem) = self.round() {
                return shared.problem(problem);
            }
            thread::sleep(SERVICE_INTERVAL);
        }
    }

    /// A service from start to stop, a list, a completion, what is invalid, and another connection.
    fn round(&mut self) -> Result<(), String> {
        let port = self.port;
        let start =
            json!({ "name": "soak", "port": port, "ports": [port], "protocol": "tcp", "options": {} }).to_string();
        for status in ["started", "running"] {
            let answer = self.answer("start-service", &start, "service-result")?;
            if answer["status"] != status {
                return Err(format!("start-service: {answer} instead of {status}"));
            }
        }
        self.answer("get-apps", "", "apps-result")?;
        self.answer("complete", r#"{"code": "pri", "row": 0, "col": 3}"#, "completion")?;
        self.ops.send(&[b"shutdown-service", b"\"soak\""]);
        self.ops.send(&[b"reboot", b""]);
        self.ops.send(&[b"status"]);
        // A stranger's bytes may be refused before all are sent.
        let _ = std::io::Write::write_all(&mut dial(self.op_port), &[0xff; 80]);
        // Another connection takes over; the list is answered when the first has been read.
        self.answer("get-apps", "soak", "apps-result")?;
        self.ops = Peer::connect(self.op_port, "PUSH");
        Ok(())
    }

    fn answer(&mut self, op: &str, payload: &str, kind: &str) -> Result<Value, String> {
        self.ops.send(&[op.as_bytes(), payload.as_bytes()]);
        let message = next(&self.replies, op)?;
        if message.kind != kind {
            return Err(format!("{} instead of {kind}", message.kind));
        }
        serde_json::from_slice(&message.payload).map_err(|error| format!("{kind}: {error}"))
    }
}
