//! A file as the rules see it: its path, its text, and its text with comments and literals blanked
//! out, so that a rule that looks for a word finds code only.

use std::path::Path;

/// One file of the tree.
#[derive(Debug)]
pub(super) struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let mut source = Self { path: path.to_owned(), text: text.to_owned(), code: String::new() };
        if source.is_rust() {
            source.code = code_only(text);
        }
        source
    }

    /// Path below the workspace's root, with `/`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Rust code as long as the text, line for line, with comments and the insides of literals as spaces.
    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// The code ahead of the unit tests at the end of a file.
    pub(super) fn code_without_tests(&self) -> &str {
        match self.code.find("\n#[cfg(test)]\nmod ") {
            Some(start) => &self.code[..start],
            None => &self.code,
        }
    }

    pub(super) fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }

    /// The line, from 1, of an offset into text or code.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        1 + self.text[..offset].matches('\n').count()
    }
}

/// Whether a byte can be part of an identifier.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Offsets at which `needle` stands with no identifier running into either of its ends.
pub(super) fn find_words<'a>(code: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(needle).map(|(offset, _)| offset).filter(move |&offset| {
        let end = offset + needle.len();
        let open_left = offset == 0 || !is_word(bytes[offset - 1]) || !is_word(needle.as_bytes()[0]);
        let open_right = end == bytes.len() || !is_word(bytes[end]) || !is_word(bytes[end - 1]);
        open_left && open_right
    })
}

/// Blanks comments and literals, as [`Source::code`] describes.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => block_comment_end(bytes, at),
            b'r' if at == 0 || !is_word(bytes[at - 1]) || is_prefixed(bytes, at) => {
                raw_string_end(bytes, at).unwrap_or(at + 1)
            }
            b'"' => string_end(bytes, at),
            b'\'' => char_end(bytes, at).unwrap_or(at + 1),
            _ => at + 1,
        };
        if end > at + 1 {
            for byte in code[at..end].iter_mut().filter(|byte| **byte != b'\n') {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Only whole literals and comments were blanked, so what is left is whole characters.
    String::from_utf8(code).unwrap_or_default()
}

/// Whether the `r` at `at` follows the `b` or `c` of a raw byte or C string.
fn is_prefixed(bytes: &[u8], at: usize) -> bool {
    matches!(bytes[at - 1], b'b' | b'c') && (at == 1 || !is_word(bytes[at - 2]))
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = at;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// `None` when the `r` at `at` opens no raw string.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|&&byte| byte == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close = [b"\"", "#".repeat(hashes).as_bytes()].concat();
    let length = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(bytes.len(), |length| open + 1 + length + close.len()))
}

/// `None` when the quote at `at` opens a lifetime.
fn char_end(bytes: &[u8], at: usize) -> Option<usize> {
    /// A character of four bytes, or an escape such as `\u{10ffff}`.
    const LONGEST: usize = 12;
    match bytes.get(at + 1)? {
        b'\\' => bytes[at + 3..].iter().take(LONGEST).position(|&byte| byte == b'\'').map(|length| at + 4 + length),
        first => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            (bytes.get(at + 1 + width) == Some(&b'\'')).then_some(at + 2 + width)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_spaces() {
        let code = code_only("let a = \"unsafe \\\" x\"; // unsafe\nb /* un /* safe */ */ c");
        assert!(code.starts_with("let a = ") && code.contains("; ") && code.ends_with(" c"));
        assert!(!code.contains("safe") && code.lines().count() == 2);
    }

    #[test]
    fn quotes_of_all_kinds_end_where_they_end() {
        for literal in ["'\"'", "'\\''", "'\\u{1f600}'", "'é'", "b'\"'", "r#\"a\"b\"#", "br\"\\\"", "\"a\\\\\""] {
            let code = code_only(&format!("f({literal}, x)"));
            assert!(code.ends_with(", x)"), "{literal}: {code}");
            assert_eq!(code.len(), literal.len() + 6);
        }
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_code() {
        let text = "fn f<'a>(x: &'a str, r#type: Bar) {}";
        assert_eq!(code_only(text), text);
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(find_words("unsafe_code unsafe {} my_unsafe", "unsafe").collect::<Vec<_>>(), [12]);
        assert_eq!(find_words("wire::x rewire::y", "wire::").collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn unit_tests_can_be_left_out() {
        let source = Source::new("a.rs", "fn a() {}\n\n#[cfg(test)]\nmod tests { fn b() {} }\n");
        assert!(source.code_without_tests().contains("fn a") && !source.code_without_tests().contains("fn b"));
        assert_eq!(source.line_of(source.code().find("fn b").unwrap()), 4);
    }
}
