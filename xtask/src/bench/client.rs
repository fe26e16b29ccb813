//! Our end of `xtask/bench/client.py`: a command goes out as a line, its answer comes back as one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::world::Ports;
use crate::workspace::root;

/// The running client. There is one, for all that is measured.
pub(super) struct Client {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Starts the client with the environment's Python.
    pub(super) fn start(python: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(root().join("xtask/bench/client.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the client")?;
        let commands = child.stdin.take().context("the client has no input")?;
        let answers = BufReader::new(child.stdout.take().context("the client has no output")?);
        Ok(Self { child, commands, answers })
    }

    /// Turns to another peer, which may not be up yet.
    pub(super) fn connect(&mut self, ports: Ports) -> Result<()> {
        self.call(&json!({"do": "connect", "replin": ports.replin, "replout": ports.replout})).map(drop)
    }

    /// Lets a runner start; milliseconds to its first status reply.
    pub(super) fn open_gate(&mut self, gate: &Path) -> Result<f64> {
        number(&self.call(&json!({"do": "start", "gate": gate}))?, "ms")
    }

    /// Microseconds of the median status round trip.
    pub(super) fn status(&mut self, count: u32) -> Result<f64> {
        number(&self.call(&json!({"do": "status", "count": count}))?, "us")
    }

    /// Milliseconds of the median silent step.
    pub(super) fn execute(&mut self, line: &str, count: u32) -> Result<f64> {
        number(&self.call(&json!({"do": "execute", "line": line, "count": count}))?, "ms")
    }

    /// Lets a runner start; milliseconds to the end of a first `code`, which shows `shown`.
    pub(super) fn open_gate_to_code(&mut self, gate: &Path, code: &str, shown: &str) -> Result<f64> {
        number(&self.call(&json!({"do": "start_code", "gate": gate, "code": code, "shown": shown}))?, "ms")
    }

    /// Milliseconds of the median `code` that shows `shown`.
    pub(super) fn code(&mut self, code: &str, shown: &str, count: u32) -> Result<f64> {
        number(&self.call(&json!({"do": "code", "code": code, "shown": shown, "count": count}))?, "ms")
    }

    /// Starts a Jupyter kernel without any runner; milliseconds to the end of a first `code`.
    pub(super) fn bare_kernel(&mut self, code: &str) -> Result<f64> {
        number(&self.call(&json!({"do": "bare_kernel", "code": code}))?, "ms")
    }

    /// Seconds that a step takes that writes `bytes` bytes.
    pub(super) fn stream(&mut self, line: &str, bytes: u64) -> Result<f64> {
        let answer = self.call(&json!({"do": "stream", "line": line}))?;
        expect_bytes(&answer, bytes)?;
        number(&answer, "seconds")
    }

    /// Starts a step and reads nothing of what it writes.
    pub(super) fn send(&mut self, line: &str) -> Result<()> {
        self.call(&json!({"do": "send", "line": line})).map(drop)
    }

    /// Reads what the step wrote that was sent last; an error unless that is `bytes` bytes.
    pub(super) fn drain(&mut self, bytes: u64) -> Result<()> {
        expect_bytes(&self.call(&json!({"do": "drain"}))?, bytes)
    }

    /// Lets go of the peer.
    pub(super) fn close(&mut self) -> Result<()> {
        self.call(&json!({"do": "close"})).map(drop)
    }

    fn call(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.commands, "{command}").context("the client is gone")?;
        let mut line = String::new();
        self.answers.read_line(&mut line).context("the client is gone")?;
        let answer: Value = serde_json::from_str(&line).context("the client ended; its last words are above")?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("client: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing left to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(answer: &Value, name: &str) -> Result<f64> {
    answer.get(name).and_then(Value::as_f64).with_context(|| format!("the client answered {answer}"))
}

fn expect_bytes(answer: &Value, expected: u64) -> Result<()> {
    match answer.get("bytes").and_then(Value::as_u64) {
        Some(bytes) if bytes == expected => Ok(()),
        Some(bytes) => bail!("{bytes} bytes arrived, not {expected}"),
        None => bail!("the client answered {answer}"),
    }
}
