//! Escapes text for HTML. Pure.

use std::fmt::{Display, Write as _};

/// Escapes text for element content and quoted attributes.
#[must_use]
pub(super) fn escape(text: &(impl Display + ?Sized)) -> String {
    let text = text.to_string();
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Would reorder the surrounding text (UAX #9).
            '\u{061c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "{}", character.escape_unicode());
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_marks_of_direction_become_text() {
        assert_eq!(escape("<b id=\"a\" c='d'>&amp;"), "&lt;b id=&quot;a&quot; c=&#39;d&#39;&gt;&amp;amp;");
        assert_eq!(escape("a\u{202e}b ü"), "a\\u{202e}b ü");
    }
}
