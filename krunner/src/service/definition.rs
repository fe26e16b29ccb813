//! What an image says of a service: `/etc/backend.ai/service-defs/NAME.json`.
//!
//! A definition is checked as far as it can be when it is read, so that a mistake is told at the session's start and
//! with its place in the file. Model services, whose description comes with the request, are read by the same rules.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Map, Value};

use super::action::Action;

/// What runs string commands when a definition does not say.
const DEFAULT_SHELL: &str = "bash";

/// One service.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What to start, as templates; none is needed with `noop`.
    #[serde(default, deserialize_with = "command_line")]
    pub command: Option<CommandLine>,
    /// The shell of a command that is one text.
    #[serde(default)]
    pub shell: ShellChoice,
    /// Nothing is started: something else serves the port.
    #[serde(default)]
    pub noop: bool,
    /// For clients: how the URL is made.
    #[serde(default)]
    pub url_template: String,
    /// What is done before the start, in order.
    #[serde(default, alias = "prestart", deserialize_with = "nullable")]
    pub prestart_actions: Vec<Action>,
    /// Variables, names and values as templates.
    #[serde(default)]
    pub env: Map<String, Value>,
    /// Variables that a user may set.
    #[serde(default)]
    pub allowed_envs: Vec<String>,
    /// Flags that a user may give.
    #[serde(default)]
    pub allowed_arguments: Vec<String>,
    /// Flags with their values, which a user's take the place of.
    #[serde(default, deserialize_with = "arguments")]
    pub default_arguments: Vec<Argument>,
}

/// A command as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Program and arguments.
    Argv(Vec<String>),
    /// One text, for a shell or to be split.
    Line(String),
}

/// Who reads a command that is one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellChoice {
    /// This program, after `-c`.
    Shell(String),
    /// Nobody: it is split into words as a shell would, and run directly.
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
    /// The flag.
    pub flag: String,
    /// None for a flag that stands alone.
    pub values: Vec<String>,
}

impl Argument {
    /// Reads `{flag: null | text | [text]}`.
    ///
    /// # Errors
    /// Names the flag and the value that is something else.
    pub fn read_all(object: &Map<String, Value>) -> Result<Vec<Self>, String> {
        let read = |(flag, value): (&String, &Value)| {
            let values = match value {
                Value::Null => Some(Vec::new()),
                Value::String(text) => Some(vec![text.clone()]),
                Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            let values = values.ok_or_else(|| {
                format!(
                    "the value of the argument `{flag}` is {}; a text, a list of texts or null is expected",
                    brief(value)
                )
            })?;
            Ok(Self { flag: flag.clone(), values })
        };
        object.iter().map(read).collect()
    }
}

/// How much of a wrong value is shown.
const SHOWN_CHARS: usize = 80;

/// A value for a message.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

impl Definition {
    /// Reads the JSON text of a definition.
    ///
    /// # Errors
    /// Says what is wrong with it and where.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let definition: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if let Some((name, value)) = definition.env.iter().find(|(_, value)| !value.is_string()) {
            return Err(format!("`env`: the variable `{name}` is {}; a text is expected", brief(value)));
        }
        if definition.command.is_none() && !definition.noop {
            return Err("there is no `command`, and no `noop` that would do without".to_owned());
        }
        Ok(definition)
    }
}

/// A list of texts, a text, or null. Read through a [`Value`], since the error of an untagged enum says nothing.
pub(super) fn command_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CommandLine>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match &value {
        Value::Null => Ok(None),
        Value::String(line) => Ok(Some(CommandLine::Line(line.clone()))),
        Value::Array(items) => {
            let argv: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            let argv =
                argv.ok_or_else(|| D::Error::custom(format!("the command {} is no list of texts", brief(&value))))?;
            // Nothing to run; what is written so in definitions with `noop`.
            Ok((!argv.is_empty()).then_some(CommandLine::Argv(argv)))
        }
        _ => {
            Err(D::Error::custom(format!("the command is {}; a list of texts or one text is expected", brief(&value))))
        }
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

    fn error(text: &str) -> String {
        Definition::parse(text.as_bytes()).unwrap_err()
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
        assert!(error(r#"{"command": 7}"#).starts_with("the command is 7; a list of texts or one text is expected"));
        assert!(error(r#"{"command": ["x", 7]}"#).starts_with("the command [\"x\",7] is no list of texts"));
        assert_eq!(error("{}"), "there is no `command`, and no `noop` that would do without");
        let flag = error(r#"{"command": ["x"], "default_arguments": {"--n": 4}}"#);
        assert!(flag.starts_with("the value of the argument `--n` is 4; a text, a list of texts or null"), "{flag}");
        let env = error(r#"{"command": ["x"], "env": {"N": 4}}"#);
        assert_eq!(env, "`env`: the variable `N` is 4; a text is expected");
        let action = error(r#"{"command": ["x"], "prestart": [{"action": "rm", "args": {"path": "/"}}]}"#);
        assert!(action.starts_with("unknown action `rm`; known are "), "{action}");
    }
}
