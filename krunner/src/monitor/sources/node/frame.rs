//! Frames of the node's socket: a length of 4 bytes, little-endian, and as many bytes of JSON. Pure.
//!
//! A length beyond the reader's limit is an error before anything is allocated for it.

use serde::Serialize;
use serde::de::DeserializeOwned;

const LENGTH_BYTES: usize = size_of::<u32>();

/// Why bytes are not a frame. The connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeFrameError {
    /// The announced length is above the limit.
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// The bytes are not a message.
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
}

/// Encodes a message with its length.
#[must_use]
pub(crate) fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut frame = vec![0; LENGTH_BYTES];
    // Messages are plain structs with string keys, which serde_json always writes to memory.
    let _ = serde_json::to_writer(&mut frame, message);
    let length = u32::try_from(frame.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Received bytes that are not decoded yet: at most one frame and what one read brought beyond it.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl FrameBuffer {
    /// A buffer for messages of at most this length.
    #[must_use]
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { bytes: Vec::new(), max_bytes }
    }

    /// Adds received bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next complete message; `None` if more bytes are needed.
    ///
    /// # Errors
    /// When the length is above the limit or the message is malformed.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, NodeFrameError> {
        let Some(length) = self.bytes.first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.max_bytes {
            return Err(NodeFrameError::TooLong(length));
        }
        let end = LENGTH_BYTES + length;
        let Some(body) = self.bytes.get(LENGTH_BYTES..end) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(NodeFrameError::Malformed);
        self.bytes.drain(..end);
        message.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(buffer: &mut FrameBuffer) -> Result<Option<String>, NodeFrameError> {
        buffer.next()
    }

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let stream = [encode(&"one"), encode(&"two")].concat();
        for size in 1..=stream.len() {
            let mut buffer = FrameBuffer::new(64);
            let mut messages = Vec::new();
            for piece in stream.chunks(size) {
                buffer.push(piece);
                while let Some(message) = next(&mut buffer).unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, ["one", "two"], "pieces of {size}");
        }
    }

    #[test]
    fn length_beyond_the_limit_is_refused_at_the_header() {
        for (length, refused) in [(64_u32, false), (65, true), (u32::MAX, true)] {
            let mut buffer = FrameBuffer::new(64);
            buffer.push(&length.to_le_bytes());
            let read = next(&mut buffer);
            assert_eq!(matches!(read, Err(NodeFrameError::TooLong(_))), refused, "{length}: {read:?}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let mut buffer = FrameBuffer::new(64);
        buffer.push(&[2, 0, 0, 0, b'{', b'x']);
        assert!(matches!(next(&mut buffer), Err(NodeFrameError::Malformed(_))));
    }
}
