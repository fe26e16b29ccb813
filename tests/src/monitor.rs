//! `krunner monitor --json`: started, listened to, ended.

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

use crate::setup::binary;
use crate::way::Way;
use crate::{proc, wait};

/// A running monitor and what it has said so far.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    lines: Receiver<(String, Instant)>,
    said: Vec<Value>,
    heard: Vec<Instant>,
    folder: TempDir,
}

impl Monitor {
    /// Starts one and waits until it watches.
    #[track_caller]
    pub fn start(way: &Way) -> Self {
        Self::start_program(way, &binary(), &[])
    }

    /// Starts that copy of the binary, with further arguments, and waits until it watches.
    #[track_caller]
    pub fn start_program(way: &Way, program: &std::path::Path, args: &[&str]) -> Self {
        let folder = TempDir::with_prefix("krm-").expect("a temporary folder");
        let mut command = way.command(program);
        command.args(["monitor", "--json"]).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(folder.path().join("stderr")).expect("a capture file"));
        let mut child = command.spawn().expect("the monitor starts");
        let stdout = BufReader::new(child.stdout.take().expect("a piped stdout"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send((line, Instant::now())).is_err() {
                    break;
                }
            }
        });
        let mut monitor = Self { child, lines, said: Vec::new(), heard: Vec::new(), folder };
        monitor.until("the monitor to watch", |line| line["event"] == "watching");
        assert_eq!(monitor.said.len(), 1, "the first line: {:#?}", monitor.said);
        monitor
    }

    /// Its first line.
    pub fn watching(&self) -> &Value {
        &self.said[0]
    }

    /// Fails, with its reason, unless it uses BPF.
    pub fn needs_bpf(&self) -> Result<(), String> {
        match self.watching()["tracer"].as_str() {
            Some("bpf") => Ok(()),
            _ => Err(format!("no BPF: {}", self.watching())),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pid of the monitor itself: `nsenter` stays, and has it as a child.
    pub fn process(&self) -> u32 {
        proc::children(self.pid()).first().copied().unwrap_or(self.pid())
    }

    /// What it has told of kills so far.
    pub fn reports(&self) -> Vec<&Value> {
        self.said.iter().filter(|line| line["event"] == "oom_kill").collect()
    }

    /// All it has said so far.
    pub fn said(&self) -> &[Value] {
        &self.said
    }

    /// When each of what it has said was heard.
    pub fn heard(&self) -> &[Instant] {
        &self.heard
    }

    /// Listens until a line is as wanted.
    #[track_caller]
    pub fn until(&mut self, what: &str, wanted: impl FnMut(&Value) -> bool) {
        let is_heard = self.within(wait::PATIENCE, what, wanted);
        assert!(is_heard, "waited {:?} in vain for {what}; it said {:#?}", wait::PATIENCE, self.said);
    }

    /// Listens until a line is as wanted, or for so long: whether it was.
    #[track_caller]
    pub fn within(&mut self, limit: Duration, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let value = self.take(line);
                    if wanted(&value) {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the monitor ended before {what}; it said {:#?}", self.said)
                }
            }
        }
    }

    /// Listens until so many kills are told.
    #[track_caller]
    pub fn until_reports(&mut self, count: usize) {
        while self.reports().len() < count {
            self.until(&format!("{count} reports"), |line| line["event"] == "oom_kill");
        }
    }

    /// Listens until the kill of that process is told, which may have been already.
    #[track_caller]
    pub fn until_report_of(&mut self, pid: u32) {
        let of = |line: &Value| line["event"] == "oom_kill" && line["victim"]["pid"] == pid;
        if !self.said.iter().any(of) {
            self.until(&format!("the report of {pid}"), of);
        }
    }

    /// Ends it as a user would, and listens to its last words.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        proc::signal(self.process(), Signal::SIGTERM);
        let child = &mut self.child;
        let status = wait::until("the monitor to end", || child.try_wait().expect("wait for the monitor"));
        while let Ok(line) = self.lines.recv_timeout(wait::PATIENCE) {
            self.take(line);
        }
        status
    }

    /// What it wrote to stderr.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    #[track_caller]
    fn take(&mut self, (line, heard): (String, Instant)) -> Value {
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        self.said.push(value.clone());
        self.heard.push(heard);
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
            for line in &self.said {
                eprintln!("{line}");
            }
            eprintln!("--- monitor stderr\n{}---", self.stderr());
        }
    }
}

/// A scene of the helper program under way.
#[derive(Debug)]
pub struct Scene {
    child: Child,
    stdout: PathBuf,
    _folder: TempDir,
}

/// What a scene has told: who is who, and how its processes have ended.
#[derive(Debug)]
pub struct Told {
    /// How the scene's first process has ended.
    pub status: ExitStatus,
    lines: Vec<(String, u32)>,
}

impl Scene {
    /// Starts a command; one that is to be told apart from others by its stdout.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let folder = TempDir::with_prefix("krv-").expect("a temporary folder");
        let stdout = folder.path().join("stdout");
        command.stdin(Stdio::piped()).stdout(File::create(&stdout).expect("a capture file"));
        let child = command.spawn().expect("the scene starts");
        Self { child, stdout, _folder: folder }
    }

    /// The pid of its first process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until somebody has told this of itself, and returns its pid.
    #[track_caller]
    pub fn until(&self, role: &str) -> u32 {
        wait::until(role, || self.lines().iter().find(|(what, _)| what == role).map(|(_, pid)| *pid))
    }

    /// Lets one go on that waits for it.
    #[track_caller]
    pub fn go(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        match stdin.write_all(b"\n") {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
            _ => {}
        }
    }

    /// Waits for its end. What holds memory lets go.
    #[track_caller]
    pub fn end(mut self) -> Told {
        drop(self.child.stdin.take());
        let child = &mut self.child;
        let status = wait::until("the scene's end", || child.try_wait().expect("wait for the scene"));
        Told { status, lines: self.lines() }
    }

    fn lines(&self) -> Vec<(String, u32)> {
        let text = fs::read_to_string(&self.stdout).expect("the scene's stdout");
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let parse = |line: &str| {
            let (what, pid) = line.split_once(' ')?;
            Some((what.to_owned(), pid.parse().ok()?))
        };
        whole.map(|line| parse(line).unwrap_or_else(|| panic!("a scene said {line:?}"))).collect()
    }
}

impl Told {
    /// The only process of that role.
    #[track_caller]
    pub fn pid(&self, role: &str) -> u32 {
        match self.all(role)[..] {
            [pid] => pid,
            ref other => panic!("{role}: {other:?} in {self:?}"),
        }
    }

    /// All of which this was told.
    pub fn all(&self, what: &str) -> Vec<u32> {
        self.lines.iter().filter(|(told, _)| told == what).map(|(_, pid)| *pid).collect()
    }
}
