//! The agent's requests, decoded from the two frames of a message.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::frame::BadMessage;
use super::payload::{ModelServiceRequest, ServiceRequest};

/// How much of an unknown op's name is shown in the log.
const SHOWN_NAME_BYTES: usize = 64;

/// Parsed into a tree, which takes up to 80 times the memory. The events of agents have a few hundred bytes.
pub(super) const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Requests about services are kept until they complete. A definition with hundreds of flags is far smaller.
pub(super) const MAX_SERVICE_BYTES: usize = 1024 * 1024;

/// The payload of a `status` that does not wait until the session is ready. Agents send an empty payload.
pub(crate) const AT_ONCE: &str = "now";

/// One request of the agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    /// `clean`, `build`, `exec`, `code`: run one at a time, in the order of arrival.
    Step(Step),
    /// Text for the pending prompt.
    Input(String),
    /// Completion request: JSON, as the agent's client wrote it.
    Complete(String),
    /// Interrupt the running step.
    Interrupt,
    /// Report when the runner started.
    Status {
        /// Whether to answer before the session is ready; never set by agents.
        at_once: bool,
    },
    /// An event on the agent's side.
    Event(AgentEvent),
    /// Start a service and answer when its port is open.
    StartService(ServiceRequest),
    /// Start a model service and watch its health.
    StartModelService(ModelServiceRequest),
    /// Stop the service of this name.
    ShutdownService(String),
    /// List the services that can be started; `None` for all of them.
    GetApps(Option<String>),
}

/// A queued unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Which of the four queued ops this is.
    pub kind: StepKind,
    /// The command line (`""` skips, `"*"` asks for the runtime's heuristic), or the source text of `code`.
    pub text: String,
}

/// The four ops that are queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// Batch mode, before the build.
    Clean,
    /// Batch mode: compile.
    Build,
    /// Batch mode: run.
    Exec,
    /// Query mode: run a snippet.
    Code,
}

impl StepKind {
    /// The op's name on the wire.
    #[must_use]
    pub(crate) fn op_name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Build => "build",
            Self::Exec => "exec",
            Self::Code => "code",
        }
    }
}

/// The payload of `event`: `{type, data}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct AgentEvent {
    /// `oom`; events of other types are only logged.
    #[serde(rename = "type")]
    pub kind: String,
    /// Arbitrary data of the event.
    #[serde(default)]
    pub data: Value,
}

impl Op {
    /// Decodes an inbound message.
    ///
    /// # Errors
    /// If the message is invalid. The caller logs that and skips the message.
    pub(crate) fn decode(frames: &[Bytes]) -> Result<Self, BadMessage> {
        let [name, payload] = frames else {
            return Err(BadMessage::FrameCount(frames.len()));
        };
        if !name.is_ascii() {
            return Err(BadMessage::NotAscii(shown(name)));
        }
        let op = match name.as_ref() {
            b"clean" => step(StepKind::Clean, payload)?,
            b"build" => step(StepKind::Build, payload)?,
            b"exec" => step(StepKind::Exec, payload)?,
            b"code" => step(StepKind::Code, payload)?,
            b"input" => Self::Input(text("input", payload)?),
            b"complete" => {
                // Validated only: parsing into a tree would take many times the memory.
                json::<IgnoredAny>("complete", payload)?;
                Self::Complete(text("complete", payload)?)
            }
            b"interrupt" => Self::Interrupt,
            b"status" => Self::Status { at_once: payload.as_ref() == AT_ONCE.as_bytes() },
            b"event" => {
                within(MAX_EVENT_BYTES, "event", payload)?;
                Self::Event(json("event", payload)?)
            }
            b"start-service" => Self::StartService(small_json("start-service", payload)?),
            b"start-model-service" => Self::StartModelService(small_json("start-model-service", payload)?),
            b"shutdown-service" => Self::ShutdownService(small_json("shutdown-service", payload)?),
            b"get-apps" => {
                small("get-apps", payload)?;
                let name = text("get-apps", payload)?;
                Self::GetApps((!name.is_empty()).then_some(name))
            }
            _ => return Err(BadMessage::UnknownOp(shown(name))),
        };
        Ok(op)
    }
}

fn step(kind: StepKind, payload: &Bytes) -> Result<Op, BadMessage> {
    let text = text(kind.op_name(), payload)?;
    Ok(Op::Step(Step { kind, text }))
}

fn text(op: &'static str, payload: &Bytes) -> Result<String, BadMessage> {
    match std::str::from_utf8(payload) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(BadMessage::NotUtf8 { op, position: error.valid_up_to() }),
    }
}

fn json<'a, T: Deserialize<'a>>(op: &'static str, payload: &'a Bytes) -> Result<T, BadMessage> {
    serde_json::from_slice(payload).map_err(|source| BadMessage::Json { op, source })
}

fn small_json<'a, T: Deserialize<'a>>(op: &'static str, payload: &'a Bytes) -> Result<T, BadMessage> {
    small(op, payload)?;
    json(op, payload)
}

fn small(op: &'static str, payload: &Bytes) -> Result<(), BadMessage> {
    within(MAX_SERVICE_BYTES, op, payload)
}

fn within(limit: usize, op: &'static str, payload: &Bytes) -> Result<(), BadMessage> {
    if payload.len() <= limit {
        return Ok(());
    }
    Err(BadMessage::TooLarge { op, bytes: payload.len(), limit })
}

fn shown(name: &Bytes) -> String {
    let head = &name[..name.len().min(SHOWN_NAME_BYTES)];
    format!("{}{}", head.escape_ascii(), if head.len() < name.len() { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(name: &'static str, payload: &'static str) -> Result<Op, BadMessage> {
        Op::decode(&[Bytes::from_static(name.as_bytes()), Bytes::from_static(payload.as_bytes())])
    }

    #[test]
    fn every_op_of_the_contract_is_known() {
        let step = |kind, text: &str| Op::Step(Step { kind, text: text.into() });
        assert_eq!(decode("clean", "").unwrap(), step(StepKind::Clean, ""));
        assert_eq!(decode("build", "*").unwrap(), step(StepKind::Build, "*"));
        assert_eq!(decode("exec", "ls").unwrap(), step(StepKind::Exec, "ls"));
        assert_eq!(decode("code", "1+1").unwrap(), step(StepKind::Code, "1+1"));
        assert_eq!(decode("input", "ü").unwrap(), Op::Input("ü".into()));
        assert_eq!(decode("interrupt", "").unwrap(), Op::Interrupt);
        assert_eq!(decode("status", "").unwrap(), Op::Status { at_once: false });
        assert_eq!(decode("status", "now").unwrap(), Op::Status { at_once: true });
        assert_eq!(decode("get-apps", "").unwrap(), Op::GetApps(None));
        assert_eq!(decode("get-apps", "x").unwrap(), Op::GetApps(Some("x".into())));
        assert_eq!(decode("shutdown-service", "\"x\"").unwrap(), Op::ShutdownService("x".into()));
        assert!(matches!(decode("complete", "{\"code\":\"a\"}").unwrap(), Op::Complete(_)));
        let event = decode("event", "{\"type\":\"oom\",\"data\":{\"a\":1}}").unwrap();
        assert!(matches!(event, Op::Event(AgentEvent { kind, .. }) if kind == "oom"));
        let service = r#"{"name":"jupyter","port":8080,"ports":[8080],"protocol":"http","options":{}}"#;
        let Op::StartService(request) = decode("start-service", service).unwrap() else { panic!() };
        assert_eq!((request.name.as_str(), request.ports.as_slice()), ("jupyter", &[8080][..]));
        let model = r#"{"name":"m","model_path":"/models/m","service":{"port":9000}}"#;
        assert!(matches!(decode("start-model-service", model).unwrap(), Op::StartModelService(_)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |frames: &[&'static [u8]]| {
            let frames: Vec<Bytes> = frames.iter().map(|f| Bytes::from_static(f)).collect();
            Op::decode(&frames).unwrap_err().to_string()
        };
        assert_eq!(message(&[b"status"]), "message has 1 frames, expected 2");
        assert_eq!(message(&[b"st\xffatus", b""]), "op is not ASCII: st\\xffatus");
        assert_eq!(message(&[b"reboot", b""]), "unknown op: reboot");
        assert_eq!(message(&[b"exec", b"ab\xff"]), "payload of `exec` is not UTF-8 (byte 2)");
        assert_eq!(message(&[b"event", b"{"]), "malformed payload of `event`");
        let long = vec![b' '; MAX_SERVICE_BYTES + 1];
        let error = Op::decode(&[Bytes::from_static(b"get-apps"), long.into()]).unwrap_err();
        assert_eq!(error.to_string(), "payload of `get-apps` has 1048577 bytes, limit 1048576");
        let event = format!("{{\"type\": \"x\", \"data\": \"{}\"}}", "a".repeat(MAX_EVENT_BYTES));
        let error = Op::decode(&[Bytes::from_static(b"event"), event.into()]).unwrap_err();
        assert_eq!(error.to_string(), "payload of `event` has 65561 bytes, limit 65536");
    }

    #[test]
    fn op_is_known_of_a_payload_that_is_wrong() {
        let op = |frames: [&'static [u8]; 2]| Op::decode(&frames.map(Bytes::from_static)).unwrap_err().op();
        assert_eq!(op([b"complete", b"{"]), Some("complete"));
        assert_eq!(op([b"complete", b"\"\xff\""]), Some("complete"));
        assert_eq!(op([b"reboot", b""]), None);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4)) {
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            let _ = Op::decode(&frames);
        }
    }
}
