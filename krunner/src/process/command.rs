//! Describes a command to run.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Stdio;

use crate::config::ChildEnv;

/// Set for children of a command line given to `exec`, and read by our `sitecustomize.py`.
const BATCH_MODE: &str = "_BACKEND_BATCH_MODE";

/// The smallest capacity of a pipe: one page, if the user has many pipes (pipe(7)).
pub(super) const MAX_INPUT_BYTES: usize = 4096;

/// A command line for the shell, or an argument list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Runs as `/bin/sh -c LINE`.
    Shell(String),
    /// Runs directly; the first item is looked up in the child's `PATH` if it has no slash.
    Argv(Vec<OsString>),
}

/// One program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program, or the command line.
    pub program: Program,
    /// Whether this is the user's program in batch mode.
    pub batch: bool,
    /// The working directory; by default the runner's own.
    pub directory: Option<PathBuf>,
    /// The content of its stdin; by default `/dev/null`.
    pub input: Option<Vec<u8>>,
}

impl Command {
    /// The words of an argument list; none of a command line for the shell.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn words(&self) -> &[OsString] {
        if let Program::Argv(words) = &self.program { words } else { &[] }
    }

    /// A command line for `/bin/sh`.
    pub fn shell(line: impl Into<String>) -> Self {
        Self { program: Program::Shell(line.into()), batch: false, directory: None, input: None }
    }

    /// An argument list; the first is the program.
    pub fn argv(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { program: Program::Argv(argv.into_iter().map(Into::into).collect()), ..Self::shell("") }
    }

    /// Marks this as the user's program in batch mode.
    #[must_use]
    pub fn in_batch_mode(mut self) -> Self {
        self.batch = true;
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Sets the content of stdin; at most [`MAX_INPUT_BYTES`].
    #[must_use]
    pub fn with_input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Its stdin. The input is in the pipe before the program starts.
    pub(super) fn stdin(&self) -> io::Result<Stdio> {
        let Some(input) = &self.input else { return Ok(Stdio::null()) };
        if input.len() > MAX_INPUT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin input too large"));
        }
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(input)?;
        Ok(reader.into())
    }

    /// Converts to a std command with the given environment.
    pub(super) fn to_std(&self, env: &ChildEnv) -> std::process::Command {
        let mut command = match &self.program {
            Program::Shell(line) => {
                let mut shell = std::process::Command::new(SHELL);
                shell.arg("-c").arg(line);
                shell
            }
            Program::Argv(argv) => {
                let mut direct = std::process::Command::new(argv.first().cloned().unwrap_or_default());
                direct.args(argv.get(1..).unwrap_or_default());
                direct
            }
        };
        command.env_clear().envs(env);
        if self.batch {
            command.env(BATCH_MODE, "1");
        } else {
            command.env_remove(BATCH_MODE);
        }
        command
    }

    /// The file that is executed.
    pub(super) fn executable(&self) -> OsString {
        match &self.program {
            Program::Shell(_) => SHELL.into(),
            Program::Argv(argv) => argv.first().cloned().unwrap_or_default(),
        }
    }
}

/// The shell for command lines.
const SHELL: &str = "/bin/sh";

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Program::Shell(line) => f.write_str(line),
            Program::Argv(argv) => {
                for (index, word) in argv.iter().enumerate() {
                    let gap = if index == 0 { "" } else { " " };
                    write!(f, "{gap}{}", quoted(&word.to_string_lossy()))?;
                }
                Ok(())
            }
        }
    }
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_lists_are_shown_as_one_would_type_them() {
        let command = Command::argv(["sh", "-c", "exec \"$0\"", "./it's", "", "a\nb", "./größe.c"]);
        assert_eq!(command.to_string(), "sh -c 'exec \"$0\"' './it'\\''s' '' 'a\nb' ./größe.c");
        assert_eq!(Command::shell("make; true").to_string(), "make; true");
    }
}
