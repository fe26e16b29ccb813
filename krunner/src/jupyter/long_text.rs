//! The text of a `stream` message that is too long to be held: taken out of its JSON while that arrives.
//!
//! ```text
//! { "name" : "stdout" , "text" : "............................" }
//! └ key ─┘   └ name ─┘           └ decoded and passed on as read ┘
//! ```
//!
//! Other members are passed over, whatever they hold. A kernel that sends the text before the name has it
//! taken for standard output. Pure.

use crate::process::Stream;

/// Keys and names beyond this are none that we know.
const MAX_NAME_BYTES: usize = 64;

/// The JSON is none, or no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed stream message")]
pub(super) struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParserState {
    Start,
    /// A key, or the end of the object.
    Member,
    Key(Escape),
    Colon,
    Value,
    Name(Escape),
    Text(Escape),
    /// A value of no interest, so deep in brackets.
    Other {
        depth: u32,
    },
    OtherString {
        depth: u32,
        escaped: bool,
    },
    /// A comma, or the end of the object.
    Next,
    End,
}

/// Within a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Backslash,
    /// After `\u` and so many hex digits.
    Unicode {
        digits: u8,
        unit: u16,
    },
}

/// Decodes one message.
#[derive(Debug)]
pub(super) struct LongText {
    state: ParserState,
    /// The key or name that is being read.
    word: Vec<u8>,
    stream: Stream,
    /// The first half of a surrogate pair.
    high: Option<u16>,
}

impl LongText {
    pub(super) fn new() -> Self {
        Self { state: ParserState::Start, word: Vec::new(), stream: Stream::Stdout, high: None }
    }

    /// Where the text belongs, as far as is known.
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// Reads on; what was found of the text is added to `text`.
    pub(super) fn feed(&mut self, piece: &[u8], text: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut rest = piece;
        while let Some((&byte, after)) = rest.split_first() {
            // The bulk of all bytes is plain text.
            if self.state == ParserState::Text(Escape::None) && self.high.is_none() {
                let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(rest.len());
                text.extend_from_slice(&rest[..plain]);
                if plain > 0 {
                    rest = &rest[plain..];
                    continue;
                }
            }
            self.step(byte, text)?;
            rest = after;
        }
        Ok(())
    }

    #[expect(clippy::match_same_arms, reason = "a line for each transition")]
    fn step(&mut self, byte: u8, text: &mut Vec<u8>) -> Result<(), Malformed> {
        self.state = match (self.state, byte) {
            (ParserState::Key(escape), _) => self.in_word(escape, byte).map_or(ParserState::Colon, ParserState::Key),
            (ParserState::Name(escape), _) => self.in_word(escape, byte).map_or_else(
                || {
                    self.stream = if self.word == b"stderr" { Stream::Stderr } else { Stream::Stdout };
                    ParserState::Next
                },
                ParserState::Name,
            ),
            (ParserState::Text(escape), _) => {
                self.in_string(escape, byte, text).map_or(ParserState::Next, ParserState::Text)
            }
            (ParserState::OtherString { depth, escaped: true }, _) => {
                ParserState::OtherString { depth, escaped: false }
            }
            (ParserState::OtherString { depth, .. }, b'\\') => ParserState::OtherString { depth, escaped: true },
            (ParserState::OtherString { depth: 0, .. }, b'"') => ParserState::Next,
            (ParserState::OtherString { depth, .. }, b'"') => ParserState::Other { depth },
            (ParserState::OtherString { .. }, _) => self.state,
            (_, b' ' | b'\t' | b'\r' | b'\n') => match self.state {
                ParserState::Other { depth: 0 } => ParserState::Next,
                state => state,
            },
            (ParserState::Start, b'{') => ParserState::Member,
            (ParserState::Member, b'"') => {
                self.word.clear();
                ParserState::Key(Escape::None)
            }
            (ParserState::Member | ParserState::Next | ParserState::Other { depth: 0 }, b'}') => ParserState::End,
            (ParserState::Next | ParserState::Other { depth: 0 }, b',') => ParserState::Member,
            (ParserState::Colon, b':') => ParserState::Value,
            (ParserState::Value, b'"') => match self.word.as_slice() {
                b"text" => ParserState::Text(Escape::None),
                b"name" => {
                    self.word.clear();
                    ParserState::Name(Escape::None)
                }
                _ => ParserState::OtherString { depth: 0, escaped: false },
            },
            (ParserState::Value, b'{' | b'[') => ParserState::Other { depth: 1 },
            (ParserState::Other { depth }, b'{' | b'[') => ParserState::Other { depth: depth + 1 },
            (ParserState::Other { depth: 1 }, b'}' | b']') => ParserState::Next,
            (ParserState::Other { depth }, b'}' | b']') => {
                ParserState::Other { depth: depth.checked_sub(1).ok_or(Malformed)? }
            }
            (ParserState::Other { depth }, b'"') => ParserState::OtherString { depth, escaped: false },
            (ParserState::Value, _) => ParserState::Other { depth: 0 },
            (ParserState::Other { .. }, _) => self.state,
            _ => return Err(Malformed),
        };
        Ok(())
    }

    /// Within a key or name, whose escapes are not decoded.
    fn in_word(&mut self, escape: Escape, byte: u8) -> Option<Escape> {
        match (escape, byte) {
            (Escape::None, b'"') => return None,
            (Escape::None, b'\\') => {
                // Kept, so that no word with an escape is taken for one that we know.
                self.keep(byte);
                return Some(Escape::Backslash);
            }
            _ => self.keep(byte),
        }
        Some(Escape::None)
    }

    fn keep(&mut self, byte: u8) {
        if self.word.len() < MAX_NAME_BYTES {
            self.word.push(byte);
        }
    }

    /// Within the text; `None` at its end.
    fn in_string(&mut self, escape: Escape, byte: u8, text: &mut Vec<u8>) -> Option<Escape> {
        match (escape, byte) {
            (Escape::None, b'\\') => return Some(Escape::Backslash),
            (Escape::Backslash, b'u') => return Some(Escape::Unicode { digits: 0, unit: 0 }),
            (Escape::Unicode { digits, unit }, _) => {
                let digit = char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()).unwrap_or(0);
                let unit = unit << 4 | digit;
                if digits < 3 {
                    return Some(Escape::Unicode { digits: digits + 1, unit });
                }
                self.unit(unit, text);
                return Some(Escape::None);
            }
            _ => self.flush_surrogate(text),
        }
        match (escape, byte) {
            (Escape::None, b'"') => return None,
            (Escape::None, _) => text.push(byte),
            (_, b'b') => text.push(8),
            (_, b'f') => text.push(12),
            (_, b'n') => text.push(b'\n'),
            (_, b'r') => text.push(b'\r'),
            (_, b't') => text.push(b'\t'),
            (_, other) => text.push(other),
        }
        Some(Escape::None)
    }

    /// A UTF-16 unit: a character, or half of one.
    fn unit(&mut self, unit: u16, text: &mut Vec<u8>) {
        if let Some(high) = self.high {
            if let Some(Ok(character)) = char::decode_utf16([high, unit]).next() {
                self.high = None;
                return put(character, text);
            }
            self.flush_surrogate(text);
        }
        match char::decode_utf16([unit]).next() {
            Some(Ok(character)) => put(character, text),
            _ if (0xd800..0xdc00).contains(&unit) => self.high = Some(unit),
            _ => put(char::REPLACEMENT_CHARACTER, text),
        }
    }

    fn flush_surrogate(&mut self, text: &mut Vec<u8>) {
        if self.high.take().is_some() {
            put(char::REPLACEMENT_CHARACTER, text);
        }
    }
}

fn put(character: char, text: &mut Vec<u8>) {
    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn decoded(json: &[u8], piece_bytes: usize) -> (Stream, Vec<u8>) {
        let (mut decoder, mut text) = (LongText::new(), Vec::new());
        for piece in json.chunks(piece_bytes) {
            decoder.feed(piece, &mut text).unwrap();
        }
        assert_eq!(decoder.state, ParserState::End);
        (decoder.stream(), text)
    }

    #[test]
    fn escapes_are_decoded_wherever_the_pieces_end() {
        let json = br#" {"name":"stderr","text":"a\u00e9\ud83d\ude00\ud83d.\ud83d\ud83d\ude00\ude00\n\\\"\/"} "#;
        for piece_bytes in 1..json.len() {
            let (stream, text) = decoded(json, piece_bytes);
            assert_eq!(stream, Stream::Stderr);
            assert_eq!(String::from_utf8(text).unwrap(), "aé😀\u{fffd}.\u{fffd}😀\u{fffd}\n\\\"/");
        }
    }

    #[test]
    fn a_key_with_an_escape_is_not_taken_for_another() {
        let json = br#"{"\text":"no","na\me":"stderr","text":"yes"}"#;
        assert_eq!(decoded(json, 5), (Stream::Stdout, b"yes".to_vec()));
        let mut decoder = LongText::new();
        decoder.feed(&[b"{\"", &b"\\\\".repeat(1000)[..]].concat(), &mut Vec::new()).unwrap();
        assert!(decoder.word.len() <= MAX_NAME_BYTES);
    }

    #[test]
    fn other_members_are_passed_over() {
        let json = br#"{"a":[{"text":"no"},"]\"}"],"b":1.5,"c":true , "d":"\"text\":","e":{},"text":"yes","f":null}"#;
        assert_eq!(decoded(json, 7), (Stream::Stdout, b"yes".to_vec()));
    }

    #[test]
    fn what_is_no_object_is_told() {
        let fed = |json: &[u8]| LongText::new().feed(json, &mut Vec::new());
        assert_eq!([fed(b"[1]"), fed(b"\"x\""), fed(b"{1:2}"), fed(b"{\"a\" 1}")], [Err(Malformed); 4]);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<i32>().prop_map(Value::from), ".*".prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".*", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_text_comes_through(text in ".*", other in value(), ascii: bool, piece_bytes in 1usize..20) {
            let mut json = json!({"a": other, "name": "stderr", "text": text}).to_string();
            if ascii {
                json = json.encode_utf16().map(|unit| match u8::try_from(unit) {
                    Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
                    _ => format!("\\u{unit:04x}"),
                }).collect();
            }
            prop_assert_eq!(decoded(json.as_bytes(), piece_bytes), (Stream::Stderr, text.into_bytes()));
        }

        #[test]
        fn nothing_makes_it_panic(json in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = LongText::new().feed(&json, &mut Vec::new());
        }
    }
}
