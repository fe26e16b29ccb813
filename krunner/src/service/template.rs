//! Templates with `{names}`: Python's `str.format`, as far as service definitions use it.
//!
//! Names, `[indices]` and `[keys]` work as in Python. Attributes, conversions and format specifications are rejected: no known
//! definition uses them. `braces` decides which braces form a field. Pure; the suites compare the results with Python's own
//! and with the Python runner's.

use std::collections::BTreeMap;

use super::braces::{Piece, Pieces, Syntax};
use super::template_error::{KnownNames, TemplateError};

/// The value of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A string, inserted literally.
    Text(String),
    /// A number, inserted in decimal.
    Number(u64),
    /// A list, inserted as `[1, 2]`.
    Numbers(Vec<u64>),
    /// Named parts; only a part can be inserted.
    Parts(BTreeMap<String, String>),
    /// The result of an action without one, inserted as Python's `None`.
    Nothing,
}

/// The values of all names.
pub type Variables = BTreeMap<String, Value>;

/// Expands a template.
///
/// # Errors
/// Names the part that is invalid.
pub fn render(template: &str, syntax: Syntax, variables: &Variables) -> Result<String, TemplateError> {
    let mut text = String::with_capacity(template.len());
    for piece in Pieces::of(template, syntax) {
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
/// When the template is malformed.
pub(crate) fn names(template: &str, syntax: Syntax) -> Result<Vec<&str>, TemplateError> {
    let mut names = Vec::new();
    for piece in Pieces::of(template, syntax) {
        if let Piece::Field(field) = piece? {
            names.push(split(field)?.0);
        }
    }
    Ok(names)
}

/// The error for a name that is not defined.
pub(super) fn unknown(name: &str, known: impl IntoIterator<Item = String>) -> TemplateError {
    let known = KnownNames::new(known);
    TemplateError::Unknown { field: name.to_owned(), name: name.to_owned(), known }
}

/// Splits `name[index][key]` into the name and its indices.
fn split(field: &str) -> Result<(&str, Vec<&str>), TemplateError> {
    let malformed = |problem| TemplateError::Malformed { field: field.to_owned(), problem };
    let (name, mut rest) = field.split_at(field.find(['[', '.']).unwrap_or(field.len()));
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed("expected a name"));
    }
    let mut indices = Vec::new();
    while let Some(opened) = rest.strip_prefix('[') {
        let (index, after) = opened.split_once(']').ok_or_else(|| malformed("unclosed `[`"))?;
        if index.is_empty() {
            return Err(malformed("expected an index between `[` and `]`"));
        }
        indices.push(index);
        rest = after;
    }
    match rest.bytes().next() {
        None => Ok((name, indices)),
        Some(b'.') => Err(malformed("attributes are not supported")),
        Some(_) => Err(malformed("unexpected text after `]`")),
    }
}

fn show(field: &str, text: &mut String, variables: &Variables) -> Result<(), TemplateError> {
    let (name, indices) = split(field)?;
    let Some(value) = variables.get(name) else {
        let known = KnownNames::new(variables.keys().cloned());
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
            let problem = "this value has several parts; select one, as in `{name[out]}`";
            return Err(TemplateError::Malformed { field: field.to_owned(), problem });
        }
    }
    Ok(())
}

/// A number is an index into a list or string, anything else a key.
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

    fn shown(template: &str) -> Result<String, TemplateError> {
        render(template, Syntax::Shell, &variables())
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
        assert_eq!(shown("${ports[0]} $ü{ ports[0] }${{ ports[0] }}").unwrap(), "${ports[0]} $ü80808080");
        let never = render("${HOME}", Syntax::Format, &variables()).unwrap_err().to_string();
        assert!(never.starts_with("`{HOME}`: unknown name `HOME`; known names: `none`, `ports`, "), "{never}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |template: &str| shown(template).unwrap_err().to_string();
        let format = render("a } b", Syntax::Format, &variables()).unwrap_err().to_string();
        assert_eq!(format, "unbalanced `}` at `} b`; write `}}` for a literal one");
        assert_eq!(error("a {ports"), "unbalanced `{` at `{ports`; write `{{` for a literal one");
        assert!(error("${{ no }}").starts_with("`{no}`: unknown name `no`; known names: "), "{}", error("${{ no }}"));
        assert_eq!(error("{ports[7]}"), "`{ports[7]}`: `ports` has no element `7`");
        assert_eq!(error("{result[what]}"), "`{result[what]}`: `result` has no element `what`");
        assert_eq!(error("{result}"), "`{result}`: this value has several parts; select one, as in `{name[out]}`");
        assert_eq!(error("{ports[0].real}"), "`{ports[0].real}`: attributes are not supported");
        assert_eq!(error("{ports[0]:5}"), "`{ports[0]}`: format specifications are not supported");
        assert_eq!(error("{ports!r}"), "`{ports}`: conversions are not supported");
        assert_eq!(error("{}"), "`{}`: expected a name");
        assert_eq!(error("{0}"), "`{0}`: expected a name");
    }

    #[test]
    fn a_value_is_never_a_template() {
        let variables = Variables::from([("v".into(), Value::Text("{ports[0]} }} ${X}".into()))]);
        assert_eq!(render("{v}", Syntax::Shell, &variables).unwrap(), "{ports[0]} }} ${X}");
    }

    proptest! {
        #[test]
        fn any_text_survives_with_its_braces_doubled(text in ".{0,60}") {
            let template = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(render(&template, Syntax::Format, &variables()).unwrap(), text);
        }

        #[test]
        fn any_template_has_names_or_an_error(template in "[a{}\\[\\]$!:.0ü]{0,24}") {
            let rendered = render(&template, Syntax::Shell, &variables());
            let names = names(&template, Syntax::Shell);
            prop_assert!(rendered.is_err() || names.is_ok());
        }
    }
}
