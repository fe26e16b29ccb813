//! Service definitions of an image: `/etc/backend.ai/service-defs/NAME.json`.
//!
//! A definition is checked as far as possible when it is read, so that a mistake is reported at the session's start with its
//! position in the file. Model services, whose description comes with the request, are parsed by the same rules.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Map, Value};

use super::action::Action;

/// The shell of string commands if a definition names none.
const DEFAULT_SHELL: &str = "bash";

/// The definition of one service.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The command as templates; optional with `noop`.
    #[serde(default, deserialize_with = "command_line")]
    pub command: Option<CommandLine>,
    /// How a command that is one string is run.
    #[serde(default)]
    pub shell: ShellChoice,
    /// Nothing is started because another program serves the port.
    #[serde(default)]
    pub noop: bool,
    /// Template of the URL, for clients.
    #[serde(default)]
    pub url_template: String,
    /// Performed in order before the start.
    #[serde(default, alias = "prestart", deserialize_with = "nullable")]
    pub prestart_actions: Vec<Action>,
    /// Environment variables; names and values are templates.
    #[serde(default)]
    pub env: Map<String, Value>,
    /// Environment variables that the user may set.
    #[serde(default)]
    pub allowed_envs: Vec<String>,
    /// Flags that the user may give.
    #[serde(default)]
    pub allowed_arguments: Vec<String>,
    /// Default flags and values; the user's flags of the same name replace them.
    #[serde(default, deserialize_with = "arguments")]
    pub default_arguments: Vec<Argument>,
}

/// A command as it is written in the definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// The program and its arguments.
    Argv(Vec<String>),
    /// One string, for a shell or to be split into words.
    Line(String),
}

/// How a command that is one string is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellChoice {
    /// By this shell, with `-c`.
    Shell(String),
    /// Without a shell: split into words as a shell would, and run directly.
    Split,
}

impl Default for ShellChoice {
    fn default() -> Self {
        Self::Shell(DEFAULT_SHELL.to_owned())
    }
}

impl<'de> Deserialize<'de> for ShellChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let shell = Option::<String>::deserialize(deserializer)?;
        Ok(shell.filter(|shell| !shell.is_empty()).map_or(Self::Split, Self::Shell))
    }
}

/// A flag and its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// The flag with its dashes.
    pub flag: String,
    /// The values, empty for a flag without any.
    pub values: Vec<String>,
}

/// The value of a flag has another type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("argument `{flag}`: expected a string, a list of strings or null, got {value}")]
pub struct ArgumentError {
    /// The flag with its dashes.
    pub flag: String,
    /// The start of the value.
    pub value: String,
}

impl Argument {
    /// Parses `{flag: null | string | [string]}`.
    ///
    /// # Errors
    /// Names the flag whose value has another type.
    pub fn read_all(object: &Map<String, Value>) -> Result<Vec<Self>, ArgumentError> {
        let read = |(flag, value): (&String, &Value)| {
            let values = match value {
                Value::Null => Some(Vec::new()),
                Value::String(text) => Some(vec![text.clone()]),
                Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            let values = values.ok_or_else(|| ArgumentError { flag: flag.clone(), value: brief(value) })?;
            Ok(Self { flag: flag.clone(), values })
        };
        object.iter().map(read).collect()
    }
}

/// A longer value is cut in messages.
const SHOWN_CHARS: usize = 80;

/// A JSON value for a message, cut if it is long.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

/// A mistake in a definition.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The text is not the JSON of a definition.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The value of an environment variable is not a string.
    #[error("`env`: variable `{name}`: expected a string, got {value}")]
    VariableType {
        /// The variable's name.
        name: String,
        /// The start of the value.
        value: String,
    },
    /// There is nothing to start.
    #[error("missing `command` (required unless `noop` is true)")]
    MissingCommand,
}

impl Definition {
    /// Parses the JSON text of a definition.
    ///
    /// # Errors
    /// Describes the first mistake and its position.
    pub fn parse(text: &[u8]) -> Result<Self, DefinitionError> {
        let definition: Self = serde_json::from_slice(text)?;
        if let Some((name, value)) = definition.env.iter().find(|(_, value)| !value.is_string()) {
            return Err(DefinitionError::VariableType { name: name.clone(), value: brief(value) });
        }
        if definition.command.is_none() && !definition.noop {
            return Err(DefinitionError::MissingCommand);
        }
        Ok(definition)
    }
}

/// A list of strings, a string, or null. Parsed through a [`Value`] because the error of an untagged enum has no details.
pub(super) fn command_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CommandLine>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match &value {
        Value::Null => Ok(None),
        Value::String(line) => Ok(Some(CommandLine::Line(line.clone()))),
        Value::Array(items) => {
            let argv: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            let argv = argv.ok_or_else(|| {
                D::Error::custom(format!("the command must be a list of strings, got {}", brief(&value)))
            })?;
            // Definitions with `noop` often have an empty list.
            Ok((!argv.is_empty()).then_some(CommandLine::Argv(argv)))
        }
        _ => Err(D::Error::custom(format!("the command must be a string or a list of strings, got {}", brief(&value)))),
    }
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Argument>, D::Error> {
    Argument::read_all(&Map::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn error(text: &str) -> String {
        chain(&Definition::parse(text.as_bytes()).unwrap_err())
    }

    #[test]
    fn every_key_is_read() {
        let definition = Definition::parse(
            br#"{
                "command": ["x", "--port={ports[0]}"], "url_template": "{protocol}://{host}", "noop": false,
                "prestart": [{"action": "mkdir", "args": {"path": "/tmp/x"}, "ref": "made"}],
                "env": {"A": "b"}, "allowed_envs": ["E"], "allowed_arguments": ["--z", "--a"],
                "default_arguments": {"--z": null, "--b": "1", "--a": ["2", "3"]}
            }"#,
        )
        .unwrap();
        assert_eq!(definition.prestart_actions.len(), 1);
        let flags: Vec<_> = definition.default_arguments.iter().map(|argument| argument.flag.as_str()).collect();
        assert_eq!(flags, ["--z", "--b", "--a"], "in the order of the file");
        let other = Definition::parse(br#"{"command": "x", "prestart_actions": null}"#).unwrap();
        assert_eq!(other.command, Some(CommandLine::Line("x".into())));
        assert_eq!(other.shell, ShellChoice::Shell("bash".into()));
        for no_shell in ["null", "\"\""] {
            let text = format!(r#"{{"command": "x", "shell": {no_shell}}}"#);
            assert_eq!(Definition::parse(text.as_bytes()).unwrap().shell, ShellChoice::Split);
        }
        assert!(Definition::parse(br#"{"command": [], "noop": true}"#).unwrap().noop);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(error("{").starts_with("EOF while parsing"));
        let unknown = error(r#"{"command": ["x"], "comand": 1}"#);
        assert!(unknown.starts_with("unknown field `comand`, expected one of `command`, "), "{unknown}");
        assert!(error(r#"{"command": 7}"#).starts_with("the command must be a string or a list of strings, got 7"));
        assert!(error(r#"{"command": ["x", 7]}"#).starts_with("the command must be a list of strings, got [\"x\",7]"));
        assert_eq!(error("{}"), "missing `command` (required unless `noop` is true)");
        let flag = error(r#"{"command": ["x"], "default_arguments": {"--n": 4}}"#);
        assert!(flag.starts_with("argument `--n`: expected a string, a list of strings or null, got 4"), "{flag}");
        let env = error(r#"{"command": ["x"], "env": {"N": 4}}"#);
        assert_eq!(env, "`env`: variable `N`: expected a string, got 4");
        let action = error(r#"{"command": ["x"], "prestart": [{"action": "rm", "args": {"path": "/"}}]}"#);
        assert!(action.starts_with("unknown action `rm`; expected one of "), "{action}");
    }
}
