//! Follows a ZMTP stream: where frames start, how long they claim to be, and which PING to answer. Buffers at most one
//! header and the start of one command.

use bytes::BytesMut;

use crate::zmtp::{self, FLAG_COMMAND, FrameHeader, GREETING_BYTES, UnknownFlags, fits_greeting};

/// Length of the longest header.
const HEADER_BYTES: usize = 9;

/// Limit for a frame before the handshake is complete. A READY command with an identity is far shorter.
const HANDSHAKE_BYTES: u64 = 8 * 1024;

/// Limits for messages from a peer.
#[derive(Debug, Clone, Copy)]
pub(in crate::transport) struct FrameLimits {
    /// Total bytes of all frames of a message.
    pub(in crate::transport) message_bytes: u64,
    /// Frames of one message.
    pub(in crate::transport) message_frames: u32,
}

/// A violation of the protocol that closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::transport) enum ZmtpError {
    #[error("not a ZMTP 3 peer with the NULL mechanism")]
    NotZmtp,
    #[error(transparent)]
    Flags(#[from] UnknownFlags),
    #[error("message of at least {bytes} bytes exceeds the limit of {limit}")]
    TooLong { bytes: u64, limit: u64 },
    #[error("message of more than {0} frames")]
    TooManyFrames(u32),
}

#[derive(Debug, Clone, Copy)]
enum ScannerState {
    Greeting { seen: usize },
    Header { seen: usize, bytes: [u8; HEADER_BYTES] },
    Body { left: u64 },
}

/// The state before the first byte of a header.
const BETWEEN_FRAMES: ScannerState = ScannerState::Header { seen: 0, bytes: [0; HEADER_BYTES] };

/// The start of a command, which is all of a PING.
#[derive(Debug, Default)]
struct CommandStart {
    bytes: [u8; zmtp::MAX_PING_BYTES],
    length: usize,
}

impl CommandStart {
    fn push(&mut self, piece: &[u8]) {
        let taken = piece.len().min(self.bytes.len() - self.length);
        self.bytes[self.length..][..taken].copy_from_slice(&piece[..taken]);
        self.length += taken;
    }
}

/// Follows one direction of a connection.
#[derive(Debug)]
pub(super) struct ZmtpScanner {
    state: ScannerState,
    limits: FrameLimits,
    frames: u32,
    bytes: u64,
    more: bool,
    commands: u64,
    /// The command that is being received after the handshake.
    command: Option<CommandStart>,
    /// Whether the last step was part of such a command.
    was_command: bool,
    pong: Option<BytesMut>,
}

impl ZmtpScanner {
    pub(super) fn new(limits: FrameLimits) -> Self {
        Self {
            state: ScannerState::Greeting { seen: 0 },
            limits,
            frames: 0,
            bytes: 0,
            more: false,
            commands: 0,
            command: None,
            was_command: false,
            pong: None,
        }
    }

    /// Consumes the next piece of the stream; pieces may have any size.
    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<(), ZmtpError> {
        while !piece.is_empty() {
            piece = &piece[self.step(piece)?..];
        }
        Ok(())
    }

    /// Like [`Self::feed`], but stops where the handshake ends: after the greeting and one command.
    /// Returns how many bytes of `piece` belong to it.
    pub(super) fn feed_handshake(&mut self, piece: &[u8]) -> Result<usize, ZmtpError> {
        let mut taken = 0;
        while taken < piece.len() && !self.handshake_done() {
            taken += self.step(&piece[taken..])?;
        }
        Ok(taken)
    }

    /// Like [`Self::feed`], but moves everything except for commands after the handshake to the front of `piece`.
    /// Returns how many bytes that are.
    pub(super) fn take_commands_out(&mut self, piece: &mut [u8]) -> Result<usize, ZmtpError> {
        let (mut kept, mut at) = (0, 0);
        while at < piece.len() {
            let taken = self.step(&piece[at..])?;
            if !self.was_command {
                if kept < at {
                    piece.copy_within(at..at + taken, kept);
                }
                kept += taken;
            }
            at += taken;
        }
        Ok(kept)
    }

    /// The answer to the last PING.
    pub(super) fn take_pong(&mut self) -> Option<BytesMut> {
        self.pong.take()
    }

    /// Whether the greeting and the READY command are complete.
    pub(super) fn handshake_done(&self) -> bool {
        self.commands > 0 && self.is_between_frames()
    }

    /// Whether a command may be inserted here.
    pub(super) fn is_between_messages(&self) -> bool {
        self.handshake_done() && !self.more
    }

    /// The length of the current message as far as its headers tell; 0 between messages.
    pub(super) fn unfinished_message_bytes(&self) -> u64 {
        if self.is_between_messages() { 0 } else { self.bytes }
    }

    fn is_between_frames(&self) -> bool {
        matches!(self.state, ScannerState::Header { seen: 0, .. })
    }

    /// Consumes at least one byte of a non-empty piece.
    fn step(&mut self, piece: &[u8]) -> Result<usize, ZmtpError> {
        if self.is_between_frames() {
            let is_command = self.commands > 0 && piece[0] & FLAG_COMMAND != 0;
            self.command = is_command.then(CommandStart::default);
        }
        self.was_command = self.command.is_some();
        match self.state {
            ScannerState::Greeting { seen } => {
                let taken = piece.len().min(GREETING_BYTES - seen);
                if !fits_greeting(seen, &piece[..taken]) {
                    return Err(ZmtpError::NotZmtp);
                }
                let seen = seen + taken;
                self.state = if seen == GREETING_BYTES { BETWEEN_FRAMES } else { ScannerState::Greeting { seen } };
                Ok(taken)
            }
            ScannerState::Header { seen, mut bytes } => {
                bytes[seen] = piece[0];
                let seen = seen + 1;
                match FrameHeader::parse(&bytes[..seen])? {
                    Some((header, _)) => self.begin_body(header)?,
                    None => self.state = ScannerState::Header { seen, bytes },
                }
                Ok(1)
            }
            ScannerState::Body { left } => {
                let taken = usize::try_from(left).map_or(piece.len(), |left| piece.len().min(left));
                if let Some(command) = &mut self.command {
                    command.push(&piece[..taken]);
                }
                self.continue_body(left - taken as u64);
                Ok(taken)
            }
        }
    }

    fn begin_body(&mut self, header: FrameHeader) -> Result<(), ZmtpError> {
        let length = header.body_bytes;
        let limit =
            if self.commands == 0 { HANDSHAKE_BYTES.min(self.limits.message_bytes) } else { self.limits.message_bytes };
        if header.is_command() {
            self.commands += 1;
        } else {
            self.frames += 1;
            self.more = header.has_more();
        }
        let bytes = self.bytes.saturating_add(length);
        if bytes > limit {
            return Err(ZmtpError::TooLong { bytes, limit });
        }
        if self.frames > self.limits.message_frames {
            return Err(ZmtpError::TooManyFrames(self.limits.message_frames));
        }
        if !header.is_command() {
            self.bytes = bytes;
        }
        self.continue_body(length);
        Ok(())
    }

    /// Follows a body of which this many bytes are left.
    fn continue_body(&mut self, left: u64) {
        self.state = if left == 0 { BETWEEN_FRAMES } else { ScannerState::Body { left } };
        if left == 0 && !self.more {
            // The message is complete, and neither the next header nor a command is part of it.
            (self.frames, self.bytes) = (0, 0);
        }
        if left == 0
            && let Some(command) = &self.command
            && let Some(pong) = zmtp::pong(&command.bytes[..command.length])
        {
            self.pong = Some(pong);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zmtp::{FLAG_LONG, introduction};
    use proptest::prelude::*;

    const LIMITS: FrameLimits = FrameLimits { message_bytes: 1000, message_frames: 4 };

    fn greeting() -> Vec<u8> {
        introduction("PUSH", "")[..GREETING_BYTES].to_vec()
    }

    fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![flags];
        if flags & FLAG_LONG != 0 {
            frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
        } else {
            frame.push(u8::try_from(body.len()).unwrap());
        }
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn the_handshake_ends_after_the_first_command() {
        let stream = [greeting(), frame(FLAG_COMMAND, b"\x05READY"), frame(0, b"x")].concat();
        let mut scanner = ZmtpScanner::new(LIMITS);
        assert_eq!(scanner.feed_handshake(&stream), Ok(64 + 2 + 6));
        assert!(scanner.handshake_done());
    }

    #[test]
    fn limits_hold_for_the_whole_message() {
        let feed = |frames: &[Vec<u8>]| ZmtpScanner::new(LIMITS).feed(&[greeting(), frames.concat()].concat());
        assert_eq!(feed(&[frame(1, &[0; 200]), frame(2, &[0; 800]), frame(2, &[0; 1000])]), Ok(()));
        assert_eq!(
            feed(&[frame(1, &[0; 200]), frame(2, &[0; 801])]),
            Err(ZmtpError::TooLong { bytes: 1001, limit: 1000 })
        );
        assert_eq!(feed(&vec![frame(1, b""); 5]), Err(ZmtpError::TooManyFrames(4)));
        let mut huge = vec![FLAG_LONG];
        huge.extend_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(feed(&[huge]), Err(ZmtpError::TooLong { bytes: u64::MAX, limit: 1000 }));
    }

    #[test]
    fn a_complete_message_counts_no_more() {
        let mut scanner = ZmtpScanner::new(LIMITS);
        let message = frame(FLAG_LONG, &[0; 990]);
        scanner.feed(&[introduction("PUSH", "").to_vec(), message[..500].to_vec()].concat()).unwrap();
        assert_eq!(scanner.unfinished_message_bytes(), 990);
        scanner.feed(&message[500..]).unwrap();
        scanner.feed(&[0]).unwrap();
        assert_eq!(scanner.unfinished_message_bytes(), 0, "the next header tells nothing yet");
        scanner.feed(&[0]).unwrap();
        assert_eq!(scanner.feed(&[message, frame(FLAG_COMMAND, b"\x04PING\0\x0a0123456789")].concat()), Ok(()));
    }

    #[test]
    fn other_protocols_are_told_apart() {
        assert_eq!(ZmtpScanner::new(LIMITS).feed(b"GET / HTTP/1.1\r\n"), Err(ZmtpError::NotZmtp));
        assert_eq!(ZmtpScanner::new(LIMITS).feed(&[0xff; 64]), Err(ZmtpError::NotZmtp));
        let stream = [greeting(), vec![0x80]].concat();
        assert_eq!(ZmtpScanner::new(LIMITS).feed(&stream), Err(ZmtpError::Flags(UnknownFlags(0x80))));
    }

    proptest! {
        #[test]
        fn commands_are_taken_out_wherever_the_stream_is_cut(
            frames in prop::collection::vec((prop::bool::weighted(0.4), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            cuts in prop::collection::vec(1usize..50, 1..20),
        ) {
            let mut messages = introduction("PUSH", "").to_vec();
            let mut stream = messages.clone();
            let mut last_ping = None;
            for (is_ping, body) in &frames {
                if *is_ping {
                    let command = [b"\x04PING\0\x0a", &body[..]].concat();
                    stream.extend(frame(FLAG_COMMAND, &command));
                    last_ping = zmtp::pong(&command);
                } else {
                    stream.extend(frame(0, body));
                    messages.extend(frame(0, body));
                }
            }
            let (mut scanner, mut kept, mut pong) = (ZmtpScanner::new(LIMITS), Vec::new(), None);
            let mut rest = &mut stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let at = (*cut).min(rest.len());
                let (piece, after) = rest.split_at_mut(at);
                let bytes = scanner.take_commands_out(piece).unwrap();
                kept.extend_from_slice(&piece[..bytes]);
                pong = scanner.take_pong().or(pong);
                rest = after;
            }
            prop_assert!(scanner.is_between_messages());
            prop_assert_eq!((kept, pong), (messages, last_ping));
        }

        #[test]
        fn the_verdict_does_not_depend_on_where_the_stream_is_cut(
            bodies in prop::collection::vec((any::<bool>(), 0usize..255), 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            cuts in prop::collection::vec(1usize..50, 1..100),
        ) {
            let mut stream = greeting();
            for (more, length) in bodies {
                stream.extend(frame(u8::from(more), &vec![7; length]));
            }
            stream.extend(tail);
            let whole = ZmtpScanner::new(LIMITS).feed(&stream);
            let mut scanner = ZmtpScanner::new(LIMITS);
            let mut rest = &stream[..];
            let mut verdict = Ok(());
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() || verdict.is_err() {
                    break;
                }
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                verdict = scanner.feed(piece);
                rest = after;
            }
            prop_assert_eq!(verdict, whole);
        }
    }
}
