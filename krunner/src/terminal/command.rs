//! Commands of a web terminal: `%ping`, `%resize ROWS COLS`, `%show graph PATH`.

use super::shell::WindowSize;

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

const UNKNOWN: &str = "Invalid command.";

/// Parses a command.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn parse(code: &str) -> Result<TerminalCommand, String> {
    let words = code.trim().strip_prefix('%').and_then(shlex::split).ok_or(UNKNOWN)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ping"] => Ok(TerminalCommand::Ping),
        ["resize", rows, columns] => match (size(rows), size(columns)) {
            (Some(rows), Some(columns)) => Ok(TerminalCommand::Resize(WindowSize { rows, columns })),
            _ => Err(format!("{UNKNOWN} ROWS and COLS in `%resize ROWS COLS` must be numbers from 1 to {}", u16::MAX)),
        },
        ["resize", ..] => Err(format!("{UNKNOWN} Usage: `%resize ROWS COLS`")),
        ["show", "graph"] => Ok(TerminalCommand::ShowGraph(".".to_owned())),
        ["show", "graph", path] => Ok(TerminalCommand::ShowGraph(path.to_owned())),
        ["show", ..] => Err(format!("{UNKNOWN} Usage: `%show graph PATH` (quote a PATH that contains spaces)")),
        _ => Err(UNKNOWN.to_owned()),
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
            assert_eq!(parse(code), Err("Invalid command.".into()), "{code:?}");
        }
        for code in
            ["%resize", "%resize 1", "%resize 0 80", "%resize -1 80", "%resize 70000 1", "%show", "%show graph a b"]
        {
            let problem = parse(code).unwrap_err();
            assert!(problem.starts_with("Invalid command. ") && problem.len() > 30, "{code:?}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(code in "\\PC*") {
            let _ = parse(&format!("%{code}"));
            let _ = parse(&code);
        }
    }
}
