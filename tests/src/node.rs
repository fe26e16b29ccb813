//! A running `krunner node` with a socket of its own, and peers that say whatever a test wants.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setup::binary;
use crate::{free_port, host, http, proc, wait};

/// Where containers have the folder of the node's socket.
pub const RUN_FOLDER: &str = "/run/krunner";

/// Mounts folders over `/var/log` and `/run`, and runs a program.
const IN_A_POD: &str = r#"mount --bind "$1" /var/log && mount --bind "$2" /run && shift 2 && exec "$@""#;

/// What a node gets beside its socket and the address of its metrics.
#[derive(Debug, Default)]
pub struct NodeLaunch {
    environment: Vec<(String, OsString)>,
    arguments: Vec<String>,
    /// What it sees at `/var/log` and `/run`.
    pod: Option<[PathBuf; 2]>,
}

/// A node and the files that it writes. Dropping it kills it.
#[derive(Debug)]
pub struct Node {
    child: Child,
    folder: TempDir,
    port: u16,
    starts: u32,
    launch: NodeLaunch,
}

impl NodeLaunch {
    /// Adds a variable to its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Mounts these folders over `/var/log` and `/run`, in a mount namespace of its own.
    #[must_use]
    pub fn in_pod(mut self, log: &Path, run: &Path) -> Self {
        self.pod = Some([log.to_owned(), run.to_owned()]);
        self
    }

    fn command(&self) -> Command {
        let mut command = match &self.pod {
            None => Command::new(binary()),
            Some(folders) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", IN_A_POD, "sh"]).args(folders).arg(binary());
                command
            }
        };
        command.arg("node").args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Node {
    /// Starts a node and waits until it is ready. Fails where the kernel refuses eBPF.
    pub fn start() -> Result<Self, String> {
        Self::start_with(NodeLaunch::default())
    }

    /// The same with more than its socket and metrics.
    pub fn start_with(launch: NodeLaunch) -> Result<Self, String> {
        host::root()?;
        let folder = TempDir::with_prefix("krn-").map_err(|error| error.to_string())?;
        let port = free_port();
        let child = spawn(folder.path(), port, 0, &launch);
        let mut node = Self { child, folder, port, starts: 0, launch };
        let ready = wait::within(wait::PATIENCE, || {
            node.child.try_wait().ok().flatten().map(|_| false).or_else(|| node.is_ready().then_some(true))
        });
        match ready {
            Some(true) => Ok(node),
            _ => Err(format!("no node: {}", node.stderr())),
        }
    }

    /// Kills it and starts it again, at the same path. Waits until it is ready.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.starts += 1;
        self.child = spawn(self.folder.path(), self.port, self.starts, &self.launch);
        wait::until_true("the node to be ready again", || self.is_ready());
    }

    /// Kills it with SIGKILL, so that its socket is left behind.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM and returns the exit code.
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        proc::signal(self.child.id(), Signal::SIGTERM);
        let child = &mut self.child;
        wait::until("the node to exit", || child.try_wait().expect("wait for the node")).code()
    }

    /// The folder of its socket on the host.
    pub fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Its socket on the host.
    pub fn socket(&self) -> PathBuf {
        self.run_folder().join("node.sock")
    }

    /// The process of the node.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines that it has written since its first start.
    pub fn lines(&self) -> Vec<Value> {
        let text: String = (0..=self.starts).map(|start| self.read(&format!("stdout-{start}"))).collect();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))).collect()
    }

    /// What it has logged since its last start.
    pub fn stderr(&self) -> String {
        self.read(&format!("stderr-{}", self.starts))
    }

    /// Its state as `krunner node status` tells it to this user.
    #[track_caller]
    pub fn status(&self) -> Value {
        let mut command = Command::new(binary());
        command.args(["node", "status", "--json", "--socket"]).arg(self.socket());
        let output = command.output().expect("krunner starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Waits until this many peers receive kills.
    #[track_caller]
    pub fn until_peers(&self, count: usize) {
        wait::until_true(&format!("{count} peers"), || self.status()["peers"].as_array().map(Vec::len) == Some(count));
    }

    /// The port of its metrics.
    pub fn metrics_port(&self) -> u16 {
        self.port
    }

    /// The answer to a request for its metrics with these headers.
    #[track_caller]
    pub fn scrape(&self, headers: &[&str]) -> String {
        http::get(self.port, "/metrics", headers).expect("the node answers")
    }

    fn is_ready(&self) -> bool {
        self.read(&format!("stdout-{}", self.starts)).contains("\"node_started\"")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- node stderr\n{}---", self.stderr());
        }
    }
}

fn spawn(folder: &Path, port: u16, start: u32, launch: &NodeLaunch) -> Child {
    let file = |name: &str| File::create(folder.join(format!("{name}-{start}"))).expect("a capture file");
    let mut command = launch.command();
    command.arg("--socket").arg(folder.join("run/node.sock"));
    command.args(["--metrics", &format!("127.0.0.1:{port}")]);
    command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
    command.spawn().expect("the node starts")
}

/// A peer at the node's socket that the test controls byte by byte. It is on the host, as root.
#[derive(Debug)]
pub struct NodePeer(UnixStream);

impl NodePeer {
    /// Connects without a greeting.
    #[track_caller]
    pub fn connect(node: &Node) -> Self {
        let stream = UnixStream::connect(node.socket()).expect("the node listens");
        stream.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout");
        Self(stream)
    }

    /// Connects and greets.
    #[track_caller]
    pub fn greet(node: &Node) -> Self {
        let mut peer = Self::connect(node);
        peer.say(&json!({"type": "hello", "protocol": 1, "version": "test"}));
        let hello = peer.hear().expect("a greeting");
        assert_eq!((&hello["type"], &hello["protocol"]), (&json!("hello"), &json!(1)), "{hello}");
        peer
    }

    /// Sends a message with its length.
    pub fn say(&mut self, message: &Value) {
        let body = message.to_string().into_bytes();
        let length = u32::try_from(body.len()).expect("a short message").to_le_bytes();
        // Fails if the node has closed the connection, which the next read shows.
        let _ = self.0.write_all(&[&length, &body[..]].concat());
    }

    /// Sends these bytes as they are.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next message; `None` if the node has closed the connection.
    #[track_caller]
    pub fn hear(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return None;
            }
            read => read.expect("the node answers or closes"),
        }
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut body).expect("a whole message");
        Some(serde_json::from_slice(&body).expect("JSON"))
    }

    /// Whether the node closes the connection within this time. Messages until then are skipped.
    #[track_caller]
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.0.set_read_timeout(Some(limit)).expect("a timeout");
        loop {
            match self.0.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}
