//! A client on bare ZMTP connections: exact bytes, exact frames, exact order, time of arrival.

use std::str;
use std::time::Instant;

use serde_json::Value;

use crate::runner::Runner;
use crate::zmtp::Peer;

/// Every reply type of the contract.
const KINDS: [&str; 16] = [
    "stdout",
    "stderr",
    "media",
    "html",
    "log",
    "waiting-input",
    "clean-finished",
    "build-finished",
    "finished",
    "status",
    "completion",
    "service-result",
    "model-service-result",
    "model-service-status",
    "apps-result",
    "continued",
];

/// Output is split at this size.
const OUTPUT_LIMIT_BYTES: usize = 64 * 1024;

/// A reply that would not hurt the agent.
#[derive(Clone, Debug)]
pub struct Message {
    /// The type frame.
    pub kind: String,
    /// The payload frame.
    pub payload: Vec<u8>,
    /// When it had been read.
    pub at: Instant,
}

impl Message {
    /// Checks what the agent's read loop depends on.
    #[track_caller]
    pub fn new(frames: Vec<Vec<u8>>) -> Self {
        let at = Instant::now();
        let [kind, payload] = <[Vec<u8>; 2]>::try_from(frames)
            .unwrap_or_else(|frames| panic!("a reply of {} frames: {frames:?}", frames.len()));
        let kind = String::from_utf8_lossy(&kind).into_owned();
        assert!(KINDS.contains(&kind.as_str()), "unknown reply type {kind:?}");
        if kind == "stdout" || kind == "stderr" {
            assert!(payload.len() <= OUTPUT_LIMIT_BYTES, "{} bytes of {kind}", payload.len());
        } else if kind != "status" {
            assert!(str::from_utf8(&payload).is_ok(), "{kind} is not UTF-8: {payload:?}");
        }
        Self { kind, payload, at }
    }

    /// Whether this ends a step.
    pub fn ends_step(&self) -> bool {
        self.kind == "finished" || self.kind.ends_with("-finished")
    }

    /// The exit code of a reply that ends a step.
    #[track_caller]
    pub fn exit_code(&self) -> i64 {
        let value: Value = serde_json::from_slice(&self.payload).expect("a JSON payload");
        value["exitCode"].as_i64().unwrap_or_else(|| panic!("no exitCode in {value}"))
    }
}

/// Replies in the order of their arrival.
#[derive(Debug, Default)]
pub struct Transcript {
    /// The socket that receives replies.
    pub messages: Vec<Message>,
}

impl Transcript {
    /// All bytes of one output stream.
    pub fn output(&self, kind: &str) -> Vec<u8> {
        let messages = self.messages.iter().filter(|message| message.kind == kind);
        messages.flat_map(|message| &message.payload).copied().collect()
    }

    /// All of stdout, as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output("stdout")).into_owned()
    }

    /// All of stderr, as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output("stderr")).into_owned()
    }

    /// The replies that end steps.
    pub fn ends(&self) -> Vec<&Message> {
        self.messages.iter().filter(|message| message.ends_step()).collect()
    }

    /// Type and exit code of the replies that end steps.
    #[track_caller]
    pub fn codes(&self) -> Vec<(&str, i64)> {
        self.ends().into_iter().map(|end| (end.kind.as_str(), end.exit_code())).collect()
    }
}

/// One connection to each port of a runner.
#[derive(Debug)]
pub struct Raw {
    /// To the runner's PULL.
    pub push: Peer,
    /// From the runner's PUSH.
    pub pull: Peer,
}

impl Raw {
    /// Connects to both ports as soon as the runner listens.
    #[track_caller]
    pub fn connect(runner: &Runner) -> Self {
        let (replin, replout) = runner.ports();
        let pull = Peer::connect(replout, "PULL");
        Self { push: Peer::connect(replin, "PUSH"), pull }
    }

    /// Sends an op.
    #[track_caller]
    pub fn op(&mut self, op: &str, payload: &str) {
        self.push.send(&[op.as_bytes(), payload.as_bytes()]);
    }

    /// The next reply; `None` when the runner has closed the connection.
    #[track_caller]
    pub fn recv(&mut self) -> Option<Message> {
        self.pull.recv().map(Message::new)
    }

    /// Reads up to and including the first reply that satisfies the condition.
    #[track_caller]
    pub fn read_until(&mut self, mut is_last: impl FnMut(&Message) -> bool) -> Transcript {
        let mut transcript = Transcript::default();
        loop {
            let Some(message) = self.recv() else {
                panic!("the runner closed the connection after {transcript:?}");
            };
            let last = is_last(&message);
            transcript.messages.push(message);
            if last {
                return transcript;
            }
        }
    }

    /// Reads up to and including the n-th `finished`.
    #[track_caller]
    pub fn read_runs(&mut self, count: usize) -> Transcript {
        let mut seen = 0;
        self.read_until(|message| {
            seen += usize::from(message.kind == "finished");
            seen == count
        })
    }

    /// Reads up to the end of the connection.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Transcript {
        let mut transcript = Transcript::default();
        while let Some(message) = self.recv() {
            transcript.messages.push(message);
        }
        transcript
    }

    /// Runs one command and reads up to its `finished`.
    #[track_caller]
    pub fn exec(&mut self, command: &str) -> Transcript {
        self.op("exec", command);
        self.read_runs(1)
    }

    /// Requests the status and waits for the reply. By then the runner has taken every earlier op.
    #[track_caller]
    pub fn sync(&mut self) -> Transcript {
        // Answered at once, even before the session is ready.
        self.op("status", "now");
        self.read_until(|message| message.kind == "status")
    }
}
