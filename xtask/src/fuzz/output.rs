//! Reads what libFuzzer prints, and shows the results. Pure, but for printing.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// One target's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetResult {
    pub(super) name: String,
    pub(super) executions: u64,
    pub(super) executions_per_second: u64,
    /// Covered edges of the control flow.
    pub(super) edges: u64,
    /// Inputs that this run added to the corpus.
    pub(super) new_inputs: u64,
    pub(super) finding: Option<Finding>,
}

/// An input that broke a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The first line of the panic's message, or libFuzzer's summary.
    problem: String,
    /// The file with the input.
    pub(super) input: Option<PathBuf>,
    /// Runs the input again.
    reproduce: String,
}

impl TargetResult {
    /// The result in a log; statistics that are missing are 0.
    pub(super) fn read(name: &str, log: &str) -> Self {
        let statistic = |name: &str| {
            let line = log.lines().rev().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
            line.and_then(|value| value.trim_start_matches(':').trim().parse().ok()).unwrap_or(0)
        };
        let edges = log.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split(' ').next()?.parse().ok());
        Self {
            name: name.to_owned(),
            executions: statistic("number_of_executed_units"),
            executions_per_second: statistic("average_exec_per_sec"),
            edges: edges.unwrap_or(0),
            new_inputs: statistic("new_units_added"),
            finding: None,
        }
    }
}

impl Finding {
    /// The finding in the log of a target that failed.
    pub(super) fn read(log: &str, binary: &Path, limits: &[&str]) -> Self {
        let mut lines = log.lines();
        let panic = lines.find(|line| line.contains(" panicked at "));
        let message = panic.and_then(|panic| Some((panic.split_once(" panicked at ")?.1, lines.next()?)));
        let problem = match message {
            Some((place, message)) => format!("{place} {message}"),
            None => last_after(log, "SUMMARY: libFuzzer: ").unwrap_or("it ended without a summary").to_owned(),
        };
        let input = last_after(log, "Test unit written to ").map(PathBuf::from);
        let shown = input.as_ref().map(|input| format!(" {}", input.display())).unwrap_or_default();
        let reproduce = format!("{}{shown} {}", binary.display(), limits.join(" "));
        Self { problem, input, reproduce }
    }

    /// Whether the input took too long.
    pub(super) fn is_timeout(&self) -> bool {
        self.problem == "timeout"
    }
}

fn last_after<'a>(log: &'a str, start: &str) -> Option<&'a str> {
    log.lines().rev().find_map(|line| Some(line.split_once(start)?.1.trim()))
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; reproduce: {}", self.problem, self.reproduce)
    }
}

pub(super) fn in_json(results: &[TargetResult]) -> Value {
    let targets: Vec<Value> = results
        .iter()
        .map(|result| {
            json!({
                "name": result.name,
                "executions": result.executions,
                "executions_per_second": result.executions_per_second,
                "edges": result.edges,
                "new_inputs": result.new_inputs,
                "result": if result.finding.is_some() { "finding" } else { "ok" },
                "problem": result.finding.as_ref().map(|finding| &finding.problem),
                "input": result.finding.as_ref().and_then(|finding| finding.input.as_ref()),
                "reproduce": result.finding.as_ref().map(|finding| &finding.reproduce),
            })
        })
        .collect();
    json!({ "targets": targets })
}

pub(super) fn print_table(results: &[TargetResult]) {
    println!("{:<20} {:>11} {:>9} {:>7} {:>10}  result", "target", "executions", "exec/s", "edges", "new inputs");
    for result in results {
        println!(
            "{:<20} {:>11} {:>9} {:>7} {:>10}  {}",
            result.name,
            result.executions,
            result.executions_per_second,
            result.edges,
            result.new_inputs,
            if result.finding.is_some() { "FINDING" } else { "ok" }
        );
    }
    for TargetResult { name, finding, .. } in results {
        if let Some(Finding { problem, reproduce, .. }) = finding {
            println!("{name}: {problem}\n    {reproduce}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb
#512\tNEW    cov: 12 ft: 14 corp: 2/3b lim: 4 exec/s: 512 rss: 31Mb L: 2/2 MS: 1 CMP-

thread '<unnamed>' (3) panicked at krunner/src/config/fuzzing.rs:77:9:
one line: \"x\"
note: run with `RUST_BACKTRACE=1`
==3== ERROR: libFuzzer: deadly signal
SUMMARY: libFuzzer: deadly signal
artifact_prefix='/t/'; Test unit written to /t/crash-1
stat::number_of_executed_units: 513
stat::average_exec_per_sec:     512
stat::new_units_added:          1
";

    #[test]
    fn statistics_and_findings_are_read() {
        let mut result = TargetResult::read("environ", LOG);
        assert_eq!(
            (result.executions, result.executions_per_second, result.edges, result.new_inputs),
            (513, 512, 12, 1)
        );
        let finding = Finding::read(LOG, Path::new("/b/environ"), &["-timeout=1"]);
        assert_eq!(
            finding.to_string(),
            "krunner/src/config/fuzzing.rs:77:9: one line: \"x\"; reproduce: /b/environ /t/crash-1 -timeout=1"
        );
        assert!(!finding.is_timeout());
        result.finding = Some(finding);
        assert_eq!(in_json(&[result])["targets"][0]["input"], "/t/crash-1");
    }

    #[test]
    fn what_is_no_panic_is_named_by_libfuzzer() {
        let slow = "SUMMARY: libFuzzer: timeout\nartifact_prefix='/t/'; Test unit written to /t/timeout-1\n";
        assert!(Finding::read(slow, Path::new("/b/x"), &[]).is_timeout());
        let nothing = Finding::read("", Path::new("/b/x"), &[]);
        assert_eq!(nothing.to_string(), "it ended without a summary; reproduce: /b/x ");
        assert_eq!(TargetResult::read("x", "").executions, 0);
    }
}
