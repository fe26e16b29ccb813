//! Splits a template into text and fields. Pure.
//!
//! | template | [`Syntax::Format`] | [`Syntax::Shell`] |
//! |---|---|---|
//! | `{name}` | field | field |
//! | `{ name }`, `${{ name }}` | error, `${ name }` | field |
//! | `${...}`, with what is nested in it | `$` and a field | text |
//! | `{"a": {"b": 1}}` | error | text |
//! | `{{`, `}}` | `{`, `}` | `{`, `}` |
//! | a `}` that closes nothing | error | text |
//! | a `{` that is not closed | error | error, but not in `${` |
//!
//! Inside `${...}` and JSON each `}` closes the `{` before it, so `}}` there is two of them.

use super::template_error::TemplateError;

/// How braces are parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// As in Python's `str.format`.
    Format,
    /// For text that a shell may expand: shell expansions and JSON are kept as they are.
    Shell,
}

/// A part of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Literal(&'a str),
    Field(&'a str),
}

/// The parts of a template in order; iteration ends at an error.
pub(super) struct Pieces<'a> {
    rest: &'a str,
    syntax: Syntax,
    /// Open braces that are part of the text.
    open: Vec<OpenBrace<'a>>,
}

enum OpenBrace<'a> {
    Expansion,
    /// The template from the brace on.
    Json(&'a str),
}

impl<'a> Pieces<'a> {
    pub(super) fn of(template: &'a str, syntax: Syntax) -> Self {
        Self { rest: template, syntax, open: Vec::new() }
    }

    /// The part of the template that is left.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// Takes a doubled brace, which stands for one.
    fn take_double(&mut self) -> Piece<'a> {
        Piece::Literal(&self.take(2)[..1])
    }

    /// Parses a brace at the front; in shell text also a `${`.
    fn brace(&mut self) -> Result<Piece<'a>, TemplateError> {
        match self.syntax {
            Syntax::Format => self.format_brace(),
            Syntax::Shell if self.rest.starts_with('$') => Ok(self.expansion()),
            Syntax::Shell => self.shell_brace(),
        }
    }

    fn format_brace(&mut self) -> Result<Piece<'a>, TemplateError> {
        if self.rest.starts_with("{{") || self.rest.starts_with("}}") {
            return Ok(self.take_double());
        } else if self.rest.starts_with('}') {
            return Err(TemplateError::single('}', self.rest));
        }
        self.field()
    }

    fn expansion(&mut self) -> Piece<'a> {
        if let Some(field) = dollar_field(self.rest) {
            self.take("${{}}".len() + field.len());
            return Piece::Field(field.trim());
        } else if self.rest.starts_with("${{") {
            return Piece::Literal(&self.take(3)[..2]);
        }
        self.open.push(OpenBrace::Expansion);
        Piece::Literal(self.take(2))
    }

    fn shell_brace(&mut self) -> Result<Piece<'a>, TemplateError> {
        if self.rest.starts_with('}') {
            let closes = self.open.pop().is_some();
            let is_double = !closes && self.rest.starts_with("}}");
            return Ok(if is_double { self.take_double() } else { Piece::Literal(self.take(1)) });
        } else if self.rest.starts_with("{{") {
            return Ok(self.take_double());
        } else if self.begins_json() {
            self.open.push(OpenBrace::Json(self.rest));
            return Ok(Piece::Literal(self.take(1)));
        }
        match self.field()? {
            Piece::Field(field) => Ok(Piece::Field(field.trim())),
            literal @ Piece::Literal(_) => Ok(literal),
        }
    }

    /// Names do not begin with a quotation mark, which may be escaped for the shell. `{}` is JSON only inside JSON.
    fn begins_json(&self) -> bool {
        let inside = self.rest[1..].trim_start();
        let is_in_json = matches!(self.open.last(), Some(OpenBrace::Json(_)));
        inside.starts_with('"') || inside.starts_with("\\\"") || (is_in_json && inside.starts_with('}'))
    }

    /// The field whose `{` is at the front.
    fn field(&mut self) -> Result<Piece<'a>, TemplateError> {
        let inside = &self.rest[1..];
        let length = field_length(inside).ok_or_else(|| TemplateError::single('{', self.rest))?;
        let field = &inside[..length];
        if inside[length..].starts_with('}') {
            self.take(1 + length + 1);
            return Ok(Piece::Field(field));
        }
        let problem = match &inside[length..=length] {
            "{" => "unexpected `{` in the name",
            "!" => "conversions are not supported",
            _ => "format specifications are not supported",
        };
        Err(TemplateError::Malformed { field: field.to_owned(), problem })
    }

    /// The first `{` of JSON that was not closed.
    fn unclosed(&mut self) -> Option<TemplateError> {
        self.open.drain(..).find_map(|open| match open {
            OpenBrace::Json(text) => Some(TemplateError::single('{', text)),
            OpenBrace::Expansion => None,
        })
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, TemplateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return self.unclosed().map(Err);
        }
        let Some(brace) = self.rest.find(['{', '}']) else {
            return Some(Ok(Piece::Literal(self.take(self.rest.len()))));
        };
        let is_expansion = self.syntax == Syntax::Shell && self.rest[..brace].ends_with('$');
        let is_expansion = is_expansion && self.rest[brace..].starts_with('{');
        let start = brace - usize::from(is_expansion);
        Some(if start > 0 { Ok(Piece::Literal(self.take(start))) } else { self.brace() })
    }
}

/// The text between `${{` and `}}`, if it contains no other braces.
fn dollar_field(text: &str) -> Option<&str> {
    let (field, _) = text.strip_prefix("${{")?.split_once("}}")?;
    (!field.contains(['{', '}'])).then_some(field)
}

/// Length up to the character that ends the field or makes it invalid; characters in `[...]` do not count.
fn field_length(inside: &str) -> Option<usize> {
    let mut in_index = false;
    inside
        .char_indices()
        .find(|(_, character)| {
            match character {
                '[' => in_index = true,
                ']' => in_index = false,
                _ => {}
            }
            !in_index && matches!(character, '{' | '}' | ':' | '!')
        })
        .map(|(at, _)| at)
}

/// The same shell text without blanks at the ends of its fields, so that splitting it into words keeps fields whole.
///
/// # Errors
/// When the template is malformed.
pub(super) fn without_blanks(template: &str) -> Result<String, TemplateError> {
    let mut pieces = Pieces::of(template, Syntax::Shell);
    let mut text = String::with_capacity(template.len());
    loop {
        let before = pieces.rest();
        match pieces.next().transpose()? {
            None => return Ok(text),
            Some(Piece::Literal(_)) => text.push_str(&before[..before.len() - pieces.rest().len()]),
            Some(Piece::Field(field)) if before.starts_with('$') => text.extend(["${{", field, "}}"]),
            Some(Piece::Field(field)) => text.extend(["{", field, "}"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Fields in `<>`.
    fn cut(template: &str) -> Result<String, TemplateError> {
        let pieces: Result<Vec<_>, _> = Pieces::of(template, Syntax::Shell).collect();
        let shown = pieces?.into_iter().map(|piece| match piece {
            Piece::Literal(text) => text.to_owned(),
            Piece::Field(field) => format!("<{field}>"),
        });
        Ok(shown.collect())
    }

    #[test]
    fn shell_expansions_are_text() {
        for text in [
            "${PORT:-8000}",
            "${f%%.*}",
            "${#f}",
            "${A/x/${B}}",
            "${A:-${B:-${C}}}",
            "${a[0]}",
            "${",
            "$(date) }",
            "echo ${A} }",
        ] {
            assert_eq!(cut(text).as_deref(), Ok(text));
        }
        assert_eq!(cut("${A}}}${A:-{b}}").unwrap(), "${A}}${A:-<b>}");
    }

    #[test]
    fn json_is_text_with_fields_in_it() {
        for text in [r#"{"a": 1}"#, r#"{"a":{"b":{}}}"#, r#"{ "a": [{"b": { }}] }"#, r#"{\"a\": {\"b\": 1}}"#] {
            assert_eq!(cut(text).as_deref(), Ok(text));
        }
        assert_eq!(cut(r#"{"port":{"of":{ports[0]}}}"#).unwrap(), r#"{"port":{"of":<ports[0]>}}"#);
        assert_eq!(cut(r#"{{"a": {{}}}}"#).unwrap(), r#"{"a": {}}"#);
        let open = cut(r#"x {"a": {"b": 1}"#).unwrap_err().to_string();
        assert_eq!(open, "unbalanced `{` at `{\"a\": {\"b\": 1}`; write `{{` for a literal one");
        assert_eq!(cut("{}").unwrap(), "<>");
    }

    #[test]
    fn fields_may_have_blanks_and_a_dollar() {
        assert_eq!(cut("{a}{ a[0] }${{a}}${{ a[0] }}").unwrap(), "<a><a[0]><a><a[0]>");
        assert_eq!(cut("{{a}} ${{a} ${{a{b}}").unwrap(), "{a} ${a} ${a<b>}");
        assert_eq!(cut("$${{ a }}$ { a }").unwrap(), "$<a>$ <a>");
    }

    #[test]
    fn blanks_are_removed_from_fields_only() {
        let text = "a  { b }  ${{ c }} $ { d } ${E:-  {{ f";
        assert_eq!(without_blanks(text).unwrap(), "a  {b}  ${{c}} $ {d} ${E:-  {{ f");
    }

    proptest! {
        #[test]
        fn removing_blanks_changes_no_piece(template in "[ab\"{} $:\\[\\]]{0,24}") {
            if let Ok(text) = without_blanks(&template) {
                prop_assert_eq!(cut(&text), cut(&template));
            }
        }
    }
}
