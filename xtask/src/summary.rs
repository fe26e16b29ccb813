//! Summarizes a test run from the output of `cargo test` and from the files to which tests write why they were skipped or
//! retried. Pure.

use std::collections::{BTreeMap, BTreeSet};

use krunner_tests::flaky::Retry;

/// Enough for an assertion message and some output before it.
const LINES_OF_A_FAILURE: usize = 12;
const COLUMNS_OF_A_FAILURE: usize = 500;

/// The results of all test binaries of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    /// The captured output of each failed test.
    output: BTreeMap<String, Vec<String>>,
    /// The test whose captured output is being read.
    current: Option<String>,
    /// The tests that were skipped for each reason. A test may have several reasons.
    skips: BTreeMap<String, BTreeSet<String>>,
    /// What was retried, and why, as one line each.
    retries: Vec<String>,
}

/// The result of a check that `cargo test` does not run.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: String,
    /// The failures, or the reason why the check was skipped.
    pub(crate) outcome: Result<Vec<String>, String>,
}

impl Summary {
    /// Parses one line of `cargo test`'s standard output.
    pub(crate) fn read_line(&mut self, line: &str) {
        self.read_captured_output(line);
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

    /// Keeps the captured output of failed tests: a line `---- NAME stdout ----`, then its output.
    fn read_captured_output(&mut self, line: &str) {
        let header = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if header.is_some() || line == "failures:" {
            self.current = header.map(str::to_owned);
        } else if let Some(test) = self.current.clone().filter(|_| !line.trim().is_empty()) {
            self.output.entry(test).or_default().push(line.to_owned());
        }
    }

    /// Parses the skip file: each line has a test's name, a tab, and the reason. A skipped test returns early and its binary
    /// counts it as passed, so this subtracts it.
    pub(crate) fn read_skips(&mut self, text: &str) {
        let mut names = BTreeSet::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (name, reason) = line.split_once('\t').unwrap_or((line, "no reason given"));
            names.insert(name);
            self.skip(name, reason);
        }
        self.passed = self.passed.saturating_sub(names.len() as u64);
    }

    /// Parses the file of retries: each line has a test's name, the reason and the attempt.
    pub(crate) fn read_retries(&mut self, text: &str) {
        self.retries.extend(text.lines().filter(|line| !line.trim().is_empty()).map(ToOwned::to_owned));
    }

    /// Counts a retry that is not in the file.
    pub(crate) fn retried(&mut self, retry: &impl ToString) {
        self.retries.push(retry.to_string());
    }

    /// The failed tests.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Whether a test or a check failed.
    pub(crate) fn has_failures(&self) -> bool {
        self.failed > 0 || !self.failures.is_empty()
    }

    /// Adds the results of a part of the run.
    pub(crate) fn add(&mut self, part: Self) {
        self.passed += part.passed;
        self.failed += part.failed;
        self.failures.extend(part.failures);
        self.output.extend(part.output);
        self.retries.extend(part.retries);
        for (reason, names) in part.skips {
            self.skips.entry(reason).or_default().extend(names);
        }
    }

    /// Counts failed tests that passed in `again`, a second run of all of them, as passed and retried.
    pub(crate) fn recover(&mut self, again: &Self) {
        let failed = std::mem::take(&mut self.failures);
        if again.passed + again.failed != failed.len() as u64 {
            self.failures = failed;
            return;
        }
        for name in failed {
            if again.failures.contains(&name) {
                self.failures.push(name);
                continue;
            }
            let why = self.output.remove(&name).unwrap_or_default().join(" ");
            self.retried(&Retry::new(name, &why, 1, 2));
            self.passed += 1;
            self.failed -= 1;
        }
    }

    /// Counts a check as a test.
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

    /// The number of skipped tests. A test with several reasons counts once.
    pub(crate) fn skipped(&self) -> usize {
        self.skips.values().flatten().collect::<BTreeSet<_>>().len()
    }

    /// Whether any test ran or could have run.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skips.is_empty()
    }

    /// The failed tests, each with the end of its captured output. Printed last, since logs are often truncated at the front.
    pub(crate) fn failure_list(&self) -> String {
        let mut text = Vec::new();
        for name in &self.failures {
            text.push(format!("failed: {name}\n"));
            let output = self.output.get(name).map_or(&[][..], Vec::as_slice);
            for line in &output[output.len().saturating_sub(LINES_OF_A_FAILURE)..] {
                let cut: String = line.chars().take(COLUMNS_OF_A_FAILURE).collect();
                text.push(format!("    {cut}\n"));
            }
        }
        text.concat()
    }

    /// The skipped tests, grouped by reason.
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

    /// The retries, and their number. Every attempt before the one that counts is a retry.
    pub(crate) fn retry_list(&self) -> String {
        let mut text: Vec<_> = self.retries.iter().map(|retry| format!("  {retry}\n")).collect();
        if !text.is_empty() {
            text.insert(0, "retries:\n".to_owned());
        }
        text.push(format!("flaky: {} retried\n", self.retries.len()));
        text.concat()
    }

    /// The last line of the output, which CI parses.
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

    fn summary(output: &str, skips: &str) -> Summary {
        let mut summary = Summary::default();
        output.lines().for_each(|line| summary.read_line(line));
        summary.read_skips(skips);
        summary
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
        let summary = summary(OUTPUT, "");
        assert_eq!(summary.closing_line(), "suites: 12 passed, 1 failed, 2 skipped");
        let expected = "failed: conformance::input
    thread 'conformance::input' panicked at tests/suites/conformance.rs:7:5:
    assertion failed: it arrived
";
        assert_eq!(summary.failure_list(), expected);
    }

    #[test]
    fn a_failure_that_passes_alone_is_flaky() {
        let again = summary("test conformance::input ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n", "");
        let mut total = summary(OUTPUT, "");
        total.recover(&again);
        assert_eq!(total.closing_line(), "suites: 13 passed, 0 failed, 2 skipped");
        assert!(total.retry_list().ends_with("assertion failed: it arrived, attempt 1 of 2\nflaky: 1 retried\n"));

        let failed = summary("test conformance::input ... FAILED\ntest result: FAILED. 0 passed; 1 failed;\n", "");
        for again in [failed, Summary::default()] {
            let mut total = summary(OUTPUT, "");
            total.recover(&again);
            assert_eq!(total.closing_line(), "suites: 12 passed, 1 failed, 2 skipped");
        }
        let mut sum = Summary::default();
        sum.add(total);
        assert_eq!(sum.closing_line(), "suites: 13 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_long_failure_is_cut_at_the_front() {
        let lines = (0..99).map(|index| format!("{index} {}\n", "x".repeat(999))).collect::<Vec<_>>().concat();
        let summary =
            summary(&format!("test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n{lines}\nfailures:\n    a\n"), "");
        let list = summary.failure_list();
        assert_eq!(list.lines().count(), 1 + LINES_OF_A_FAILURE);
        assert!(list.ends_with(&format!("    98 {}\n", "x".repeat(497))), "{list}");
    }

    #[test]
    fn a_skipped_test_does_not_count_as_passed() {
        let summary = summary(OUTPUT, "monitor::oom\tneeds root\nmonitor::oom\tneeds BTF\n");
        assert_eq!(summary.closing_line(), "suites: 11 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn checks_count_as_tests() {
        let mut summary = summary(OUTPUT, "");
        let check = |name: &str, outcome| Check { name: name.into(), outcome };
        summary.check(&check("vm::5.10", Ok(Vec::new())));
        summary.check(&check("vm::7", Ok(vec!["two missed".into(), "a hang".into()])));
        summary.check(&check("vm::6.1", Err("no qemu".into())));
        assert_eq!(summary.closing_line(), "suites: 13 passed, 2 failed, 3 skipped");
        assert!(summary.failure_list().ends_with("failed: vm::7 (two missed; a hang)\n"));
    }

    #[test]
    fn a_failed_check_is_a_failure() {
        let mut summary = Summary::default();
        let check = |outcome| Check { name: "audit::bans".into(), outcome };
        summary.check(&check(Ok(Vec::new())));
        summary.check(&check(Err("no cargo-deny".into())));
        assert!(!summary.has_failures());
        summary.check(&check(Ok(vec!["two versions".into()])));
        assert!(summary.has_failures());
    }

    #[test]
    fn skips_are_grouped_by_reason() {
        let summary = summary("", "b\tneeds root\na\tneeds root\nc\tno venv\n\n");
        assert_eq!(summary.skip_list(), "skipped:\n  needs root\n    a\n    b\n  no venv\n    c\n");
        assert!(!summary.is_empty());
    }

    #[test]
    fn retries_are_listed_and_change_no_result() {
        let mut summary = summary(OUTPUT, "");
        assert_eq!(summary.retry_list(), "flaky: 0 retried\n");
        summary.read_retries("queue::distance: too close, attempt 1 of 5\n\n");
        summary.retried(&"oom-matrix::row: another was killed, attempt 2 of 3");
        let expected = "retries:
  queue::distance: too close, attempt 1 of 5
  oom-matrix::row: another was killed, attempt 2 of 3
flaky: 2 retried
";
        assert_eq!(summary.retry_list(), expected);
        assert_eq!(summary.closing_line(), "suites: 12 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_run_without_tests_is_empty() {
        let summary = summary("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n", "");
        assert!(summary.is_empty());
        assert_eq!(summary.skip_list(), "no skips\n");
    }
}
