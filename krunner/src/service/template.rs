//! Texts with `{names}` in them: Python's `str.format`, as far as service definitions use it.
//!
//! Names, `[indices]` and `[keys]`, `{{` and `}}` mean what they mean there, and what is an error there is one here.
//! Attributes, conversions and format specifications are refused: no definition has a use for them. Pure; the suites
//! compare it with Python's own.

use std::collections::BTreeMap;
use std::fmt;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Shown as it is.
    Text(String),
    /// Shown in decimal digits.
    Number(u64),
    /// Shown as `[1, 2]`.
    Numbers(Vec<u64>),
    /// Only its parts can be shown.
    Parts(BTreeMap<String, String>),
    /// The result of an action that has none; shown as Python does.
    Nothing,
}

/// Values by name.
pub type Variables = BTreeMap<String, Value>;

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its other.
    #[error("a single `{0}`; `{0}{0}` stands for the character")]
    Single(char),
    /// Something between braces that is no name.
    #[error("`{{{field}}}`: {problem}")]
    Malformed {
        /// What is between the braces.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The name is not defined.
    #[error("`{{{field}}}`: the name `{name}` is unknown; known are {known}")]
    Unknown {
        /// What is between the braces.
        field: String,
        /// The name in it.
        name: String,
        /// What it could have been.
        known: Known,
    },
    /// The name is defined, but has no such part.
    #[error("`{{{field}}}`: there is no `{index}` in `{name}`")]
    NoPart {
        /// What is between the braces.
        field: String,
        /// The name, with the indices before.
        name: String,
        /// The index or key.
        index: String,
    },
}

/// Names, for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known(Vec<String>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { write!(f, "`{}`", self.0.join("`, `")) }
    }
}

/// Whose variables `${NAME}` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// The shell's, which is to see them: they are left alone.
    Later,
    /// Nobody's: a `$` before a name in braces.
    Never,
}

/// Fills in a template.
///
/// # Errors
/// Says which part is wrong.
pub fn render(template: &str, shell: Shell, variables: &Variables) -> Result<String, TemplateError> {
    let mut text = String::with_capacity(template.len());
    for piece in Pieces::of(template, shell) {
        match piece? {
            Piece::Literal(literal) => text.push_str(literal),
            Piece::Field(field) => show(field, &mut text, variables)?,
        }
    }
    Ok(text)
}

/// The names that a template uses.
///
/// # Errors
/// When it has none because it is malformed.
pub fn names(template: &str, shell: Shell) -> Result<Vec<&str>, TemplateError> {
    let mut names = Vec::new();
    for piece in Pieces::of(template, shell) {
        if let Piece::Field(field) = piece? {
            names.push(split(field)?.0);
        }
    }
    Ok(names)
}

/// The error for a name that is not among these.
pub(super) fn unknown(name: &str, known: impl IntoIterator<Item = String>) -> TemplateError {
    let known = Known(known.into_iter().collect());
    TemplateError::Unknown { field: name.to_owned(), name: name.to_owned(), known }
}

enum Piece<'a> {
    Literal(&'a str),
    Field(&'a str),
}

struct Pieces<'a> {
    rest: &'a str,
    shell: Shell,
}

impl<'a> Pieces<'a> {
    fn of(template: &'a str, shell: Shell) -> Self {
        Self { rest: template, shell }
    }

    /// `NAME}` after `${`.
    fn shell_variable(&self, dollar_at: usize) -> Option<usize> {
        let name = self.rest[dollar_at..].strip_prefix("${")?;
        let length = name.find('}')?;
        let is_name = name[..length].bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
        (self.shell == Shell::Later && is_name && length > 0).then_some(dollar_at + 2 + length + 1)
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, TemplateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(at) = self.rest.find(['{', '}']) else {
            return Some(Ok(Piece::Literal(self.take(self.rest.len()))));
        };
        if let Some(end) = self.rest[..at].ends_with('$').then(|| self.shell_variable(at - 1)).flatten() {
            return Some(Ok(Piece::Literal(self.take(end))));
        }
        if at > 0 {
            return Some(Ok(Piece::Literal(self.take(at))));
        }
        Some(self.brace())
    }
}

impl<'a> Pieces<'a> {
    /// What a brace at the very front begins.
    fn brace(&mut self) -> Result<Piece<'a>, TemplateError> {
        if self.rest.starts_with("{{") || self.rest.starts_with("}}") {
            return Ok(Piece::Literal(&self.take(2)[..1]));
        } else if self.rest.starts_with('}') {
            return Err(TemplateError::Single('}'));
        }
        let inside = &self.rest[1..];
        let length = field_length(inside).ok_or(TemplateError::Single('{'))?;
        let field = &inside[..length];
        if inside[length..].starts_with('}') {
            self.take(1 + length + 1);
            return Ok(Piece::Field(field));
        }
        let problem = match &inside[length..=length] {
            "{" => "there is a `{` in the name",
            "!" => "conversions are not supported",
            _ => "format specifications are not supported",
        };
        Err(TemplateError::Malformed { field: field.to_owned(), problem })
    }
}

/// Up to what ends a field or makes it one that we refuse; an index hides everything up to its `]`.
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

/// `name[index][key]` in parts.
fn split(field: &str) -> Result<(&str, Vec<&str>), TemplateError> {
    let malformed = |problem| TemplateError::Malformed { field: field.to_owned(), problem };
    let (name, mut rest) = field.split_at(field.find(['[', '.']).unwrap_or(field.len()));
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed("a name is expected"));
    }
    let mut indices = Vec::new();
    while let Some(opened) = rest.strip_prefix('[') {
        let (index, after) = opened.split_once(']').ok_or_else(|| malformed("a `[` without its `]`"))?;
        if index.is_empty() {
            return Err(malformed("an index is expected between `[` and `]`"));
        }
        indices.push(index);
        rest = after;
    }
    match rest.bytes().next() {
        None => Ok((name, indices)),
        Some(b'.') => Err(malformed("attributes are not supported")),
        Some(_) => Err(malformed("something follows the `]`")),
    }
}

fn show(field: &str, text: &mut String, variables: &Variables) -> Result<(), TemplateError> {
    let (name, indices) = split(field)?;
    let Some(value) = variables.get(name) else {
        let known = Known(variables.keys().cloned().collect());
        return Err(TemplateError::Unknown { field: field.to_owned(), name: name.to_owned(), known });
    };
    let (mut value, mut path) = (value.clone(), name.to_owned());
    for index in indices {
        value = part(&value, index).ok_or_else(|| TemplateError::NoPart {
            field: field.to_owned(),
            name: path.clone(),
            index: index.to_owned(),
        })?;
        path = format!("{path}[{index}]");
    }
    match value {
        Value::Text(shown) => text.push_str(&shown),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::Numbers(numbers) => {
            let shown: Vec<String> = numbers.iter().map(u64::to_string).collect();
            text.push('[');
            text.push_str(&shown.join(", "));
            text.push(']');
        }
        Value::Nothing => text.push_str("None"),
        Value::Parts(_) => {
            let problem = "it has several parts; name one, as in `{name[out]}`";
            return Err(TemplateError::Malformed { field: field.to_owned(), problem });
        }
    }
    Ok(())
}

/// A number indexes lists and texts, anything else is a key.
fn part(value: &Value, index: &str) -> Option<Value> {
    let is_number = index.bytes().all(|byte| byte.is_ascii_digit());
    match value {
        Value::Numbers(numbers) if is_number => numbers.get(index.parse::<usize>().ok()?).copied().map(Value::Number),
        Value::Text(text) if is_number => text.chars().nth(index.parse().ok()?).map(|c| Value::Text(c.into())),
        Value::Parts(parts) if !is_number => parts.get(index).cloned().map(Value::Text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> Variables {
        let out = BTreeMap::from([("out".to_owned(), "text\n".to_owned()), ("err".to_owned(), String::new())]);
        Variables::from([
            ("ports".into(), Value::Numbers(vec![8080, 9090])),
            ("runtime_path".into(), Value::Text("/usr/bin/python".into())),
            ("result".into(), Value::Parts(out)),
            ("none".into(), Value::Nothing),
        ])
    }

    fn shown(template: &str) -> Result<String, String> {
        render(template, Shell::Later, &variables()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_indices_and_keys_are_filled_in() {
        assert_eq!(shown("--port={ports[0]}").unwrap(), "--port=8080");
        assert_eq!(shown("{runtime_path} {ports} {none}").unwrap(), "/usr/bin/python [8080, 9090] None");
        assert_eq!(shown("{result[out]}|{result[err]}|{{{ports[1]}}}").unwrap(), "text\n||{9090}");
    }

    #[test]
    fn variables_of_the_shell_are_left_alone() {
        assert_eq!(shown("${HOME}/x ${ports} $${A}}}").unwrap(), "${HOME}/x ${ports} $${A}}");
        assert_eq!(shown("${ports[0]} $ü{ports[0]}").unwrap(), "$8080 $ü8080");
        let never = render("${HOME}", Shell::Never, &variables()).unwrap_err().to_string();
        assert!(never.starts_with("`{HOME}`: the name `HOME` is unknown; known are `none`, `ports`, "), "{never}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |template: &str| shown(template).unwrap_err();
        assert_eq!(error("a } b"), "a single `}`; `}}` stands for the character");
        assert_eq!(error("a {ports"), "a single `{`; `{{` stands for the character");
        assert_eq!(error("{ports[7]}"), "`{ports[7]}`: there is no `7` in `ports`");
        assert_eq!(error("{result[what]}"), "`{result[what]}`: there is no `what` in `result`");
        assert_eq!(error("{result}"), "`{result}`: it has several parts; name one, as in `{name[out]}`");
        assert_eq!(error("{ports[0].real}"), "`{ports[0].real}`: attributes are not supported");
        assert_eq!(error("{ports[0]:5}"), "`{ports[0]}`: format specifications are not supported");
        assert_eq!(error("{ports!r}"), "`{ports}`: conversions are not supported");
        assert_eq!(error("{}"), "`{}`: a name is expected");
        assert_eq!(error("{0}"), "`{0}`: a name is expected");
    }

    #[test]
    fn a_value_is_never_a_template() {
        let variables = Variables::from([("v".into(), Value::Text("{ports[0]} }} ${X}".into()))]);
        assert_eq!(render("{v}", Shell::Later, &variables).unwrap(), "{ports[0]} }} ${X}");
    }

    proptest! {
        #[test]
        fn any_text_survives_with_its_braces_doubled(text in ".{0,60}") {
            let template = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(render(&template, Shell::Never, &variables()).unwrap(), text);
        }

        #[test]
        fn any_template_has_names_or_an_error(template in "[a{}\\[\\]$!:.0ü]{0,24}") {
            let rendered = render(&template, Shell::Later, &variables());
            let names = names(&template, Shell::Later);
            prop_assert!(rendered.is_err() || names.is_ok());
        }
    }
}
