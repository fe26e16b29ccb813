//! The two-frame message, and the errors of decoding one.

use bytes::Bytes;

/// An outbound message: two frames by construction.
///
/// Only [`Reply::into_message`](super::Reply::into_message) creates one, so the type frame is one of its ASCII
/// constants and the payload has the encoding that the agent expects for that type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyMessage {
    kind: &'static str,
    payload: Bytes,
}

impl ReplyMessage {
    pub(super) fn new(kind: &'static str, payload: Bytes) -> Self {
        debug_assert!(kind.is_ascii());
        Self { kind, payload }
    }

    /// The type frame, e.g. `stdout`.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// The payload frame.
    #[must_use]
    pub(crate) fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Both frames, in the order of the wire.
    #[must_use]
    pub(crate) fn into_frames(self) -> [Bytes; 2] {
        [Bytes::from_static(self.kind.as_bytes()), self.payload]
    }
}

/// Why an inbound message was rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMessage {
    /// Every message has two frames.
    #[error("message has {0} frames, expected 2")]
    FrameCount(usize),
    /// The type frame is not ASCII.
    #[error("op is not ASCII: {0}")]
    NotAscii(String),
    /// The type frame names an unknown op.
    #[error("unknown op: {0}")]
    UnknownOp(String),
    /// The payload of this op must be text.
    #[error("payload of `{op}` is not UTF-8 (byte {position})")]
    NotUtf8 {
        /// The op of the message.
        op: &'static str,
        /// The offset of the first invalid byte.
        position: usize,
    },
    /// The payload of this op is kept in memory and is limited in size.
    #[error("payload of `{op}` has {bytes} bytes, limit {limit}")]
    TooLarge {
        /// The op of the message.
        op: &'static str,
        /// The size of the payload.
        bytes: usize,
        /// The largest size that is accepted.
        limit: usize,
    },
    /// The payload of this op must be JSON of a certain shape.
    #[error("malformed payload of `{op}`")]
    Json {
        /// The op of the message.
        op: &'static str,
        /// The parser's error, with line and column.
        #[source]
        source: serde_json::Error,
    },
}

impl BadMessage {
    /// The op whose payload is invalid; `None` if the op is unknown.
    #[must_use]
    pub(crate) fn op(&self) -> Option<&'static str> {
        match self {
            Self::FrameCount(_) | Self::NotAscii(_) | Self::UnknownOp(_) => None,
            Self::NotUtf8 { op, .. } | Self::TooLarge { op, .. } | Self::Json { op, .. } => Some(op),
        }
    }
}
