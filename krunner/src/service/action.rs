//! Prestart actions of a definition.
//!
//! | action | arguments | result for its `ref` |
//! |---|---|---|
//! | `write_file` | `filename`, `body`, `mode`, `append` | none |
//! | `write_tempfile` | `body`, `mode` | the file's path |
//! | `run_command` | `command`, `echo` | `out` and `err` |
//! | `mkdir` | `path` | none |
//! | `log` | `message`, `debug` | none |
//!
//! All texts are templates.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Value as Json, json};

use super::braces::Syntax;
use super::template::{Value, Variables, render};
use super::template_error::TemplateError;
use crate::config::ChildEnv;
use crate::process::{Command, Control, Launcher, SpawnError};
use crate::tasks::blocking;
use crate::user_folder::guarded;

/// Limit of a command's output, per stream; the rest is dropped.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;

/// An action, and the name of its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The action with its arguments.
    pub kind: ActionKind,
    /// The template variable that gets the result.
    pub reference: Option<String>,
}

/// All actions, with the argument names of definitions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum ActionKind {
    WriteFile {
        filename: String,
        body: Vec<String>,
        #[serde(default)]
        mode: FileMode,
        #[serde(default)]
        append: bool,
    },
    WriteTempfile {
        body: Vec<String>,
        #[serde(default)]
        mode: FileMode,
    },
    RunCommand {
        command: Vec<String>,
        #[serde(default)]
        echo: bool,
    },
    Mkdir {
        path: String,
    },
    Log {
        message: String,
        #[serde(default)]
        debug: bool,
    },
}

const NAMES: [&str; 5] = ["write_file", "write_tempfile", "run_command", "mkdir", "log"];

/// File permissions, written as a string of octal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(u32);

impl Default for FileMode {
    fn default() -> Self {
        Self(0o644)
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bits = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok().filter(|bits| *bits <= 0o7777);
        bits.map(Self)
            .ok_or_else(|| D::Error::custom(format!("`mode`: expected octal digits such as \"644\", got {text:?}")))
    }
}

impl<'de> Deserialize<'de> for Action {
    /// `{"action": NAME, "args": {...}, "ref": NAME}`, with the name and its arguments as one tagged enum.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            action: String,
            #[serde(default)]
            args: serde_json::Map<String, Json>,
            #[serde(default, rename = "ref")]
            reference: Option<String>,
        }
        let Written { action, mut args, reference } = Written::deserialize(deserializer)?;
        if !NAMES.contains(&action.as_str()) {
            return Err(D::Error::custom(format!(
                "unknown action `{action}`; expected one of `{}`",
                NAMES.join("`, `")
            )));
        }
        if args.contains_key("action") {
            return Err(D::Error::custom(format!("`{action}` has no argument `action`")));
        }
        args.insert("action".into(), json!(action));
        let kind = ActionKind::deserialize(Json::Object(args))
            .map_err(|error| D::Error::custom(format!("`{action}`: {error}")))?;
        Ok(Self { kind, reference })
    }
}

impl ActionKind {
    /// The name in definitions.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::WriteFile { .. } => "write_file",
            Self::WriteTempfile { .. } => "write_tempfile",
            Self::RunCommand { .. } => "run_command",
            Self::Mkdir { .. } => "mkdir",
            Self::Log { .. } => "log",
        }
    }

    /// All templates among the arguments.
    pub(super) fn templates(&self) -> Vec<&str> {
        match self {
            Self::WriteFile { filename, body, .. } => {
                std::iter::once(filename.as_str()).chain(body.iter().map(String::as_str)).collect()
            }
            Self::WriteTempfile { body: texts, .. } | Self::RunCommand { command: texts, .. } => {
                texts.iter().map(String::as_str).collect()
            }
            Self::Mkdir { path: text } | Self::Log { message: text, .. } => vec![text],
        }
    }
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    /// A template cannot be expanded.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A file or directory cannot be written or created.
    #[error("{path}")]
    File {
        /// Path of the file or directory.
        path: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The command cannot be started.
    #[error(transparent)]
    Command(#[from] SpawnError),
}

/// What actions run with.
pub(super) struct ActionContext<'a> {
    pub(super) launcher: &'a Launcher,
    pub(super) env: &'a ChildEnv,
    pub(super) control: &'a Control,
}

impl ActionContext<'_> {
    /// Performs one action and returns its result.
    pub(super) async fn perform(&self, kind: &ActionKind, variables: &Variables) -> Result<Value, ActionError> {
        let fill = |template: &String| render(template, Syntax::Format, variables);
        match kind {
            ActionKind::WriteFile { filename, body, mode, append } => {
                let path = fill(filename)?;
                let mut text = String::new();
                for line in body {
                    text.push_str(&fill(line)?);
                    text.push('\n');
                }
                let (home, target, mode, append) = (self.home(), path.clone(), *mode, *append);
                let written = blocking(move || write_file(&home, &target, &text, mode, append)).await;
                written.map(|()| Value::Nothing).map_err(|source| ActionError::File { path, source })
            }
            ActionKind::WriteTempfile { body, mode } => {
                let text = body.iter().map(fill).collect::<Result<String, _>>()?;
                let mode = *mode;
                let written = blocking(move || write_tempfile(&text, mode)).await;
                let path = std::env::temp_dir().display().to_string();
                written.map(Value::Text).map_err(|source| ActionError::File { path, source })
            }
            ActionKind::RunCommand { command, echo } => {
                let argv = command.iter().map(fill).collect::<Result<Vec<_>, _>>()?;
                self.run_command(argv, *echo).await
            }
            ActionKind::Mkdir { path } => {
                let path = fill(path)?;
                let (home, target) = (self.home(), path.clone());
                let made = blocking(move || make_folders(&home, &target)).await;
                made.map(|()| Value::Nothing).map_err(|source| ActionError::File { path, source })
            }
            ActionKind::Log { message, debug } => {
                let message = fill(message)?;
                if *debug {
                    tracing::debug!("{message}");
                } else {
                    tracing::info!("{message}");
                }
                Ok(Value::Nothing)
            }
        }
    }

    fn home(&self) -> PathBuf {
        self.env.get(OsStr::new("HOME")).map(PathBuf::from).unwrap_or_default()
    }

    /// A command that fails is logged and does not stop the service's start, as in the Python runner.
    async fn run_command(&self, argv: Vec<String>, echo: bool) -> Result<Value, ActionError> {
        let command = Command::argv(argv);
        let collected = self.launcher.collect(&command, self.env, self.control, MAX_OUTPUT_BYTES).await?;
        if collected.outcome.code() != 0 {
            tracing::warn!("`{command}` exited with code {}", collected.outcome.code());
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let parts =
            BTreeMap::from([("out".to_owned(), text(&collected.stdout)), ("err".to_owned(), text(&collected.stderr))]);
        if echo {
            self.launcher.console.stdout.write(collected.stdout.into()).await;
            self.launcher.console.stderr.write(collected.stderr.into()).await;
        }
        Ok(Value::Parts(parts))
    }
}

fn write_file(home: &Path, path: &str, text: &str, mode: FileMode, append: bool) -> io::Result<()> {
    // A new file never has more permissions than `mode`, not even for a moment.
    let mode_at_first = mode.0 & 0o777;
    let mut file = match guarded(home, Path::new(path))? {
        None => {
            File::options().write(true).create(true).append(append).truncate(!append).mode(mode_at_first).open(path)?
        }
        Some((home, below)) => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | if append { OFlag::O_APPEND } else { OFlag::empty() };
            let file = home.open(below, flags, Mode::from_bits_truncate(mode_at_first))?;
            if !append {
                file.set_len(0)?;
            }
            file
        }
    };
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode.0))
}

fn make_folders(home: &Path, path: &str) -> io::Result<()> {
    match guarded(home, Path::new(path))? {
        None => fs::create_dir_all(path),
        Some((home, below)) => home.make_folders(below, 0o777).map(drop),
    }
}

fn write_tempfile(text: &str, mode: FileMode) -> io::Result<String> {
    let mut file = tempfile::Builder::new().suffix(".py").tempfile()?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode.0))?;
    let (_, path) = file.keep()?;
    Ok(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn parse(text: &str) -> serde_json::Result<Action> {
        serde_json::from_str(text)
    }

    #[test]
    fn actions_are_read_with_their_defaults() {
        let file =
            parse(r#"{"action": "write_file", "args": {"filename": "/x", "body": ["a"], "mode": "600"}}"#).unwrap();
        let body = vec!["a".to_owned()];
        assert_eq!(
            file.kind,
            ActionKind::WriteFile { filename: "/x".into(), body, mode: FileMode(0o600), append: false }
        );
        let run =
            parse(r#"{"action": "run_command", "args": {"command": ["id"], "echo": true}, "ref": "me"}"#).unwrap();
        assert_eq!(run.reference.as_deref(), Some("me"));
        assert_eq!((run.kind.name(), run.kind.templates()), ("run_command", vec!["id"]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        let mode = error(r#"{"action": "write_tempfile", "args": {"body": [], "mode": "rwx"}}"#);
        assert!(mode.starts_with("`write_tempfile`: `mode`: expected octal digits"), "{mode}");
        let missing = error(r#"{"action": "mkdir", "args": {}}"#);
        assert!(missing.starts_with("`mkdir`: missing field `path`"), "{missing}");
        let extra = error(r#"{"action": "mkdir", "args": {"path": "x", "parents": true}}"#);
        assert!(extra.starts_with("`mkdir`: unknown field `parents`"), "{extra}");
    }

    #[test]
    fn error_texts_are_stable() {
        let template = ActionError::from(TemplateError::single('{', "{x"));
        assert_eq!(chain(&template), "unbalanced `{` at `{x`; write `{{` for a literal one");
        let file = ActionError::File { path: "/x".to_owned(), source: io::ErrorKind::NotFound.into() };
        assert_eq!(chain(&file), "/x: entity not found");
        let refused = SpawnError::Refused { path: "sh".into(), source: io::ErrorKind::OutOfMemory.into() };
        assert_eq!(chain(&ActionError::from(refused)), "cannot start sh: out of memory");
    }

    #[test]
    fn files_get_their_lines_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        for home in [folder.path(), Path::new("/nowhere")] {
            let path = folder.path().join("f").display().to_string();
            let write = |text: &str, mode, append| write_file(home, &path, text, FileMode(mode), append).unwrap();
            write("one\n", 0o600, false);
            write("two\n", 0o640, true);
            assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
            write("three\n", 0o640, false);
            assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
            fs::remove_file(&path).unwrap();
        }
        let temporary = write_tempfile("x = 1", FileMode::default()).unwrap();
        assert_eq!(std::path::Path::new(&temporary).extension(), Some("py".as_ref()));
        assert_eq!(fs::read_to_string(&temporary).unwrap(), "x = 1");
        fs::remove_file(temporary).unwrap();
    }

    #[test]
    fn root_writes_through_no_link_of_the_home() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), home.path().join("link")).unwrap();
        let path = home.path().join("link/f").display().to_string();
        let written = write_file(home.path(), &path, "", FileMode::default(), false);
        assert!(written.unwrap_err().to_string().contains("link is a symbolic link, "));
        assert!(make_folders(home.path(), &path).is_err());
        make_folders(home.path(), &home.path().join("a/b").display().to_string()).unwrap();
        assert!(home.path().join("a/b").is_dir());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
