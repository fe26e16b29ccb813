//! A session with one fault: what it does, what became different, and how it ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use krunner_tests::zmtp::Peer;
use krunner_tests::{Message, Raw, Runner, Setup, Transcript, free_port, proc, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SCRIPTED: &str = env!("CARGO_BIN_EXE_scripted");

/// Nothing may hang longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client sees of a runner that hangs.
const SILENCE: &str = "silence";

/// The contract's limit for a stop, and a little for a machine that is busy.
const STOP_PATIENCE: Duration = Duration::from_secs(12);

/// A call that fails once in each thread that makes it so often.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) call: &'static str,
    pub(super) error: &'static str,
    pub(super) when: u32,
}

/// How a session with a fault went.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What was not as without the fault.
    pub(super) deviations: Vec<String>,
    /// `None` if a signal ended the runner, or it never ended.
    pub(super) exit_code: Option<i32>,
    left: Vec<u32>,
    pub(super) log: String,
}

/// Lines of every session here.
const USUAL: [&str; 5] = ["cannot start sshd", "cannot start ttyd", "shutting down", "Service probe", "service probe"];

impl Outcome {
    /// What a fault may not lead to.
    pub(super) fn problems(&self, fault: &Fault) -> Vec<String> {
        let mut problems = Vec::new();
        if self.log.contains("panicked at") {
            problems.push("a panic".to_owned());
        }
        if self.exit_code.is_none() {
            problems.push("no end with an exit code".to_owned());
        }
        if !self.left.is_empty() {
            problems.push(format!("left behind: {:?}", self.left));
        }
        if self.deviations.iter().any(|deviation| deviation == SILENCE) {
            problems.push(SILENCE.to_owned());
        }
        let is_different = !self.deviations.is_empty() || self.exit_code != Some(0);
        let mut lines = self.log.lines().filter(|line| line.contains("-kernel: ") || line.contains("krunner: "));
        if is_different && lines.all(|line| USUAL.iter().any(|usual| line.contains(usual))) {
            problems.push("no reason in the log".to_owned());
        }
        let Fault { call, error, when } = fault;
        let what = |problem| {
            let Self { deviations, exit_code, log, .. } = self;
            format!("{call} {error} {when}: {problem}; exit code {exit_code:?}, {deviations:?}\n{log}")
        };
        problems.into_iter().map(what).collect()
    }
}

/// Runs a session of every kind of work with a fault.
pub(super) fn run(fault: &Fault) -> Outcome {
    let Fault { call, error, when } = fault;
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={when}"));
    // As a process of its own beside the runner, so that the runner is our child.
    let strace = ["strace", "-D", "-f", "-b", "execve", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let definition = json!({ "command": [SCRIPTED, "listen", "{ports[0]}", "service-pid"] });
    let setup = Setup::new("c").prefix(&strace).folder("home/work/.logs/task");
    let mut runner = setup.file("etc/backend.ai/service-defs/probe.json", definition.to_string()).start();
    let (mut deviations, mut is_stopping) = (Vec::new(), false);
    // A peer of the harness panics when nothing comes, or cannot connect to a runner that has ended.
    let began = Instant::now();
    if catch_unwind(AssertUnwindSafe(|| work(&mut runner, &mut deviations, &mut is_stopping))).is_err() {
        // One that has ended was not silent, however long a busy machine took to start it.
        let is_silent = began.elapsed() >= PATIENCE && runner.is_running();
        deviations.push(if is_silent { SILENCE } else { "no connection" }.to_owned());
    }
    // A second signal would force the end.
    if !is_stopping && runner.is_running() {
        runner.signal(Signal::SIGTERM);
    }
    let ended = wait::within(STOP_PATIENCE, || (!runner.is_running()).then_some(()));
    let exit_code = ended.and_then(|()| runner.wait_exit().code());
    Outcome { deviations, exit_code, left: left(&runner), log: runner.stderr() }
}

/// Processes that outlive the runner; strace ends after it.
fn left(runner: &Runner) -> Vec<u32> {
    let left = || {
        let mut pids = runner.processes();
        pids.retain(|&pid| proc::comm(pid).is_some_and(|name| name != "strace"));
        pids
    };
    wait::within(Duration::from_secs(1), || left().is_empty().then_some(()));
    left()
}

/// The ports are open, or the runner has ended.
fn is_listening(runner: &mut Runner) -> bool {
    let (replin, replout) = runner.ports();
    let mut is_running = true;
    let listens = wait::within(PATIENCE, || {
        is_running = runner.is_running();
        let pid = runner.pid();
        (!is_running || proc::listens(pid, replin) && proc::listens(pid, replout)).then_some(())
    });
    listens.is_some() && is_running
}

struct Work<'a> {
    raw: Raw,
    deviations: &'a mut Vec<String>,
    is_stopping: &'a mut bool,
}

/// Everything that a session does, as long as there is one.
fn work(runner: &mut Runner, deviations: &mut Vec<String>, is_stopping: &mut bool) {
    if !is_listening(runner) {
        deviations.push("no session".to_owned());
        return;
    }
    let (replin, replout) = runner.ports();
    let raw = Raw { pull: Peer::connect(replout, "PULL"), push: Peer::connect(replin, "PUSH") };
    raw.pull.set_patience(PATIENCE);
    let mut work = Work { raw, deviations, is_stopping };
    if work.all(runner).is_none() {
        work.deviations.push("the connection was closed".to_owned());
    }
}

impl Work<'_> {
    /// `None` when the runner closes the connection.
    fn all(&mut self, runner: &Runner) -> Option<()> {
        self.op("status", "");
        self.until("status")?;
        self.step("exec", "echo one; echo err >&2", 0, "one\n")?;
        let numbers: Vec<String> = (1..=20_000).map(|number: u32| number.to_string()).collect();
        let count = numbers.join("\n") + "\n";
        self.step("exec", "seq 1 20000", 0, &count)?;
        self.step("build", "exit 3", 3, "")?;
        self.step("exec", "echo not run", 127, "")?;
        self.ask(runner)?;
        self.service()?;
        self.op("get-apps", "");
        self.until("apps-result")?;
        self.op("complete", r#"{"code": "a"}"#);
        self.until("completion")?;
        self.step("exec", "kill -9 $$", -9, "")?;
        self.stop(runner)
    }

    fn op(&mut self, op: &str, payload: &str) {
        let message = [op.as_bytes(), payload.as_bytes()];
        let _ = self.raw.push.try_send(&message);
    }

    fn until(&mut self, kind: &str) -> Option<Transcript> {
        self.read(|message| message.kind == kind)
    }

    fn read(&mut self, mut is_last: impl FnMut(&Message) -> bool) -> Option<Transcript> {
        let mut transcript = Transcript::default();
        loop {
            let message = self.recv()?;
            let last = is_last(&message);
            transcript.messages.push(message);
            if last {
                return Some(transcript);
            }
        }
    }

    /// `None` when the runner closes one of the two connections: an agent would connect again.
    fn recv(&mut self) -> Option<Message> {
        let Raw { push, pull } = &self.raw;
        let is_closed = wait::within(PATIENCE, || {
            let is_closed = push.has_ended() || pull.has_ended();
            (is_closed || pull.is_readable()).then_some(is_closed)
        });
        assert!(is_closed.is_some(), "{SILENCE} of {PATIENCE:?}");
        if pull.is_readable() { self.raw.recv() } else { None }
    }

    fn step(&mut self, op: &str, command: &str, code: i64, stdout: &str) -> Option<()> {
        self.op(op, command);
        let run = self.read(Message::ends_step)?;
        self.compare(command, &run, code, stdout);
        Some(())
    }

    fn compare(&mut self, command: &str, run: &Transcript, code: i64, stdout: &str) {
        let codes: Vec<i64> = run.ends().into_iter().map(Message::exit_code).collect();
        if codes != [code] || run.stdout() != stdout {
            self.deviations.push(format!("`{command}`: {codes:?}, {} bytes", run.stdout().len()));
        }
    }

    fn ask(&mut self, runner: &Runner) -> Option<()> {
        let ask = format!("{SCRIPTED} ask {}", runner.root().join("tmp/bai-user-input.sock").display());
        self.op("exec", &ask);
        let run = self.read(|message| message.kind == "waiting-input" || message.ends_step())?;
        if run.ends().is_empty() {
            self.op("input", "text");
            let run = self.read(Message::ends_step)?;
            self.compare("ask", &run, 0, "answer: <text>\n");
        } else {
            self.deviations.push("no request for input".to_owned());
        }
        Some(())
    }

    fn service(&mut self) -> Option<()> {
        let port = free_port();
        let start = json!({ "name": "probe", "port": port, "ports": [port], "protocol": "tcp", "options": {} });
        self.op("start-service", &start.to_string());
        let run = self.until("service-result")?;
        let payload = &run.messages.last()?.payload;
        let answer: Value = serde_json::from_slice(payload).unwrap_or_default();
        if answer["status"] != "started" {
            self.deviations.push(format!("service: {answer}"));
        }
        self.op("shutdown-service", "\"probe\"");
        Some(())
    }

    /// A step that is cut short is answered once.
    fn stop(&mut self, runner: &Runner) -> Option<()> {
        self.op("exec", "echo begun; exec sleep 600");
        let begun = self.read(|message| message.kind == "stdout" || message.ends_step())?;
        runner.signal(Signal::SIGTERM);
        *self.is_stopping = true;
        let mut ends = begun.ends().len();
        while let Some(message) = self.raw.recv() {
            ends += usize::from(message.ends_step());
        }
        if ends != 1 {
            self.deviations.push(format!("{ends} ends of the last step"));
        }
        Some(())
    }
}
