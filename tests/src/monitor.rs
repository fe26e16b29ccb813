//! Runs `krunner monitor --json` and reads its output, and runs the scenarios of the helper program.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::launch::LaunchMethod;
use crate::setup::binary;
use crate::{proc, schema, wait};

/// A running monitor and its output so far.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    incoming: Receiver<(String, Instant)>,
    lines: Vec<Value>,
    /// When each of `lines` arrived.
    received_at: Vec<Instant>,
    folder: TempDir,
    /// Each line is checked against the JSON schema.
    is_validated: bool,
}

impl Monitor {
    /// Starts the binary under test and waits for its `watching` event.
    #[track_caller]
    pub fn start(launch: &LaunchMethod) -> Self {
        Self::start_program(launch, &binary(), &[])
    }

    /// Starts a copy of the binary with further arguments and waits for its `watching` event.
    #[track_caller]
    pub fn start_program(launch: &LaunchMethod, program: &std::path::Path, args: &[&str]) -> Self {
        let folder = TempDir::with_prefix("krm-").expect("a temporary folder");
        let mut command = launch.command(program);
        command.args(["monitor", "--json"]).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(folder.path().join("stderr")).expect("a capture file"));
        let mut child = command.spawn().expect("the monitor starts");
        let stdout = BufReader::new(child.stdout.take().expect("a piped stdout"));
        let (sender, incoming) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send((line, Instant::now())).is_err() {
                    break;
                }
            }
        });
        // A virtual machine has the binary but not the schema.
        let is_validated = env::var_os("KRUNNER_BIN").is_some();
        let mut monitor = Self { child, incoming, lines: Vec::new(), received_at: Vec::new(), folder, is_validated };
        monitor.until("the monitor to watch", |line| line["event"] == "watching");
        assert_eq!(monitor.lines.len(), 1, "the first line: {:#?}", monitor.lines);
        monitor
    }

    /// The `watching` event, which is its first line.
    pub fn watching(&self) -> &Value {
        &self.lines[0]
    }

    /// Fails unless the monitor uses BPF. The error has its reason.
    pub fn needs_bpf(&self) -> Result<(), String> {
        match self.watching()["tracer"].as_str() {
            Some("bpf") => Ok(()),
            _ => Err(format!("no BPF: {}", self.watching())),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The PID of the monitor itself, which may be a child of `nsenter`.
    pub fn process(&self) -> u32 {
        proc::children(self.pid()).first().copied().unwrap_or(self.pid())
    }

    /// The `oom_kill` events so far.
    pub fn reports(&self) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["event"] == "oom_kill").collect()
    }

    /// All output lines so far.
    pub fn lines(&self) -> &[Value] {
        &self.lines
    }

    /// The arrival time of each of [`Monitor::lines`].
    pub fn received_at(&self) -> &[Instant] {
        &self.received_at
    }

    /// Reads lines until one satisfies `wanted`.
    #[track_caller]
    pub fn until(&mut self, what: &str, wanted: impl FnMut(&Value) -> bool) {
        let found = self.within(wait::PATIENCE, what, wanted);
        assert!(
            found,
            "timed out after {:?} waiting for {what}; the monitor printed {:#?}",
            wait::PATIENCE,
            self.lines
        );
    }

    /// Reads lines until one satisfies `wanted`, for at most `limit`. Returns whether one did.
    #[track_caller]
    pub fn within(&mut self, limit: Duration, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let value = self.take(line);
                    if wanted(&value) {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the monitor exited before {what}; it printed {:#?}", self.lines)
                }
            }
        }
    }

    /// Reads lines until `count` kills were reported.
    #[track_caller]
    pub fn until_reports(&mut self, count: usize) {
        while self.reports().len() < count {
            self.until(&format!("{count} reports"), |line| line["event"] == "oom_kill");
        }
    }

    /// Reads lines until the kill of this process is reported. Returns at once if it already was.
    #[track_caller]
    pub fn until_report_of(&mut self, pid: u32) {
        let of = |line: &Value| line["event"] == "oom_kill" && line["victim"]["pid"] == pid;
        if !self.lines.iter().any(of) {
            self.until(&format!("the report of {pid}"), of);
        }
    }

    /// Sends SIGTERM and reads the remaining output.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        proc::signal(self.process(), Signal::SIGTERM);
        let child = &mut self.child;
        let status = wait::until("the monitor to exit", || child.try_wait().expect("wait for the monitor"));
        while let Ok(line) = self.incoming.recv_timeout(wait::PATIENCE) {
            self.take(line);
        }
        status
    }

    /// Its stderr so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    #[track_caller]
    fn take(&mut self, (line, received_at): (String, Instant)) -> Value {
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        if self.is_validated {
            schema::assert_valid(&value);
        }
        self.lines.push(value.clone());
        self.received_at.push(received_at);
        value
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        proc::signal(self.process(), Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- monitor stdout");
            for line in &self.lines {
                eprintln!("{line}");
            }
            eprintln!("--- monitor stderr\n{}---", self.stderr());
        }
    }
}

/// A running scenario of the helper program.
#[derive(Debug)]
pub struct Scenario {
    child: Child,
    stdout: PathBuf,
    _folder: TempDir,
}

/// What a scenario printed: the role of each process, and how its processes ended.
#[derive(Debug)]
pub struct ScenarioOutput {
    /// The exit status of the scenario's first process.
    pub status: ExitStatus,
    lines: Vec<(String, u32)>,
}

impl Scenario {
    /// Starts a command whose stdout has lines of the form `ROLE PID`.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let folder = TempDir::with_prefix("krv-").expect("a temporary folder");
        let stdout = folder.path().join("stdout");
        command.stdin(Stdio::piped()).stdout(File::create(&stdout).expect("a capture file"));
        let child = command.spawn().expect("the scenario starts");
        Self { child, stdout, _folder: folder }
    }

    /// The PID of its first process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a process announces this role, and returns its PID.
    #[track_caller]
    pub fn until(&self, role: &str) -> u32 {
        wait::until(role, || self.lines().iter().find(|(what, _)| what == role).map(|(_, pid)| *pid))
    }

    /// Unblocks a process that was started with `--wait`.
    #[track_caller]
    pub fn go(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        match stdin.write_all(b"\n") {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
            _ => {}
        }
    }

    /// Closes stdin, so that processes that hold memory release it, and waits for the first process to exit.
    #[track_caller]
    pub fn end(mut self) -> ScenarioOutput {
        drop(self.child.stdin.take());
        let child = &mut self.child;
        let status = wait::until("the scenario to end", || child.try_wait().expect("wait for the scenario"));
        ScenarioOutput { status, lines: self.lines() }
    }

    /// Kills its first process. Others may remain and end with their cgroup.
    #[track_caller]
    pub fn stop(mut self) -> ScenarioOutput {
        let _ = self.child.kill();
        let status = self.child.wait().expect("wait for the scenario");
        ScenarioOutput { status, lines: self.lines() }
    }

    fn lines(&self) -> Vec<(String, u32)> {
        let text = fs::read_to_string(&self.stdout).expect("the scenario's stdout");
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let parse = |line: &str| {
            let (what, pid) = line.split_once(' ')?;
            Some((what.to_owned(), pid.parse().ok()?))
        };
        whole.map(|line| parse(line).unwrap_or_else(|| panic!("unexpected line from a scenario: {line:?}"))).collect()
    }
}

impl ScenarioOutput {
    /// The PID on the only line with this role.
    #[track_caller]
    pub fn pid(&self, role: &str) -> u32 {
        match self.all(role)[..] {
            [pid] => pid,
            ref other => panic!("{role}: {other:?} in {self:?}"),
        }
    }

    /// The PIDs on all lines with this role or event.
    pub fn all(&self, what: &str) -> Vec<u32> {
        self.lines.iter().filter(|(role, _)| role == what).map(|(_, pid)| *pid).collect()
    }
}
