//! ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) as far as a publisher needs it: the introduction, and whole
//! frames that are small on the way in. Pure; [`super::zmtp`] follows streams of any size.

use bytes::{Buf as _, Bytes, BytesMut};

const GREETING_BYTES: usize = 64;
const MECHANISM: &[u8; 20] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// A READY command with an identity, or a subscription, is far below.
const MAX_FRAME_BYTES: u64 = 1024;

const SHORT_BYTES: usize = 255;

/// Why a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("it does not speak ZMTP 3 without encryption")]
    NotZmtp,
    #[error("a frame of {0} bytes; at most {MAX_FRAME_BYTES} are taken")]
    TooLong(u64),
    #[error("a frame with unknown flags {0:#04x}")]
    Flags(u8),
    #[error("it is no subscriber")]
    NotWanted,
}

/// A frame that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    flags: u8,
    body: Bytes,
}

impl Frame {
    /// The body of a message of one frame.
    pub(super) fn message(&self) -> Option<&[u8]> {
        (self.flags & (FLAG_COMMAND | FLAG_MORE) == 0).then_some(&self.body[..])
    }

    /// Whether this is the READY of one of these socket types.
    pub(super) fn check_ready(&self, socket_types: &[&str]) -> Result<(), FrameError> {
        let is_command = self.flags & FLAG_COMMAND != 0;
        let properties = self.body.strip_prefix(b"\x05READY").filter(|_| is_command).ok_or(FrameError::NotWanted)?;
        let value = property(properties, "socket-type").ok_or(FrameError::NotWanted)?;
        let wanted = socket_types.iter().any(|wanted| wanted.as_bytes() == value);
        if wanted { Ok(()) } else { Err(FrameError::NotWanted) }
    }
}

/// The value of a property; names are compared without regard to case.
fn property<'a>(mut properties: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    loop {
        let (length, rest) = properties.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        if name.eq_ignore_ascii_case(wanted.as_bytes()) {
            return Some(value);
        }
        properties = rest;
    }
}

/// Greeting and READY of a socket type.
pub(super) fn introduction(socket_type: &str) -> Vec<u8> {
    let mut bytes = vec![0; GREETING_BYTES];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[12..12 + MECHANISM.len()].copy_from_slice(MECHANISM);
    let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    ready.extend(u8::try_from(socket_type.len()));
    ready.extend_from_slice(socket_type.as_bytes());
    bytes.push(FLAG_COMMAND);
    bytes.extend(u8::try_from(ready.len()));
    bytes.extend(ready);
    bytes
}

/// A message of one frame.
pub(super) fn message(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + body.len());
    if let (true, Ok(length)) = (body.len() <= SHORT_BYTES, u8::try_from(body.len())) {
        bytes.extend([0, length]);
    } else {
        bytes.push(FLAG_LONG);
        bytes.extend((body.len() as u64).to_be_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

/// Takes the peer's greeting off the buffer; `false` when more of it has to come.
pub(super) fn take_greeting(buffer: &mut BytesMut) -> Result<bool, FrameError> {
    let wrong = |at: usize, right: fn(u8) -> bool| buffer.get(at).is_some_and(|byte| !right(*byte));
    if wrong(0, |byte| byte == 0xff) || wrong(9, |byte| byte == 0x7f) || wrong(10, |byte| byte >= 3) {
        return Err(FrameError::NotZmtp);
    }
    if buffer.len() < GREETING_BYTES {
        return Ok(false);
    }
    if buffer[12..12 + MECHANISM.len()] != MECHANISM[..] {
        return Err(FrameError::NotZmtp);
    }
    buffer.advance(GREETING_BYTES);
    Ok(true)
}

/// Takes a frame off the buffer, if it is there whole.
pub(super) fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some((&flags, rest)) = buffer.split_first() else { return Ok(None) };
    if flags & !(FLAG_MORE | FLAG_LONG | FLAG_COMMAND) != 0 {
        return Err(FrameError::Flags(flags));
    }
    let (length, header_bytes) = if flags & FLAG_LONG == 0 {
        let Some(length) = rest.first() else { return Ok(None) };
        (u64::from(*length), 2)
    } else {
        let Some(length) = rest.first_chunk::<8>() else { return Ok(None) };
        (u64::from_be_bytes(*length), 9)
    };
    let Some(body_bytes) = usize::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES) else {
        return Err(FrameError::TooLong(length));
    };
    if buffer.len() < header_bytes + body_bytes {
        return Ok(None);
    }
    buffer.advance(header_bytes);
    Ok(Some(Frame { flags, body: buffer.split_to(body_bytes).freeze() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(stream: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let (mut buffer, mut frames, mut greeted) = (BytesMut::new(), Vec::new(), false);
        let mut rest = stream;
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            buffer.extend_from_slice(piece);
            greeted = greeted || take_greeting(&mut buffer)?;
            while greeted && let Some(frame) = take_frame(&mut buffer)? {
                frames.push(frame);
            }
            if after.is_empty() {
                break;
            }
            rest = after;
        }
        Ok(frames)
    }

    #[test]
    fn an_introduction_is_understood_and_checked() {
        let frames = read_all(&introduction("SUB"), &[1]).unwrap();
        assert_eq!(frames[0].check_ready(&["SUB", "XSUB"]), Ok(()));
        let frames = read_all(&introduction("PULL"), &[7]).unwrap();
        assert_eq!(frames[0].check_ready(&["SUB", "XSUB"]), Err(FrameError::NotWanted));
    }

    #[test]
    fn strangers_and_long_frames_are_refused() {
        assert_eq!(read_all(b"GET / HTTP/1.1\r\n", &[16]), Err(FrameError::NotZmtp));
        let mut encrypted = introduction("SUB");
        encrypted[12..17].copy_from_slice(b"CURVE");
        assert_eq!(read_all(&encrypted, &[64]), Err(FrameError::NotZmtp));
        let mut long = introduction("SUB");
        long.push(FLAG_LONG);
        long.extend(u64::MAX.to_be_bytes());
        assert_eq!(read_all(&long, &[5]), Err(FrameError::TooLong(u64::MAX)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..5),
            cuts in prop::collection::vec(1usize..200, 1..20),
        ) {
            let mut stream = introduction("SUB");
            for body in &bodies {
                stream.extend(message(body));
            }
            let frames = read_all(&stream, &cuts).unwrap();
            let read: Vec<_> = frames[1..].iter().map(|frame| frame.message().unwrap().to_vec()).collect();
            prop_assert_eq!(read, bodies);
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_all(&[&introduction("SUB")[..], &bytes].concat(), &[13]);
            let _ = read_all(&bytes, &[3]);
            let frame = Frame { flags: FLAG_COMMAND, body: [b"\x05READY", &bytes[..]].concat().into() };
            let _ = frame.check_ready(&["SUB"]);
        }
    }
}
