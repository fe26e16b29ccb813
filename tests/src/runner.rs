//! A runner process: its folder, its captured output, and its end.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{proc, wait};

/// How much of a captured stream a failed test prints.
const SHOWN_BYTES: usize = 8 * 1024;

/// A running session. Dropping it ends the runner and whatever is left of its session.
#[derive(Debug)]
pub struct Runner {
    child: Child,
    /// How to start it again; not known of one in a container.
    command: Option<Command>,
    folder: TempDir,
    ports: (u16, u16),
    terminal_ports: (u16, u16),
    marker: String,
}

impl Runner {
    pub(crate) fn new(
        child: Child,
        folder: TempDir,
        ports: (u16, u16),
        terminal_ports: (u16, u16),
        marker: String,
    ) -> Self {
        Self { child, command: None, folder, ports, terminal_ports, marker }
    }

    pub(crate) fn spawn(
        mut command: Command,
        folder: TempDir,
        ports: (u16, u16),
        terminal_ports: (u16, u16),
        marker: String,
    ) -> Self {
        let mut runner = Self::new(spawn(&mut command), folder, ports, terminal_ports, marker);
        runner.command = Some(command);
        runner
    }

    /// Stops the session and starts it again in the same folder, as a container is.
    #[track_caller]
    pub fn restart(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.wait_exit().success(), "{}", self.stderr());
        self.start_again();
    }

    /// Starts it again in the same folder, after it has ended.
    pub fn start_again(&mut self) {
        self.child = spawn(self.command.as_mut().expect("a runner that the harness itself has started"));
    }

    /// The runner's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the OOM tracer is attached or has been given up, and forgets the memory that this took: what
    /// the runner has and needs after that is its own.
    #[track_caller]
    pub fn settle(&self) {
        self.until_it_watches(self.pid());
        proc::forget_peak_rss(self.pid());
    }

    /// Waits until the session has chosen its tracer. `pid` is the runner's, which may be a child of the process that was started.
    #[track_caller]
    pub fn until_it_watches(&self, pid: u32) {
        wait::until_true("the session to watch for kills", || {
            // A thread that has just begun has no name yet.
            let is_loading = proc::threads(pid).iter().any(|thread| thread == "oom-loader");
            !is_loading && (proc::has_bpf(pid) || self.stderr().contains("OOM kills are inferred"))
        });
    }

    /// The ports of the in and the out socket.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// The ports of the terminal: typed, shown.
    pub fn terminal_ports(&self) -> (u16, u16) {
        self.terminal_ports
    }

    /// The folder that stands for `/`.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The folder that stands for `/home/work`.
    pub fn home(&self) -> PathBuf {
        self.root().join("home/work")
    }

    /// A file of the home folder as text; `None` as long as it is not there.
    pub fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.home().join(name)).ok()
    }

    /// Puts a file into the home folder, in one step as far as a program that looks for it can tell.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let draft = self.folder.path().join("draft");
        fs::write(&draft, content).expect("a file in the home folder");
        fs::rename(&draft, self.home().join(name)).expect("a file in the home folder");
    }

    /// Waits for a file in the home folder, and for the newline that ends its text.
    #[track_caller]
    pub fn wait_for(&self, name: &str) -> String {
        wait::until(name, || self.read(name).filter(|text| text.ends_with('\n')))
    }

    /// What the runner wrote to its own stdout.
    pub fn stdout(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("stdout")).expect("the captured stdout")
    }

    /// What the runner wrote to its own stderr, log lines included.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(self.folder.path().join("stderr")).expect("the captured stderr");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a log line that contains all these parts.
    #[track_caller]
    pub fn wait_for_log(&self, parts: &[&str]) -> String {
        wait::until(&format!("a log line with {parts:?}"), || {
            let text = self.stderr();
            let line = text.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned)
        })
    }

    /// Connects to the user input socket and reads all that the runner says.
    #[track_caller]
    pub fn ask_for_input(&self) -> String {
        let path = self.root().join("tmp/bai-user-input.sock");
        let mut stream = wait::until("the user input socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(wait::PATIENCE)).expect("a read timeout");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the runner's answer");
        text
    }

    /// Sends a signal to the runner itself.
    pub fn signal(&self, signal: Signal) {
        proc::signal(self.pid(), signal);
    }

    /// Waits for the runner to end.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait::until("the runner to end", || self.child.try_wait().expect("wait for the runner"))
    }

    /// Whether the runner still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for the runner").is_none()
    }

    /// Live processes of the session other than the runner.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = proc::with_environment(&self.marker);
        pids.retain(|&pid| pid != self.pid());
        pids
    }

    /// Waits until so many processes of the session have become that program. Before its exec a shell's child may lose a
    /// signal: dash catches SIGINT and forgets it when it is about to exec.
    #[track_caller]
    pub fn wait_for_program(&self, comm: &str, count: usize) -> Vec<u32> {
        wait::until(&format!("{count} processes {comm:?}"), || {
            let mut pids = self.processes();
            pids.retain(|&pid| proc::comm(pid).as_deref() == Some(comm));
            (pids.len() == count).then_some(pids)
        })
    }

    /// Stops the runner with SIGTERM, so that it can shut down cleanly, and kills it if it does not exit.
    fn end(&mut self) {
        const GRACE: Duration = Duration::from_secs(10);
        if self.is_running() {
            self.signal(Signal::SIGTERM);
            let child = &mut self.child;
            if wait::within(GRACE, || child.try_wait().ok().flatten()).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        // A leftover may be forking while we look, so look until there is none.
        wait::within(GRACE, || {
            let left = self.processes();
            for &pid in &left {
                proc::signal(pid, Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if thread::panicking() {
            // A session that failed is ended at once, and tells what it wrote, and how it ended if it did.
            if let Ok(Some(status)) = self.child.try_wait() {
                eprintln!("--- the runner had ended: {status}");
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
            eprintln!("--- runner stdout\n{}", tail(&self.stdout()));
            eprintln!("--- runner stderr\n{}---", tail(self.stderr().as_bytes()));
        }
        self.end();
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", command.get_program().display()))
}

fn tail(bytes: &[u8]) -> String {
    let skipped = bytes.len().saturating_sub(SHOWN_BYTES);
    let text = String::from_utf8_lossy(&bytes[skipped..]);
    if skipped > 0 { format!("[{skipped} bytes left out] {text}") } else { text.into_owned() }
}
