//! A runner under the model: carries out actions and passes every reply to the reference.

use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use krunner_tests::zmtp::{Peer, dial};
use krunner_tests::{Message, Runner, Setup, free_port, proc, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::action::{Action, Kind, Sequence};
use super::reference::{Reference, Service};
use super::script::Script;

const SCRIPTED: &str = env!("CARGO_BIN_EXE_scripted");

/// How many services are defined.
pub(super) const SERVICES: usize = 2;

/// How many agents may be connected at a time.
const MAX_AGENTS: usize = 2;

/// Short enough not to be felt between two connections that are looked at in turn.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

type Checked = Result<(), String>;

/// A runner and the peers of the test on it. One serves many sequences.
pub(super) struct Session {
    runner: Runner,
    ops: Peer,
    /// Those that receive replies, the newest last.
    agents: Vec<Peer>,
    reference: Reference,
    ports: Vec<u16>,
    ask: String,
    apps: [Value; 2],
    next_id: u32,
    /// The connection that the last reply came from.
    last_agent: usize,
}

/// Nothing that is generated keeps the runner busy for so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn connect_agent(runner: &Runner) -> Peer {
    let agent = Peer::connect(runner.ports().1, "PULL");
    agent.set_patience(PATIENCE);
    agent
}

fn service_name(service: usize) -> String {
    format!("service-{service}")
}

impl Session {
    pub(super) fn start(compiler: &Path) -> Self {
        let ports: Vec<u16> = (0..SERVICES).map(|_| free_port()).collect();
        let mut setup = Setup::new("c").runtime(compiler).debug();
        for service in 0..SERVICES {
            let definition = json!({ "command": [SCRIPTED, "listen", "{ports[0]}", format!("pid-{service}")] });
            let path = format!("etc/backend.ai/service-defs/{}.json", service_name(service));
            setup = setup.file(&path, definition.to_string());
        }
        let runner = setup.start();
        let replin = runner.ports().0;
        let ask = format!("{SCRIPTED} ask {}", runner.root().join("tmp/bai-user-input.sock").display());
        let agents = vec![connect_agent(&runner)];
        let ops = Peer::connect(replin, "PUSH");
        let reference = Reference::new(SERVICES);
        let mut session = Self {
            runner,
            ops,
            agents,
            reference,
            ports,
            ask,
            apps: [Value::Null, Value::Null],
            next_id: 0,
            last_agent: 0,
        };
        session.op("status", "");
        session.reference.status_sent();
        session.settle().expect("a runner that starts");
        session.apps = ["", &service_name(0)].map(|name| session.learn_apps(name));
        session
    }

    /// What `get-apps` answers, which stays the same.
    fn learn_apps(&mut self, name: &str) -> Value {
        self.op("get-apps", name);
        let message = self.agents[0].recv().map(Message::new).expect("an answer");
        let answer: Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert!(message.kind == "apps-result" && answer.to_string().contains(&service_name(0)), "{message:?}");
        answer
    }

    /// What is owed, for a failure that is a hang.
    pub(super) fn describe(&self) -> String {
        format!("{:#?}", self.reference)
    }

    /// Carries out a sequence and whatever the session needs to take the next one; `false` if it is over.
    pub(super) fn run(&mut self, sequence: &Sequence) -> Result<bool, String> {
        for action in &sequence.actions {
            self.act(action).map_err(|problem| format!("{action:?}: {problem}"))?;
        }
        if sequence.is_stopped {
            self.stop().map_err(|problem| format!("stop: {problem}"))?;
            return Ok(false);
        }
        self.settle()?;
        self.reset()?;
        Ok(true)
    }

    fn act(&mut self, action: &Action) -> Checked {
        match action {
            Action::Step(kind, script) => self.step(*kind, script.clone()),
            Action::Interrupt => {
                self.op("interrupt", "");
                self.reference.interrupt_sent();
            }
            Action::InterruptHeld => return self.interrupt_held(),
            Action::KillHeld(signal) => {
                if let Some(pid) = self.reach_held()? {
                    self.kill_held(pid, Signal::try_from(*signal).expect("a signal"));
                }
            }
            Action::Input => self.type_text(),
            Action::Complete { is_json } => {
                self.op("complete", if *is_json { r#"{"code": "a", "row": 0}"# } else { "{" });
                self.reference.completion_sent();
            }
            Action::Status { now } => {
                self.op("status", if *now { "now" } else { "" });
                self.reference.status_sent();
            }
            Action::GetApps { one } => {
                self.op("get-apps", &if *one { service_name(0) } else { String::new() });
                self.reference.list_sent(self.apps[usize::from(*one)].clone());
            }
            Action::StartService(service) => self.start_service(*service),
            Action::StartUnknownService => {
                let request = json!({ "name": "unknown", "port": 1, "ports": [1], "protocol": "tcp", "options": {} });
                self.op("start-service", &request.to_string());
                self.reference.unknown_start_sent();
            }
            Action::StopService(service) => self.stop_service(*service),
            Action::KillService(service) => return self.kill_service(*service),
            Action::Event => self.op("event", r#"{ "type": "model", "data": [1] }"#),
            Action::Malformed(malformed) => self.ops.send(malformed.frames()),
            Action::Garbage(bytes) => {
                let mut stranger = dial(self.runner.ports().0);
                // The runner may close the connection before it has all of them.
                let _ = stranger.write_all(bytes);
            }
            Action::NewOpConnection => return self.new_op_connection(),
            Action::Join => {
                if self.agents.len() < MAX_AGENTS {
                    self.join();
                }
            }
            Action::Leave { newest } => return self.leave(*newest),
            Action::Drain => return self.settle(),
        }
        Ok(())
    }

    fn op(&mut self, op: &str, payload: &str) {
        self.ops.send(&[op.as_bytes(), payload.as_bytes()]);
    }

    fn step(&mut self, kind: Kind, script: Script) {
        self.next_id += 1;
        let script = if kind == Kind::Code { Script::Snippet { code: 3 } } else { script };
        let line = script.line(self.next_id, &self.ask);
        self.op(kind.op(), &line);
        self.reference.step_sent(self.next_id, kind, script);
    }

    fn type_text(&mut self) {
        self.next_id += 1;
        let text = format!("text {}", self.next_id);
        self.op("input", &text);
        self.reference.typed(text);
    }

    fn join(&mut self) {
        self.agents.push(connect_agent(&self.runner));
    }

    /// An agent that leaves in order loses nothing: it receives what was sent until the runner closes, too.
    fn leave(&mut self, newest: bool) -> Checked {
        if self.agents.is_empty() {
            return Ok(());
        }
        let position = if newest { self.agents.len() - 1 } else { 0 };
        if position > 0 {
            self.reach_newest()?;
        }
        self.agents[position].leave();
        while let Some(frames) = self.agents[position].recv() {
            self.reference.receive(&Message::new(frames))?;
        }
        drop(self.agents.remove(position));
        Ok(())
    }

    /// The order of two connections is not known, so the first is read before the second is used.
    fn new_op_connection(&mut self) -> Checked {
        self.sync()?;
        self.ops = Peer::connect(self.runner.ports().0, "PUSH");
        Ok(())
    }

    /// Waits until the runner took all ops so far.
    fn sync(&mut self) -> Checked {
        self.op("status", "now");
        self.reference.status_sent();
        while self.reference.has_statuses() {
            self.advance()?;
        }
        Ok(())
    }

    fn start_service(&mut self, service: usize) {
        let port = self.ports[service];
        let name = service_name(service);
        let request = json!({ "name": name, "port": port, "ports": [port], "protocol": "tcp", "options": {} });
        self.op("start-service", &request.to_string());
        self.reference.start_sent(service);
    }

    fn stop_service(&mut self, service: usize) {
        self.op("shutdown-service", &format!("\"{}\"", service_name(service)));
        self.reference.service_stopped(service);
    }

    fn kill_service(&mut self, service: usize) -> Checked {
        while self.reference.has_starts() {
            self.advance()?;
        }
        if self.reference.services[service] == Service::Running {
            let pid = self.runner.wait_for(&format!("pid-{service}")).trim_end().parse().expect("a PID");
            proc::signal(pid, Signal::SIGKILL);
            self.reference.services[service] = Service::Killed;
            // The runner may answer `running` as long as it has not seen the end.
            let is_reaped = || (proc::parent(pid) != Some(self.runner.pid())).then_some(());
            wait::within(PATIENCE, is_reaped).ok_or("the killed service is not reaped")?;
        }
        Ok(())
    }

    fn interrupt_held(&mut self) -> Checked {
        let Some(pid) = self.reach_held()? else { return Ok(()) };
        let first = self.reference.steps.front().expect("a held step");
        if first.is_signalled() {
            // It may be over already, and the interrupt may hit the next.
            self.op("interrupt", "");
            self.reference.interrupt_sent();
            return Ok(());
        }
        if matches!(first.script, Script::Hold { trap: false }) {
            // Its shell forgets a signal that it gets between the line and `exec`.
            let is_sleep = || (proc::comm(pid).as_deref() == Some("sleep")).then_some(());
            wait::within(PATIENCE, is_sleep).ok_or("the shell does not become sleep")?;
        }
        self.op("interrupt", "");
        self.reference.first_interrupted();
        Ok(())
    }

    /// Reads on until the first step is held and says so; `None` if none will be.
    fn reach_held(&mut self) -> Result<Option<u32>, String> {
        while self.reference.steps.iter().any(|step| matches!(step.script, Script::Hold { .. })) {
            if let Some(pid) = self.reference.held() {
                return Ok(Some(pid));
            }
            self.advance()?;
        }
        Ok(None)
    }

    fn kill_held(&mut self, pid: u32, signal: Signal) {
        // An interrupt that the runner has not read yet hits the next step.
        if self.reference.steps.front().is_some_and(|step| step.is_interrupted) {
            self.reference.interrupt_sent();
        }
        self.reference.first_signalled(signal as i32);
        proc::signal(pid, signal);
    }

    /// One thing that moves the session on: a text for a program that waits for one, or the next reply.
    fn advance(&mut self) -> Checked {
        if self.reference.needs_text() {
            self.type_text();
        }
        let frames = self.next_frames()?;
        self.reference.receive(&Message::new(frames))
    }

    fn next_frames(&mut self) -> Result<Vec<Vec<u8>>, String> {
        if self.agents.is_empty() {
            self.join();
        }
        let closed = || "the runner closed the connection".to_owned();
        if let [only] = &mut self.agents[..] {
            return only.recv().ok_or_else(closed);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // Looked at first: what the older connection has by then precedes it.
            let is_newer_readable = self.agents[1].is_readable();
            let readable = if self.agents[0].is_readable() { 0 } else { usize::from(is_newer_readable) };
            if readable == 0 && !self.agents[0].is_readable() {
                thread::sleep(LOOK_AGAIN);
                continue;
            }
            self.last_agent = readable;
            return self.agents[readable].recv().ok_or_else(closed);
        }
        Err("no reply".to_owned())
    }

    /// Waits until the newest connection is the one that gets replies: whatever the older one gets later follows them.
    fn reach_newest(&mut self) -> Checked {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.sync()?;
            if self.last_agent > 0 {
                return Ok(());
            }
        }
        Err("the newest connection gets no replies".to_owned())
    }

    /// Answers and ends everything: texts for what asks, signals for what is held, and all replies.
    fn settle(&mut self) -> Checked {
        while !self.reference.is_settled() {
            if let Some(pid) = self.reference.held() {
                self.kill_held(pid, Signal::SIGKILL);
                let steps = self.reference.steps.len();
                while self.reference.steps.len() == steps {
                    self.advance()?;
                }
                continue;
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Leaves the session as a new one: no text typed ahead, no failed build, no service, one agent.
    fn reset(&mut self) -> Checked {
        while self.reference.has_typed() || self.reference.skips_next() {
            self.step(Kind::Exec, Script::Ask);
            self.settle()?;
        }
        for service in 0..SERVICES {
            if self.reference.services[service] != Service::Stopped {
                self.stop_service(service);
            }
        }
        while self.agents.len() > 1 {
            self.leave(true)?;
        }
        // Whatever was too much has arrived before this.
        self.sync()
    }

    /// SIGTERM: every step that the runner took is answered, and nothing is left.
    fn stop(&mut self) -> Checked {
        while self.agents.len() > 1 {
            self.leave(true)?;
        }
        self.sync()?;
        self.reference.stop_sent();
        self.runner.signal(Signal::SIGTERM);
        while let Some(frames) = self.agents[0].recv() {
            self.reference.receive(&Message::new(frames))?;
        }
        if !self.reference.steps.is_empty() {
            return Err(format!("never answered: {:?}", self.reference.steps));
        }
        let status = self.runner.wait_exit();
        let left = self.runner.processes();
        if !status.success() || !left.is_empty() {
            return Err(format!("{status}, left behind: {left:?}"));
        }
        Ok(())
    }
}
