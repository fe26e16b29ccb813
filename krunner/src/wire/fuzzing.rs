//! Fuzz target of the agent's requests.

use bytes::Bytes;
use serde_json::Value;

use super::frame::BadMessage;
use super::op::{MAX_EVENT_BYTES, MAX_SERVICE_BYTES, Op, Step};

/// What a bad message may add to the log.
const MAX_ERROR_BYTES: usize = 1024;

/// An op has what its payload says; a message that is rejected costs one line of log.
pub(crate) fn op(name: &[u8], payload: &[u8]) {
    let frames = [Bytes::copy_from_slice(name), Bytes::copy_from_slice(payload)];
    match Op::decode(&frames) {
        Ok(op) => check_op(&op, name, payload),
        Err(error) => check_error(&error, name, payload),
    }
    for wrong in [&frames[..1], &[&frames[..], &frames[..1]].concat()] {
        assert!(matches!(Op::decode(wrong), Err(BadMessage::FrameCount(_))));
    }
}

fn check_op(op: &Op, name: &[u8], payload: &[u8]) {
    // Members that are skipped may contain what is no text, such as half a surrogate pair.
    let json = || serde_json::from_slice::<Value>(payload).unwrap_or_default();
    let is_name = |name: &str| json().as_object().is_none_or(|object| object["name"].as_str() == Some(name));
    match op {
        Op::Step(Step { kind, text }) => {
            assert_eq!((kind.op_name().as_bytes(), text.as_bytes()), (name, payload));
        }
        Op::Input(text) | Op::Complete(text) => assert_eq!(text.as_bytes(), payload),
        Op::Interrupt | Op::Status { .. } => {}
        Op::Event(event) => {
            assert!(payload.len() <= MAX_EVENT_BYTES);
            let json = json();
            assert!(json.as_object().is_none_or(|object| object["type"].as_str() == Some(event.kind.as_str())));
        }
        Op::StartService(request) => {
            assert!(payload.len() <= MAX_SERVICE_BYTES);
            assert!(is_name(&request.name));
        }
        Op::StartModelService(request) => assert!(is_name(&request.name)),
        Op::ShutdownService(service) => assert_eq!(Some(service.as_str()), json().as_str()),
        Op::GetApps(service) => assert_eq!(service.as_deref().unwrap_or_default().as_bytes(), payload),
    }
}

fn check_error(error: &BadMessage, name: &[u8], payload: &[u8]) {
    let mut text = error.to_string();
    if let BadMessage::Json { source, .. } = error {
        text.push_str(&source.to_string());
    }
    assert!(text.len() <= MAX_ERROR_BYTES, "{} bytes of log", text.len());
    assert!(!text.contains('\n'), "one line: {text:?}");
    match error {
        BadMessage::NotAscii(_) => assert!(!name.is_ascii()),
        BadMessage::NotUtf8 { position, .. } => assert!(str::from_utf8(&payload[..*position]).is_ok()),
        _ => assert!(name.is_ascii()),
    }
}
