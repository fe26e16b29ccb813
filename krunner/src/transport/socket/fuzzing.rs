//! Fuzz target of the scanner of ZMTP streams.

use super::scanner::{FrameLimits, ZmtpError, ZmtpScanner};

/// Limits that short inputs reach.
const LOW_LIMITS: FrameLimits = FrameLimits { message_bytes: 1000, message_frames: 4 };

/// The verdict on a stream and what is left of it do not depend on where it is cut, and no message exceeds the limits.
pub(crate) fn scanner(pieces: &[&[u8]], of_port: FrameLimits) {
    let stream = pieces.concat();
    for limits in [LOW_LIMITS, of_port] {
        let mut whole = ZmtpScanner::new(limits);
        let verdict = whole.feed(&stream);
        let mut cut = ZmtpScanner::new(limits);
        let cut_verdict = pieces.iter().try_for_each(|piece| {
            let fed = cut.feed(piece);
            let bytes = cut.unfinished_message_bytes();
            assert!(bytes <= limits.message_bytes, "{bytes} bytes are accepted");
            fed
        });
        assert_eq!(cut_verdict, verdict);
        assert_eq!(cut.unfinished_message_bytes(), whole.unfinished_message_bytes());
        assert_eq!(cut.handshake_done(), whole.handshake_done());
        check_handshake(limits, &stream, verdict);
        check_commands(limits, pieces, &stream, verdict);
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

/// What is left without commands does not depend on where the stream is cut.
fn check_commands(limits: FrameLimits, pieces: &[&[u8]], stream: &[u8], verdict: Result<(), ZmtpError>) {
    let without_commands = |pieces: &[&[u8]]| {
        let (mut scanner, mut left) = (ZmtpScanner::new(limits), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            let kept = scanner.take_commands_out(&mut piece)?;
            left.extend_from_slice(&piece[..kept]);
        }
        Ok(left)
    };
    let left = without_commands(&[stream]);
    assert_eq!(left.as_ref().map(|_| ()).map_err(|error| *error), verdict);
    assert_eq!(without_commands(pieces), left);
}
