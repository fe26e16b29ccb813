//! The two-frame message, and why an inbound one was not understood.

use bytes::Bytes;

/// An outbound message: two frames by construction.
///
/// Only [`Reply::into_message`](super::Reply::into_message) makes one, so the type frame is one of
/// its ASCII constants and the payload has the encoding that the agent expects of that type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    kind: &'static str,
    payload: Bytes,
}

impl Message {
    pub(super) fn new(kind: &'static str, payload: Bytes) -> Self {
        debug_assert!(kind.is_ascii());
        Self { kind, payload }
    }

    /// The type frame, e.g. `stdout`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The payload frame.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Both frames, in the order of the wire.
    #[must_use]
    pub fn into_frames(self) -> [Bytes; 2] {
        [Bytes::from_static(self.kind.as_bytes()), self.payload]
    }
}

/// Why an inbound message was skipped.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// Every message has two frames.
    #[error("a message of {0} frames where 2 are expected")]
    FrameCount(usize),
    /// The type frame is not ASCII.
    #[error("an op that is not ASCII: {0}")]
    NotAscii(String),
    /// The type frame names nothing we know.
    #[error("an unknown op: {0}")]
    UnknownOp(String),
    /// The payload of this op has to be text.
    #[error("a payload of `{op}` that is not UTF-8 (byte {position})")]
    NotUtf8 {
        /// The op it came with.
        op: &'static str,
        /// Where the first wrong byte is.
        position: usize,
    },
    /// The payload of this op is kept for a while, and has a limit.
    #[error("a payload of `{op}` with {bytes} bytes; at most {limit} are taken")]
    TooLarge {
        /// The op it came with.
        op: &'static str,
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        limit: usize,
    },
    /// The payload of this op has to be JSON of a certain shape.
    #[error("a malformed payload of `{op}`")]
    Json {
        /// The op it came with.
        op: &'static str,
        /// What the parser says, with line and column.
        #[source]
        source: serde_json::Error,
    },
}
