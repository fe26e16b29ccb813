//! Fuzz targets of the parsers of ZMTP streams.

use bytes::BytesMut;

use super::frames::{FrameError, SubscriberFrame, take_frame, take_greeting};
use super::relay::LIMITS;
use super::scanner::{FrameLimits, ZmtpError, ZmtpScanner};

/// Limits that short inputs reach.
const LOW_LIMITS: FrameLimits = FrameLimits { message_bytes: 1000, message_frames: 4 };

/// The longest frame that is buffered, with its header.
const MAX_BUFFERED_BYTES: usize = 1024 + 9;

/// The verdict on a stream does not depend on where it is cut, and no frame exceeds the limits.
pub(crate) fn scanner(pieces: &[&[u8]]) {
    let stream = pieces.concat();
    for limits in [LOW_LIMITS, LIMITS] {
        let mut whole = ZmtpScanner::new(limits);
        let verdict = whole.feed(&stream);
        let mut cut = ZmtpScanner::new(limits);
        let cut_verdict = pieces.iter().try_for_each(|piece| {
            let fed = cut.feed(piece);
            assert!(cut.body_left() <= limits.message_bytes, "{} bytes are accepted", cut.body_left());
            fed
        });
        assert_eq!(cut_verdict, verdict);
        assert_eq!(cut.body_left(), whole.body_left());
        assert_eq!(cut.handshake_done(), whole.handshake_done());
        check_handshake(limits, &stream, verdict);
    }
}

/// The handshake is a prefix of the stream, and the rest is scanned as if there had been no stop.
fn check_handshake(limits: FrameLimits, stream: &[u8], verdict: Result<(), ZmtpError>) {
    let mut scanner = ZmtpScanner::new(limits);
    match scanner.feed_handshake(stream) {
        Ok(taken) => {
            assert!(taken == stream.len() || scanner.handshake_done());
            assert_eq!(scanner.feed(&stream[taken..]), verdict);
        }
        Err(error) => assert_eq!(Err(error), verdict),
    }
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
