//! Replies to the agent, and the only way to create a [`ReplyMessage`].

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::frame::ReplyMessage;
use super::op::StepKind;
use super::payload::{AppEntry, InputOptions, ModelStatus, ServiceOutcome};

/// One of the two output streams of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// One reply to the agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    /// Bytes that a program wrote, or a log line (on stderr).
    Output {
        /// The stream it was written to.
        stream: Stream,
        /// Any bytes, at most 64 KiB. The agent truncates frames above 10 MiB, and small frames do not delay the other
        /// replies on the connection.
        bytes: Bytes,
    },
    /// A picture or another rich object.
    Media {
        /// The MIME type of `data`.
        mime: String,
        /// A string (a `data:` URL, the text of the object), or what the type's viewer expects.
        data: Value,
    },
    /// A fragment of HTML.
    Html(String),
    /// A program asks for input.
    WaitingInput(Option<InputOptions>),
    /// A step has finished.
    Finished {
        /// The kind of the step.
        kind: StepKind,
        /// The exit code, see [`crate::process::CommandOutcome::code`].
        exit_code: i32,
    },
    /// When the runner started, in seconds of `CLOCK_MONOTONIC`.
    Status {
        /// Seconds since boot.
        started_at: f64,
    },
    /// Completions of a piece of code; sent even when there are none.
    Completion(Vec<String>),
    /// Answer to `start-service`.
    ServiceResult(ServiceOutcome),
    /// Answer to `start-model-service`.
    ModelServiceResult(ServiceOutcome),
    /// A model service became healthy or unhealthy.
    ModelServiceStatus(ModelStatus),
    /// Answer to `get-apps`.
    AppsResult(Vec<AppEntry>),
}

#[derive(Serialize)]
struct Media<'a> {
    r#type: &'a str,
    data: &'a Value,
}

#[derive(Serialize)]
struct Finished {
    #[serde(rename = "exitCode")]
    exit_code: i32,
}

#[derive(Serialize)]
struct Status {
    started_at: f64,
}

#[derive(Serialize)]
struct Completion<'a> {
    suggestions: &'a [String],
}

#[derive(Serialize)]
struct Apps<'a> {
    status: &'static str,
    data: &'a [AppEntry],
}

impl Reply {
    /// The type frame of this reply.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Output { stream: Stream::Stdout, .. } => "stdout",
            Self::Output { stream: Stream::Stderr, .. } => "stderr",
            Self::Media { .. } => "media",
            Self::Html(_) => "html",
            Self::WaitingInput(_) => "waiting-input",
            Self::Finished { kind: StepKind::Clean, .. } => "clean-finished",
            Self::Finished { kind: StepKind::Build, .. } => "build-finished",
            Self::Finished { kind: StepKind::Exec | StepKind::Code, .. } => "finished",
            Self::Status { .. } => "status",
            Self::Completion(_) => "completion",
            Self::ServiceResult(_) => "service-result",
            Self::ModelServiceResult(_) => "model-service-result",
            Self::ModelServiceStatus(_) => "model-service-status",
            Self::AppsResult(_) => "apps-result",
        }
    }

    /// Encodes the reply as a message.
    #[must_use]
    pub(crate) fn into_message(self) -> ReplyMessage {
        let kind = self.kind();
        let payload = match self {
            Self::Output { bytes, .. } => bytes,
            Self::Media { mime, data } => json(&Media { r#type: &mime, data: &data }),
            Self::Html(text) => text.into(),
            Self::WaitingInput(None) => Bytes::new(),
            Self::WaitingInput(Some(options)) => json(&options),
            Self::Finished { exit_code, .. } => json(&Finished { exit_code }),
            Self::Status { started_at } => msgpack(&Status { started_at }),
            Self::Completion(suggestions) => json(&Completion { suggestions: &suggestions }),
            Self::ServiceResult(outcome) | Self::ModelServiceResult(outcome) => json(&outcome),
            Self::ModelServiceStatus(status) => json(&status),
            Self::AppsResult(apps) => json(&Apps { status: "done", data: &apps }),
        };
        ReplyMessage::new(kind, payload)
    }
}

/// These structs hold strings, numbers, and maps with string keys, which JSON can always represent.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("a plain struct has a JSON form").into()
}

/// Named fields, as the agent reads them.
fn msgpack(value: &impl Serialize) -> Bytes {
    rmp_serde::to_vec_named(value).expect("a plain struct has a msgpack form").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: Reply) -> (&'static str, String) {
        let message = reply.into_message();
        (message.kind(), String::from_utf8(message.payload().to_vec()).unwrap())
    }

    #[test]
    fn replies_have_the_form_the_agent_reads() {
        let finished = |kind| Reply::Finished { kind, exit_code: -9 };
        assert_eq!(encoded(finished(StepKind::Clean)), ("clean-finished", r#"{"exitCode":-9}"#.into()));
        assert_eq!(encoded(finished(StepKind::Build)).0, "build-finished");
        assert_eq!(encoded(finished(StepKind::Exec)).0, "finished");
        assert_eq!(encoded(finished(StepKind::Code)).0, "finished");
        assert_eq!(encoded(Reply::Completion(vec![])), ("completion", r#"{"suggestions":[]}"#.into()));
        assert_eq!(encoded(Reply::WaitingInput(None)), ("waiting-input", String::new()));
        let password = Reply::WaitingInput(Some(InputOptions { is_password: true }));
        assert_eq!(encoded(password).1, r#"{"is_password":true}"#);
        assert_eq!(
            encoded(Reply::ServiceResult(ServiceOutcome::failed("no"))),
            ("service-result", r#"{"status":"failed","error":"no"}"#.into())
        );
        assert_eq!(encoded(Reply::ModelServiceResult(ServiceOutcome::Started)).1, r#"{"status":"started"}"#);
        assert_eq!(encoded(Reply::AppsResult(vec![])), ("apps-result", r#"{"status":"done","data":[]}"#.into()));
        let media = Reply::Media { mime: "image/png".into(), data: "x".into() };
        assert_eq!(encoded(media), ("media", r#"{"type":"image/png","data":"x"}"#.into()));
        let graph = Reply::Media { mime: "application/graph".into(), data: serde_json::json!([{"oid": "a"}]) };
        assert_eq!(encoded(graph).1, r#"{"type":"application/graph","data":[{"oid":"a"}]}"#);
    }

    #[test]
    fn status_is_msgpack_with_a_named_float() {
        let payload = Reply::Status { started_at: 1.5 }.into_message().payload().to_vec();
        let mut expected = vec![0x81, 0xaa];
        expected.extend_from_slice(b"started_at");
        expected.push(0xcb);
        expected.extend_from_slice(&1.5f64.to_be_bytes());
        assert_eq!(payload, expected);
    }

    #[test]
    fn output_passes_any_bytes() {
        let bytes = Bytes::from_static(b"\xff\x00\n");
        let reply = Reply::Output { stream: Stream::Stderr, bytes: bytes.clone() };
        assert_eq!(reply.into_message().into_frames(), [Bytes::from_static(b"stderr"), bytes]);
    }
}
