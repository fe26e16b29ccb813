//! Parses what a subscriber sends: a greeting, and frames small enough to be buffered whole. Pure; `socket/scanner.rs`
//! follows streams of any size.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::zmtp::{FrameHeader, GREETING_BYTES, UnknownFlags, fits_greeting, pong, property, ready_properties};

/// A READY command with an identity, or a subscription, is far smaller.
const MAX_FRAME_BYTES: u64 = 1024;

/// A violation of the protocol that closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("not a ZMTP 3 peer with the NULL mechanism")]
    NotZmtp,
    #[error("frame of {0} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLong(u64),
    #[error(transparent)]
    Flags(#[from] UnknownFlags),
    #[error("not a SUB socket")]
    NotWanted,
}

/// A complete frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SubscriberFrame {
    header: FrameHeader,
    body: Bytes,
}

impl SubscriberFrame {
    /// The body, if this is a message of a single frame.
    pub(super) fn message(&self) -> Option<&[u8]> {
        (!self.header.is_command() && !self.header.has_more()).then_some(&self.body[..])
    }

    /// The frame that answers this one, if it is a PING.
    pub(super) fn pong(&self) -> Option<BytesMut> {
        if self.header.is_command() { pong(&self.body) } else { None }
    }

    /// Checks that this is the READY command of one of these socket types.
    pub(super) fn check_ready(&self, socket_types: &[&str]) -> Result<(), FrameError> {
        let is_command = self.header.is_command();
        let properties = ready_properties(&self.body).filter(|_| is_command).ok_or(FrameError::NotWanted)?;
        let value = property(properties, "socket-type").ok_or(FrameError::NotWanted)?;
        let wanted = socket_types.iter().any(|wanted| wanted.as_bytes() == value);
        if wanted { Ok(()) } else { Err(FrameError::NotWanted) }
    }
}

/// Removes the peer's greeting from the buffer; `false` if it is incomplete.
pub(super) fn take_greeting(buffer: &mut BytesMut) -> Result<bool, FrameError> {
    let greeting = &buffer[..buffer.len().min(GREETING_BYTES)];
    if !fits_greeting(0, greeting) {
        return Err(FrameError::NotZmtp);
    }
    if greeting.len() < GREETING_BYTES {
        return Ok(false);
    }
    buffer.advance(GREETING_BYTES);
    Ok(true)
}

/// Removes a frame from the buffer; `None` if it is incomplete.
pub(super) fn take_frame(buffer: &mut BytesMut) -> Result<Option<SubscriberFrame>, FrameError> {
    let Some((header, header_bytes)) = FrameHeader::parse(buffer)? else { return Ok(None) };
    let length = header.body_bytes;
    let Some(body_bytes) = usize::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES) else {
        return Err(FrameError::TooLong(length));
    };
    if buffer.len() < header_bytes + body_bytes {
        return Ok(None);
    }
    buffer.advance(header_bytes);
    Ok(Some(SubscriberFrame { header, body: buffer.split_to(body_bytes).freeze() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zmtp::{FLAG_COMMAND, FLAG_LONG, introduction, put_frame};
    use proptest::prelude::*;

    fn read_all(stream: &[u8], cuts: &[usize]) -> Result<Vec<SubscriberFrame>, FrameError> {
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
        let frames = read_all(&introduction("SUB", ""), &[1]).unwrap();
        assert_eq!(frames[0].check_ready(&["SUB", "XSUB"]), Ok(()));
        let frames = read_all(&introduction("PULL", ""), &[7]).unwrap();
        assert_eq!(frames[0].check_ready(&["SUB", "XSUB"]), Err(FrameError::NotWanted));
    }

    #[test]
    fn strangers_and_long_frames_are_refused() {
        assert_eq!(read_all(b"GET / HTTP/1.1\r\n", &[16]), Err(FrameError::NotZmtp));
        let mut encrypted = introduction("SUB", "");
        encrypted[12..17].copy_from_slice(b"CURVE");
        assert_eq!(read_all(&encrypted, &[64]), Err(FrameError::NotZmtp));
        let mut long = introduction("SUB", "");
        long.extend([FLAG_LONG]);
        long.extend(u64::MAX.to_be_bytes());
        assert_eq!(read_all(&long, &[5]), Err(FrameError::TooLong(u64::MAX)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..5),
            cuts in prop::collection::vec(1usize..200, 1..20),
        ) {
            let mut stream = introduction("SUB", "");
            for body in &bodies {
                put_frame(&mut stream, 0, body);
            }
            let frames = read_all(&stream, &cuts).unwrap();
            let read: Vec<_> = frames[1..].iter().map(|frame| frame.message().unwrap().to_vec()).collect();
            prop_assert_eq!(read, bodies);
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_all(&[&introduction("SUB", "")[..], &bytes].concat(), &[13]);
            let _ = read_all(&bytes, &[3]);
            let header = FrameHeader { flags: FLAG_COMMAND, body_bytes: 6 + bytes.len() as u64 };
            let frame = SubscriberFrame { header, body: [b"\x05READY", &bytes[..]].concat().into() };
            let _ = frame.check_ready(&["SUB"]);
        }
    }
}
