//! Commands of a web terminal: `%ping`, `%resize ROWS COLS`, `%show graph PATH`.

use super::window_size::WindowSize;

/// A parsed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TerminalCommand {
    /// Checks that the runner responds.
    Ping,
    /// The window was resized.
    Resize(WindowSize),
    /// Show the history of the repository at this path, which is relative to the shell's directory.
    ShowGraph(String),
}

/// Why a text is not a command; its texts are shown to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TerminalCommandError {
    /// The first word names no command, or a command has words that it does not take.
    #[error("{UNKNOWN}")]
    Unknown,
    /// A size is not a positive number of 16 bits.
    #[error("{UNKNOWN} ROWS and COLS in `%resize ROWS COLS` must be numbers from 1 to {}", u16::MAX)]
    WindowSize,
    /// `%resize` without exactly two words.
    #[error("{UNKNOWN} Usage: `%resize ROWS COLS`")]
    ResizeUsage,
    /// `%show` with anything but one graph.
    #[error("{UNKNOWN} Usage: `%show graph PATH` (quote a PATH that contains spaces)")]
    ShowUsage,
}

const UNKNOWN: &str = "Invalid command.";

/// Parses a command.
///
/// # Errors
/// With a text for the user.
pub(crate) fn parse(code: &str) -> Result<TerminalCommand, TerminalCommandError> {
    let words = code.trim().strip_prefix('%').and_then(shlex::split).ok_or(TerminalCommandError::Unknown)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ping"] => Ok(TerminalCommand::Ping),
        ["resize", rows, columns] => match (size(rows), size(columns)) {
            (Some(rows), Some(columns)) => Ok(TerminalCommand::Resize(WindowSize { rows, columns })),
            _ => Err(TerminalCommandError::WindowSize),
        },
        ["resize", ..] => Err(TerminalCommandError::ResizeUsage),
        ["show", "graph"] => Ok(TerminalCommand::ShowGraph(".".to_owned())),
        ["show", "graph", path] => Ok(TerminalCommand::ShowGraph(path.to_owned())),
        ["show", ..] => Err(TerminalCommandError::ShowUsage),
        _ => Err(TerminalCommandError::Unknown),
    }
}

fn size(word: &str) -> Option<u16> {
    word.parse().ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_are_understood() {
        assert_eq!(parse("%ping"), Ok(TerminalCommand::Ping));
        assert_eq!(parse(" %ping\n"), Ok(TerminalCommand::Ping));
        assert_eq!(parse("%resize 40 132"), Ok(TerminalCommand::Resize(WindowSize { rows: 40, columns: 132 })));
        assert_eq!(parse("%show graph ."), Ok(TerminalCommand::ShowGraph(".".into())));
        assert_eq!(parse("%show graph"), Ok(TerminalCommand::ShowGraph(".".into())));
        assert_eq!(parse("%show graph 'my repo'"), Ok(TerminalCommand::ShowGraph("my repo".into())));
    }

    #[test]
    fn all_else_is_invalid_and_near_misses_are_explained() {
        for code in ["", "ls", "%", "%%ping", "%ping x", "%show graph 'open", "%reboot"] {
            assert_eq!(parse(code), Err(TerminalCommandError::Unknown), "{code:?}");
        }
        for code in ["%resize 0 80", "%resize -1 80", "%resize 70000 1"] {
            assert_eq!(parse(code), Err(TerminalCommandError::WindowSize), "{code:?}");
        }
        for code in ["%resize", "%resize 1", "%resize 1 2 3"] {
            assert_eq!(parse(code), Err(TerminalCommandError::ResizeUsage), "{code:?}");
        }
        for code in ["%show", "%show graph a b"] {
            assert_eq!(parse(code), Err(TerminalCommandError::ShowUsage), "{code:?}");
        }
    }

    #[test]
    fn error_texts_are_stable() {
        use TerminalCommandError::{ResizeUsage, ShowUsage, Unknown, WindowSize};
        assert_eq!(
            [Unknown, WindowSize, ResizeUsage, ShowUsage].map(|error| error.to_string()),
            [
                "Invalid command.",
                "Invalid command. ROWS and COLS in `%resize ROWS COLS` must be numbers from 1 to 65535",
                "Invalid command. Usage: `%resize ROWS COLS`",
                "Invalid command. Usage: `%show graph PATH` (quote a PATH that contains spaces)",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_answered(code in "\\PC*") {
            let _ = parse(&format!("%{code}"));
            let _ = parse(&code);
        }
    }
}
