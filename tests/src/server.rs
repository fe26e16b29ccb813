//! A server for the runner to talk to: a Python program that says where it is and then what it sees.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::Value;

use crate::wait;

/// A server program, which ends with its stdin.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    /// Its first line: where it is, and what a client has to know.
    pub greeting: Value,
}

impl Server {
    /// Starts a program of `tests/programs` and waits for its first line.
    #[track_caller]
    pub fn start(python: &Path, program: &str, arguments: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(program);
        let mut child = Command::new(python)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let stdin = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("a piped stdout"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        let greeting = lines.recv_timeout(wait::PATIENCE).expect("the server's first line");
        Self { child, stdin, lines, greeting }
    }

    /// The process of the server.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A text of the greeting.
    #[track_caller]
    pub fn told(&self, name: &str) -> &str {
        self.greeting[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.greeting))
    }

    /// The next line that it says.
    #[track_caller]
    pub fn next(&self) -> Value {
        self.lines.recv_timeout(wait::PATIENCE).expect("the server's next line")
    }

    /// Ends it and returns all that it has said since.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Value> {
        self.end();
        self.lines.iter().collect()
    }

    fn end(&mut self) {
        self.stdin = None;
        let child = &mut self.child;
        if wait::within(wait::PATIENCE, || child.try_wait().ok().flatten()).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
