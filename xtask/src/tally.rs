//! What a run of tests came to, counted from what `cargo test` prints and from the file in which
//! tests that skipped themselves say why. Plain text in, numbers out.

use std::collections::{BTreeMap, BTreeSet};

/// Enough for an assertion and what led to it.
const LINES_OF_A_FAILURE: usize = 12;
const COLUMNS_OF_A_FAILURE: usize = 500;

/// The sums over all test binaries of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    /// Test -> how it failed, in its own words.
    words: BTreeMap<String, Vec<String>>,
    /// Whose words the next lines are.
    speaker: Option<String>,
    /// Reason -> tests. A test may be in more than one group.
    skips: BTreeMap<String, BTreeSet<String>>,
}

/// A check that is no test of cargo's.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: String,
    /// What it fell short of, or why it was skipped.
    pub(crate) outcome: Result<Vec<String>, String>,
}

impl Tally {
    /// Takes in one line of `cargo test`'s standard output.
    pub(crate) fn read_line(&mut self, line: &str) {
        self.read_words(line);
        let Some(rest) = line.strip_prefix("test ") else { return };
        if let Some((_, counts)) = rest.strip_prefix("result: ").and_then(|rest| rest.split_once(". ")) {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some((name, outcome)) = rest.rsplit_once(" ... ") {
            match outcome.split_once(',').map_or((outcome, ""), |(outcome, reason)| (outcome, reason.trim())) {
                ("FAILED", _) => self.failures.push(name.to_owned()),
                ("ignored", "") => self.skip(name, "marked #[ignore]"),
                ("ignored", reason) => self.skip(name, reason),
                _ => {}
            }
        }
    }

    /// Keeps what a test that failed has printed: `---- NAME stdout ----`, its lines, and then the next one or the list.
    fn read_words(&mut self, line: &str) {
        let header = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if header.is_some() || line == "failures:" {
            self.speaker = header.map(str::to_owned);
        } else if let Some(speaker) = self.speaker.clone().filter(|_| !line.trim().is_empty()) {
            self.words.entry(speaker).or_default().push(line.to_owned());
        }
    }

    /// Takes in the skip file: lines of a test's name, a tab, and the reason. Such a test returned
    /// early, so its binary counted it as passed; here it no longer is.
    pub(crate) fn read_skips(&mut self, text: &str) {
        let mut names = BTreeSet::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (name, reason) = line.split_once('\t').unwrap_or((line, "no reason given"));
            names.insert(name);
            self.skip(name, reason);
        }
        self.passed = self.passed.saturating_sub(names.len() as u64);
    }

    /// Takes in a check that is no test of cargo's.
    pub(crate) fn check(&mut self, Check { name, outcome }: &Check) {
        match outcome {
            Err(reason) => self.skip(name, reason),
            Ok(shortfalls) if shortfalls.is_empty() => self.passed += 1,
            Ok(shortfalls) => {
                self.failed += 1;
                self.failures.push(format!("{name} ({})", shortfalls.join("; ")));
            }
        }
    }

    fn skip(&mut self, name: &str, reason: &str) {
        self.skips.entry(reason.to_owned()).or_default().insert(name.to_owned());
    }

    /// How many tests were skipped, however many reasons each had.
    pub(crate) fn skipped(&self) -> usize {
        self.skips.values().flatten().collect::<BTreeSet<_>>().len()
    }

    /// Whether any test ran or could have run.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skips.is_empty()
    }

    /// The tests that failed, each with the end of its words: where the output is kept in part, it is this part.
    pub(crate) fn failure_list(&self) -> String {
        let mut text = Vec::new();
        for name in &self.failures {
            text.push(format!("failed: {name}\n"));
            let words = self.words.get(name).map_or(&[][..], Vec::as_slice);
            for line in &words[words.len().saturating_sub(LINES_OF_A_FAILURE)..] {
                let cut: String = line.chars().take(COLUMNS_OF_A_FAILURE).collect();
                text.push(format!("    {cut}\n"));
            }
        }
        text.concat()
    }

    /// The skips by reason, for people.
    pub(crate) fn skip_list(&self) -> String {
        if self.skips.is_empty() {
            return "no skips\n".to_owned();
        }
        let mut text = vec!["skipped:\n".to_owned()];
        for (reason, names) in &self.skips {
            text.push(format!("  {reason}\n"));
            text.extend(names.iter().map(|name| format!("    {name}\n")));
        }
        text.concat()
    }

    /// The closing line, in the form that CI reads.
    pub(crate) fn closing_line(&self) -> String {
        format!("suites: {} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped())
    }
}

/// The number before `what` in `3 passed; 1 failed; ...`.
fn count(counts: &str, what: &str) -> u64 {
    counts
        .split(';')
        .filter_map(|part| part.trim().split_once(' '))
        .find(|(_, name)| *name == what)
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str, skips: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read_line(line));
        tally.read_skips(skips);
        tally
    }

    const OUTPUT: &str = "\
running 4 tests
test conformance::makefile ... ok
test conformance::input ... FAILED
test monitor::oom ... ok
test slow ... ignored, takes an hour
test src/lib.rs - parse (line 3) ... ignored

failures:

---- conformance::input stdout ----
thread 'conformance::input' panicked at tests/suites/conformance.rs:7:5:

assertion failed: it arrived

failures:
    conformance::input

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.31s
test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn sums_all_binaries_and_names_the_failures() {
        let tally = tally(OUTPUT, "");
        assert_eq!(tally.closing_line(), "suites: 12 passed, 1 failed, 2 skipped");
        let told = "failed: conformance::input
    thread 'conformance::input' panicked at tests/suites/conformance.rs:7:5:
    assertion failed: it arrived
";
        assert_eq!(tally.failure_list(), told);
    }

    #[test]
    fn of_a_long_failure_the_end_is_told() {
        let lines = (0..99).map(|index| format!("{index} {}\n", "x".repeat(999))).collect::<Vec<_>>().concat();
        let tally =
            tally(&format!("test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n{lines}\nfailures:\n    a\n"), "");
        let told = tally.failure_list();
        assert_eq!(told.lines().count(), 1 + LINES_OF_A_FAILURE);
        assert!(told.ends_with(&format!("    98 {}\n", "x".repeat(497))), "{told}");
    }

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let tally = tally(OUTPUT, "monitor::oom\tneeds root\nmonitor::oom\tneeds BTF\n");
        assert_eq!(tally.closing_line(), "suites: 11 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn checks_count_as_tests() {
        let mut tally = tally(OUTPUT, "");
        let check = |name: &str, outcome| Check { name: name.into(), outcome };
        tally.check(&check("vm::5.10", Ok(Vec::new())));
        tally.check(&check("vm::7", Ok(vec!["two missed".into(), "a hang".into()])));
        tally.check(&check("vm::6.1", Err("no qemu".into())));
        assert_eq!(tally.closing_line(), "suites: 13 passed, 2 failed, 3 skipped");
        assert!(tally.failure_list().ends_with("failed: vm::7 (two missed; a hang)\n"));
    }

    #[test]
    fn skips_are_grouped_by_reason() {
        let tally = tally("", "b\tneeds root\na\tneeds root\nc\tno venv\n\n");
        assert_eq!(tally.skip_list(), "skipped:\n  needs root\n    a\n    b\n  no venv\n    c\n");
        assert!(!tally.is_empty());
    }

    #[test]
    fn nothing_ran_is_seen() {
        let tally = tally("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n", "");
        assert!(tally.is_empty());
        assert_eq!(tally.skip_list(), "no skips\n");
    }
}
