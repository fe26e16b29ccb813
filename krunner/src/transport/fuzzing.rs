//! Fuzz targets of the parsers of ZMTP streams.

use bytes::BytesMut;

use super::frames::{FrameError, SubscriberFrame, take_frame, take_greeting};
use super::pull::OP_LIMITS;
use super::socket::fuzz_scanner;

/// The longest frame that is buffered, with its header.
const MAX_BUFFERED_BYTES: usize = 1024 + 9;

/// The scanner within the limits of the port for ops.
pub(crate) fn scanner(pieces: &[&[u8]]) {
    fuzz_scanner(pieces, OP_LIMITS);
}

/// Frames of a subscriber do not depend on where the stream is cut, and what is buffered is bounded.
pub(crate) fn subscriber(pieces: &[&[u8]]) {
    let stream = pieces.concat();
    let whole = read_frames(&[&stream]);
    for frame in whole.iter().flatten() {
        let is_ready = frame.check_ready(&["SUB", "XSUB"]).is_ok();
        assert!(!is_ready || frame.message().is_none(), "READY is a command, not a message");
    }
    assert_eq!(read_frames(pieces), whole);
}

fn read_frames(pieces: &[&[u8]]) -> Result<Vec<SubscriberFrame>, FrameError> {
    let (mut buffer, mut frames, mut is_greeted) = (BytesMut::new(), Vec::new(), false);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        is_greeted = is_greeted || take_greeting(&mut buffer)?;
        while is_greeted && let Some(frame) = take_frame(&mut buffer)? {
            frames.push(frame);
        }
        assert!(buffer.len() <= MAX_BUFFERED_BYTES, "{} bytes are buffered", buffer.len());
    }
    Ok(frames)
}
