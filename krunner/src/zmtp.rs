//! The bytes of ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) with the NULL mechanism: greeting, introduction, frame headers.
//!
//! ```text
//! greeting (64)                         frame
//! ff ........ 7f  3 .  NULL\0.. ......  flags  length (1, or 8 if LONG)  body
//! ```
//!
//! Pure parsing: the caller decides how much of a stream to buffer. The relay buffers nothing, the publisher buffers
//! small frames, and the Jupyter client checks the length first.

use bytes::{BufMut as _, BytesMut};

/// Length of the greeting that both sides send first.
pub(crate) const GREETING_BYTES: usize = 64;

/// Another frame of the same message follows.
pub(crate) const FLAG_MORE: u8 = 1;
/// The length has eight bytes, not one.
pub(crate) const FLAG_LONG: u8 = 2;
/// A command frame, not part of a message.
pub(crate) const FLAG_COMMAND: u8 = 4;

const SIGNATURE: (u8, u8) = (0xff, 0x7f);
const VERSION: u8 = 3;
const MECHANISM_AT: usize = 12;
const MECHANISM: &[u8; 20] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The name of the command after the greeting, with its length byte.
const READY: &[u8] = b"\x05READY";

/// The names of the heartbeat commands (ZMTP 3.1, <https://rfc.zeromq.org/spec/37/>). libzmq sends PINGs to peers of
/// any version.
const PING: &[u8] = b"\x04PING";
const PONG: &[u8] = b"\x04PONG";

/// A PING says after how much silence its sender may be taken for dead.
const TTL_BYTES: usize = 2;

/// Longer contexts are not allowed; what is beyond is ignored, as in libzmq.
const MAX_CONTEXT_BYTES: usize = 16;

/// The part of a PING that its answer depends on.
pub(crate) const MAX_PING_BYTES: usize = PING.len() + TTL_BYTES + MAX_CONTEXT_BYTES;

/// A frame header with reserved flag bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown frame flags {0:#04x}")]
pub(crate) struct UnknownFlags(pub u8);

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// A combination of the `FLAG_*` bits.
    pub flags: u8,
    /// The length of the body as the header states it.
    pub body_bytes: u64,
}

impl FrameHeader {
    /// Parses a header at the start of `bytes`; also returns the header's own length. `None` if it is incomplete.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, UnknownFlags> {
        let Some((&flags, rest)) = bytes.split_first() else { return Ok(None) };
        if flags & !(FLAG_MORE | FLAG_LONG | FLAG_COMMAND) != 0 {
            return Err(UnknownFlags(flags));
        }
        let length = if flags & FLAG_LONG == 0 {
            rest.first().map(|length| (u64::from(*length), 2))
        } else {
            rest.first_chunk().map(|length| (u64::from_be_bytes(*length), 9))
        };
        Ok(length.map(|(body_bytes, header_bytes)| (Self { flags, body_bytes }, header_bytes)))
    }

    /// Whether this is a command frame rather than part of a message.
    #[must_use]
    pub(crate) fn is_command(self) -> bool {
        self.flags & FLAG_COMMAND != 0
    }

    /// Whether another frame of the same message follows.
    #[must_use]
    pub(crate) fn has_more(self) -> bool {
        self.flags & FLAG_MORE != 0
    }
}

/// Whether `piece`, at offset `from` of a greeting, is compatible with ours.
#[must_use]
pub(crate) fn fits_greeting(from: usize, piece: &[u8]) -> bool {
    piece.iter().zip(from..).all(|(byte, at)| match at {
        0 => *byte == SIGNATURE.0,
        9 => *byte == SIGNATURE.1,
        10 => *byte >= VERSION,
        MECHANISM_AT..32 => *byte == MECHANISM[at - MECHANISM_AT],
        _ => true,
    })
}

/// The greeting and READY command of a socket type. The identity is at most 255 bytes and may be empty.
#[must_use]
pub(crate) fn introduction(socket_type: &str, identity: &str) -> BytesMut {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[9], greeting[10]) = (SIGNATURE.0, SIGNATURE.1, VERSION);
    greeting[MECHANISM_AT..][..MECHANISM.len()].copy_from_slice(MECHANISM);
    let mut ready = BytesMut::from(READY);
    for (name, value) in [("Socket-Type", socket_type), ("Identity", identity)] {
        ready.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        ready.put_slice(name.as_bytes());
        ready.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        ready.put_slice(value.as_bytes());
    }
    let mut all = BytesMut::from(&greeting[..]);
    put_frame(&mut all, FLAG_COMMAND, &ready);
    all
}

/// The properties of a READY command; `None` for another command.
#[must_use]
pub(crate) fn ready_properties(command: &[u8]) -> Option<&[u8]> {
    command.strip_prefix(READY)
}

/// The frame that answers a PING, with the same context; `None` for another command.
///
/// The time to live in the PING is not used: TCP keepalive ends the connection of a host that disappeared.
#[must_use]
pub(crate) fn pong(command: &[u8]) -> Option<BytesMut> {
    let context = command.strip_prefix(PING)?.get(TTL_BYTES..)?;
    let context = &context[..context.len().min(MAX_CONTEXT_BYTES)];
    let mut frame = BytesMut::new();
    put_frame(&mut frame, FLAG_COMMAND, &[PONG, context].concat());
    Some(frame)
}

/// The value of a property. Names are case-insensitive.
#[must_use]
pub(crate) fn property<'a>(mut properties: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
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

/// Appends a frame and sets `FLAG_LONG` as needed.
pub(crate) fn put_frame(buffer: &mut BytesMut, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(short) => {
            buffer.put_u8(flags);
            buffer.put_u8(short);
        }
        Err(_) => {
            buffer.put_u8(flags | FLAG_LONG);
            buffer.put_u64(body.len() as u64);
        }
    }
    buffer.put_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_introduction_is_understood() {
        let said = introduction("SUB", "me");
        assert!(fits_greeting(0, &said[..GREETING_BYTES]));
        let (header, header_bytes) = FrameHeader::parse(&said[GREETING_BYTES..]).unwrap().unwrap();
        let body = &said[GREETING_BYTES + header_bytes..];
        assert!(header.is_command() && header.body_bytes == body.len() as u64);
        let properties = ready_properties(body).unwrap();
        assert_eq!(property(properties, "socket-type"), Some(&b"SUB"[..]));
        assert_eq!(property(properties, "IDENTITY"), Some(&b"me"[..]));
        assert_eq!(property(properties, "Resource"), None);
    }

    #[test]
    fn a_ping_is_answered_with_its_context() {
        assert_eq!(pong(b"\x04PING\0\x0a").unwrap(), &b"\x04\x05\x04PONG"[..]);
        assert_eq!(pong(b"\x04PING\0\x0aabc").unwrap(), &b"\x04\x08\x04PONGabc"[..]);
        let long = [b"\x04PING\0\x0a", &[b'x'; 30][..]].concat();
        assert_eq!(pong(&long).unwrap(), [&b"\x04\x15\x04PONG"[..], &[b'x'; 16]].concat());
        for other in [&b"\x04PING\0"[..], b"\x04PONG\0\0", b"\x05READY", b""] {
            assert_eq!(pong(other), None);
        }
    }

    #[test]
    fn other_greetings_are_told_apart_at_the_first_byte_that_differs() {
        let ours = introduction("SUB", "");
        let mut other = ours.clone();
        other[12..17].copy_from_slice(b"CURVE");
        assert!(fits_greeting(0, &other[..12]) && !fits_greeting(12, &other[12..13]));
        let mut old = ours.clone();
        old[10] = 1;
        assert!(!fits_greeting(0, &old[..11]));
        let mut newer = ours;
        newer[10] = 4;
        assert!(fits_greeting(0, &newer[..GREETING_BYTES]));
        assert!(!fits_greeting(0, b"GET / HTTP/1.1"));
    }

    proptest! {
        #[test]
        fn headers_have_an_inverse(body in prop::collection::vec(any::<u8>(), 0..600), more in any::<bool>()) {
            let mut bytes = BytesMut::new();
            put_frame(&mut bytes, u8::from(more), &body);
            let header_bytes = bytes.len() - body.len();
            for cut in 0..header_bytes {
                prop_assert_eq!(FrameHeader::parse(&bytes[..cut]), Ok(None));
            }
            let (header, parsed_bytes) = FrameHeader::parse(&bytes).unwrap().unwrap();
            prop_assert_eq!((header.body_bytes, parsed_bytes), (body.len() as u64, header_bytes));
            prop_assert_eq!((header.has_more(), header.is_command()), (more, false));
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = FrameHeader::parse(&bytes);
            let _ = property(&bytes, "socket-type");
            let _ = fits_greeting(7, &bytes);
        }
    }
}
