//! Reading along with a ZMTP stream: where frames begin and how long they claim to be.
//!
//! ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>): a greeting of 64 bytes, then frames of one flags
//! byte (1 = more, 2 = long, 4 = command), a length of 1 or 8 bytes, and a body. Nothing is
//! interpreted beyond that.

/// Bytes of the greeting.
const GREETING_BYTES: usize = 64;

const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;
const FLAG_MORE: u8 = 1;
const KNOWN_FLAGS: u8 = FLAG_LONG | FLAG_COMMAND | FLAG_MORE;

/// What a peer may send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of all frames of one message together.
    pub(super) message_bytes: u64,
    /// Frames of one message.
    pub(super) message_frames: u32,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ZmtpError {
    #[error("it does not speak ZMTP")]
    NotZmtp,
    #[error("a frame with unknown flags {0:#04x}")]
    Flags(u8),
    #[error("a message of {bytes} bytes or more; at most {limit} are taken")]
    TooLong { bytes: u64, limit: u64 },
    #[error("a message of more than {0} frames")]
    TooManyFrames(u32),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Greeting { seen: usize },
    Flags,
    Length { flags: u8, seen: u8, value: u64 },
    Body { left: u64 },
}

/// Follows one direction of a connection.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    limits: Limits,
    frames: u32,
    bytes: u64,
    more: bool,
    commands: u64,
}

impl Scanner {
    pub(super) fn new(limits: Limits) -> Self {
        Self { state: State::Greeting { seen: 0 }, limits, frames: 0, bytes: 0, more: false, commands: 0 }
    }

    /// Reads on. Call it with every byte of the stream, in pieces of any size.
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

    /// Whether greeting and READY command have gone by.
    pub(super) fn handshake_done(&self) -> bool {
        self.commands > 0 && matches!(self.state, State::Flags)
    }

    /// What the body that is being read still lacks.
    pub(super) fn body_left(&self) -> u64 {
        if let State::Body { left } = self.state { left } else { 0 }
    }

    /// Consumes at least one byte of a piece that has one.
    fn step(&mut self, piece: &[u8]) -> Result<usize, ZmtpError> {
        match self.state {
            State::Greeting { seen } => {
                let taken = piece.len().min(GREETING_BYTES - seen);
                // The signature is ff, eight bytes of padding, 7f.
                let wrong = |position: usize, value: u8| {
                    position.checked_sub(seen).and_then(|at| piece.get(at)).is_some_and(|byte| *byte != value)
                };
                if wrong(0, 0xff) || wrong(9, 0x7f) {
                    return Err(ZmtpError::NotZmtp);
                }
                let seen = seen + taken;
                self.state = if seen == GREETING_BYTES { State::Flags } else { State::Greeting { seen } };
                Ok(taken)
            }
            State::Flags => {
                let flags = piece[0];
                if flags & !KNOWN_FLAGS != 0 {
                    return Err(ZmtpError::Flags(flags));
                }
                self.state = State::Length { flags, seen: 0, value: 0 };
                Ok(1)
            }
            State::Length { flags, seen, value } => {
                let value = value << 8 | u64::from(piece[0]);
                let width = if flags & FLAG_LONG != 0 { 8 } else { 1 };
                if seen + 1 < width {
                    self.state = State::Length { flags, seen: seen + 1, value };
                } else {
                    self.begin_body(flags, value)?;
                }
                Ok(1)
            }
            State::Body { left } => {
                let taken = usize::try_from(left).map_or(piece.len(), |left| piece.len().min(left));
                let left = left - taken as u64;
                self.state = if left == 0 { State::Flags } else { State::Body { left } };
                Ok(taken)
            }
        }
    }

    fn begin_body(&mut self, flags: u8, length: u64) -> Result<(), ZmtpError> {
        if flags & FLAG_COMMAND != 0 {
            self.commands += 1;
        } else if !self.more {
            (self.frames, self.bytes) = (0, 0);
        }
        if flags & FLAG_COMMAND == 0 {
            self.frames += 1;
            self.more = flags & FLAG_MORE != 0;
        }
        let bytes = self.bytes.saturating_add(length);
        if bytes > self.limits.message_bytes {
            return Err(ZmtpError::TooLong { bytes, limit: self.limits.message_bytes });
        }
        if self.frames > self.limits.message_frames {
            return Err(ZmtpError::TooManyFrames(self.limits.message_frames));
        }
        if flags & FLAG_COMMAND == 0 {
            self.bytes = bytes;
        }
        self.state = if length == 0 { State::Flags } else { State::Body { left: length } };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { message_bytes: 1000, message_frames: 4 };

    fn greeting() -> Vec<u8> {
        let mut greeting = vec![0; GREETING_BYTES];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting
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
        let mut scanner = Scanner::new(LIMITS);
        assert_eq!(scanner.feed_handshake(&stream), Ok(64 + 2 + 6));
        assert!(scanner.handshake_done());
    }

    #[test]
    fn limits_hold_for_the_whole_message() {
        let feed = |frames: &[Vec<u8>]| Scanner::new(LIMITS).feed(&[greeting(), frames.concat()].concat());
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
    fn other_protocols_are_told_apart() {
        assert_eq!(Scanner::new(LIMITS).feed(b"GET / HTTP/1.1\r\n"), Err(ZmtpError::NotZmtp));
        assert_eq!(Scanner::new(LIMITS).feed(&[0xff; 64]), Err(ZmtpError::NotZmtp));
        let stream = [greeting(), vec![0x80]].concat();
        assert_eq!(Scanner::new(LIMITS).feed(&stream), Err(ZmtpError::Flags(0x80)));
    }

    proptest! {
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
            let whole = Scanner::new(LIMITS).feed(&stream);
            let mut scanner = Scanner::new(LIMITS);
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
