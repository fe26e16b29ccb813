//! The bytes of ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) with the NULL mechanism: greeting, introduction, frame headers.
//!
//! ```text
//! greeting (64)                         frame
//! ff ........ 7f  3 .  NULL\0.. ......  flags  length (1, or 8 if LONG)  body
//! ```
//!
//! Pure. Whoever follows a stream decides how much of it is ever in memory: the relay keeps nothing, a publisher takes
//! small frames whole, a kernel's client looks at the length first.

use bytes::{BufMut as _, BytesMut};

/// Of the greeting, with which both sides begin.
pub const GREETING_BYTES: usize = 64;

/// Another frame of the same message follows.
pub const FLAG_MORE: u8 = 1;
/// The length has eight bytes, not one.
pub const FLAG_LONG: u8 = 2;
/// No part of a message.
pub const FLAG_COMMAND: u8 = 4;

const SIGNATURE: (u8, u8) = (0xff, 0x7f);
const VERSION: u8 = 3;
const MECHANISM_AT: usize = 12;
const MECHANISM: &[u8; 20] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The command that follows the greeting, as its name is written.
const READY: &[u8] = b"\x05READY";

/// A frame says of itself what nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame with unknown flags {0:#04x}")]
pub struct UnknownFlags(pub u8);

/// How a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// See `FLAG_*`.
    pub flags: u8,
    /// What the body claims to have.
    pub body_bytes: u64,
}

impl Header {
    /// Reads one off the beginning; yields its own length, too. `None` when more of it has to come.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, UnknownFlags> {
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

    /// Whether it is a command, and no part of a message.
    #[must_use]
    pub fn is_command(self) -> bool {
        self.flags & FLAG_COMMAND != 0
    }

    /// Whether another frame of the same message follows.
    #[must_use]
    pub fn has_more(self) -> bool {
        self.flags & FLAG_MORE != 0
    }
}

/// Whether a piece of a greeting, from that position on, may be of a peer that speaks as we do.
#[must_use]
pub fn fits_greeting(from: usize, piece: &[u8]) -> bool {
    piece.iter().zip(from..).all(|(byte, at)| match at {
        0 => *byte == SIGNATURE.0,
        9 => *byte == SIGNATURE.1,
        10 => *byte >= VERSION,
        MECHANISM_AT..32 => *byte == MECHANISM[at - MECHANISM_AT],
        _ => true,
    })
}

/// Greeting and READY of a socket type; an identity may be empty, and has 255 bytes at most.
#[must_use]
pub fn introduction(socket_type: &str, identity: &str) -> BytesMut {
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

/// The properties of a READY command, given a command's body.
#[must_use]
pub fn ready_properties(command: &[u8]) -> Option<&[u8]> {
    command.strip_prefix(READY)
}

/// The value of a property; names are compared without regard to case.
#[must_use]
pub fn property<'a>(mut properties: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
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

/// Appends a frame; the flag for its length is set here.
pub fn put_frame(buffer: &mut BytesMut, flags: u8, body: &[u8]) {
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
        let (header, header_bytes) = Header::parse(&said[GREETING_BYTES..]).unwrap().unwrap();
        let body = &said[GREETING_BYTES + header_bytes..];
        assert!(header.is_command() && header.body_bytes == body.len() as u64);
        let properties = ready_properties(body).unwrap();
        assert_eq!(property(properties, "socket-type"), Some(&b"SUB"[..]));
        assert_eq!(property(properties, "IDENTITY"), Some(&b"me"[..]));
        assert_eq!(property(properties, "Resource"), None);
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
                prop_assert_eq!(Header::parse(&bytes[..cut]), Ok(None));
            }
            let (header, parsed_bytes) = Header::parse(&bytes).unwrap().unwrap();
            prop_assert_eq!((header.body_bytes, parsed_bytes), (body.len() as u64, header_bytes));
            prop_assert_eq!((header.has_more(), header.is_command()), (more, false));
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::parse(&bytes);
            let _ = property(&bytes, "socket-type");
            let _ = fits_greeting(7, &bytes);
        }
    }
}
