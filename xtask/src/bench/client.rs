//! Drives `xtask/bench/client.py`: each command and each answer is one line of JSON.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::sandbox::Ports;
use crate::workspace::root;

/// The running client. One client measures everything.
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

    /// Connects to another peer, which may not listen yet.
    pub(super) fn connect(&mut self, ports: Ports) -> Result<()> {
        self.call(&json!({"do": "connect", "replin": ports.replin, "replout": ports.replout})).map(drop)
    }

    /// Releases a runner's start barrier. Returns the milliseconds to its first status reply.
    pub(super) fn release_start(&mut self, start_barrier: &Path) -> Result<f64> {
        number(&self.call(&json!({"do": "start", "start_barrier": start_barrier}))?, "ms")
    }

    /// Returns the median status round trip in microseconds.
    pub(super) fn status(&mut self, count: u32) -> Result<f64> {
        number(&self.call(&json!({"do": "status", "count": count}))?, "us")
    }

    /// Runs a step without output `count` times. Returns the median in milliseconds.
    pub(super) fn execute(&mut self, line: &str, count: u32) -> Result<f64> {
        number(&self.call(&json!({"do": "execute", "line": line, "count": count}))?, "ms")
    }

    /// Releases a runner's start barrier. Returns the milliseconds to the end of its first `code`, which must print `shown`.
    pub(super) fn start_with_code(&mut self, start_barrier: &Path, code: &str, shown: &str) -> Result<f64> {
        number(
            &self.call(&json!({"do": "start_code", "start_barrier": start_barrier, "code": code, "shown": shown}))?,
            "ms",
        )
    }

    /// Runs `code`, which must print `shown`, `count` times. Returns the median in milliseconds.
    pub(super) fn code(&mut self, code: &str, shown: &str, count: u32) -> Result<f64> {
        number(&self.call(&json!({"do": "code", "code": code, "shown": shown, "count": count}))?, "ms")
    }

    /// Starts a Jupyter kernel without a runner. Returns the milliseconds to the end of its first `code`.
    pub(super) fn bare_kernel(&mut self, code: &str) -> Result<f64> {
        number(&self.call(&json!({"do": "bare_kernel", "code": code}))?, "ms")
    }

    /// Runs a step that must write `bytes` bytes. Returns the seconds that it takes.
    pub(super) fn stream(&mut self, line: &str, bytes: u64) -> Result<f64> {
        let answer = self.call(&json!({"do": "stream", "line": line}))?;
        expect_bytes(&answer, bytes)?;
        number(&answer, "seconds")
    }

    /// Starts a step without reading its output.
    pub(super) fn send(&mut self, line: &str) -> Result<()> {
        self.call(&json!({"do": "send", "line": line})).map(drop)
    }

    /// Reads the output of the step that was sent last. Fails unless it is `bytes` bytes.
    pub(super) fn drain(&mut self, bytes: u64) -> Result<()> {
        expect_bytes(&self.call(&json!({"do": "drain"}))?, bytes)
    }

    /// Disconnects from the peer.
    pub(super) fn close(&mut self) -> Result<()> {
        self.call(&json!({"do": "close"})).map(drop)
    }

    fn call(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.commands, "{command}").context("the client exited")?;
        let mut line = String::new();
        self.answers.read_line(&mut line).context("the client exited")?;
        let answer: Value = serde_json::from_str(&line).context("the client exited; its output is above")?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("client: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails harmlessly if the client has already exited.
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
