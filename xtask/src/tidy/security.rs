//! SECURITY.md answers each threat by a test: the tests exist, and no row is without one.

use super::Complaint;
use super::source::Source;

const SECURITY: &str = "SECURITY.md";

/// The last column of a table of threats.
const SHOWN_BY: &str = "| shown by |";

/// Complaints about rows without a test, and about tests that do not exist.
pub(super) fn check(sources: &[Source], complaints: &mut Vec<Complaint>) {
    let Some(security) = sources.iter().find(|source| source.path() == SECURITY) else { return };
    for (line, row) in threats(security.text()) {
        let mut named = tests(row).peekable();
        if named.peek().is_none() {
            complaints.push(Complaint::new(SECURITY, line, "a threat without a test", "name one as `suite::test`"));
        }
        for (module, test) in named.filter(|(module, test)| !sources.iter().any(|source| has(source, module, test))) {
            let problem = format!("there is no test `{module}::{test}`");
            complaints.push(Complaint::new(SECURITY, line, problem, "name one that shows the answer"));
        }
    }
}

/// The rows of all tables of threats, with their lines.
fn threats(text: &str) -> Vec<(usize, &str)> {
    let mut rows = Vec::new();
    let mut in_table = false;
    for (index, line) in text.lines().enumerate() {
        if !line.starts_with('|') {
            in_table = false;
        } else if line.ends_with(SHOWN_BY) {
            in_table = true;
        } else if in_table && !line.starts_with("|---") {
            rows.push((index + 1, line));
        }
    }
    rows
}

/// What is written as `module::test` in code marks.
fn tests(row: &str) -> impl Iterator<Item = (&str, &str)> {
    row.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::"))
}

fn has(source: &Source, module: &str, test: &str) -> bool {
    source.path().ends_with(&format!("/{module}.rs")) && source.text().contains(&format!("fn {test}("))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
| threat | answer |
|---|---|
| not asked | for a test |

| threat | answer | shown by |
|---|---|---|
| one | `file.rs` | `stop::it_stops` `stop::it_is_gone` |
| two | none | |
";

    #[test]
    fn tests_that_are_missing_are_named_with_their_line() {
        let sources = [
            Source::new(SECURITY, TEXT),
            Source::new("tests/suites/stop.rs", "#[test]\nfn it_stops() {}\n"),
            Source::new("tests/suites/other.rs", "fn it_is_gone() {}"),
        ];
        let mut complaints = Vec::new();
        check(&sources, &mut complaints);
        let told: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains(":7") && told[0].contains("there is no test `stop::it_is_gone`"), "{told:?}");
        assert!(told[1].contains(":8") && told[1].contains("a threat without a test"), "{told:?}");
    }
}
