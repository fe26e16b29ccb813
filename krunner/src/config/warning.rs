//! Warnings about invalid configuration.

use std::fmt;
use std::path::{Path, PathBuf};

/// How much is shown of the start and of the end of a long problem.
const SHOWN_BYTES: usize = 200;

/// A problem in a configuration file or variable and its consequence; logged once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigWarning {
    file: PathBuf,
    line: Option<usize>,
    problem: String,
}

impl ConfigWarning {
    pub(super) fn new(file: &Path, line: Option<usize>, problem: impl AsRef<str>) -> Self {
        Self { file: file.to_owned(), line, problem: shown(problem.as_ref()) }
    }
}

/// One line of the log: names and values in it may be of any length and contain control characters. Both ends are shown,
/// because the consequence is at the end.
fn shown(problem: &str) -> String {
    let mut shown = String::new();
    let start = problem.floor_char_boundary(SHOWN_BYTES);
    let end = problem.ceil_char_boundary(problem.len().saturating_sub(SHOWN_BYTES));
    let parts = if start < end { vec![&problem[..start], "...", &problem[end..]] } else { vec![problem] };
    for character in parts.iter().flat_map(|part| part.chars()) {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_one_line_of_bounded_length() {
        let warning = |problem: &str| ConfigWarning::new(Path::new("/f"), Some(3), problem).to_string();
        assert_eq!(
            warning("`é` is \"a\u{1b}[2J\u{9b}\n\"; skipped"),
            "/f:3: `é` is \"a\\u{1b}[2J\\u{9b}\\n\"; skipped"
        );
        let long = warning(&format!("variable {} skipped", "ü".repeat(100_000)));
        assert!(long.starts_with("/f:3: variable üü") && long.ends_with("üü skipped") && long.len() < 450, "{long}");
    }
}
