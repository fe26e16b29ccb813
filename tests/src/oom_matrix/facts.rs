//! What a report must say besides its victim's PID. Pure.

use serde_json::Value;

/// A field of a report and what it must be.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    /// A JSON pointer into the report; empty for the whole report.
    field: &'static str,
    expected: Expected,
}

#[derive(Clone, Debug)]
enum Expected {
    Is(Value),
    StartsWith(String),
    /// What holds, in words, and the test of it.
    That(&'static str, fn(&Value) -> bool),
}

impl Fact {
    pub(super) fn is(field: &'static str, value: impl Into<Value>) -> Self {
        Self { field, expected: Expected::Is(value.into()) }
    }

    pub(super) fn starts_with(field: &'static str, text: String) -> Self {
        Self { field, expected: Expected::StartsWith(text) }
    }

    pub(super) const fn that(field: &'static str, what: &'static str, holds: fn(&Value) -> bool) -> Self {
        Self { field, expected: Expected::That(what, holds) }
    }

    /// Describes how the report differs.
    fn problem(&self, report: &Value) -> Option<String> {
        let value = report.pointer(self.field);
        let holds = value.is_some_and(|value| match &self.expected {
            Expected::Is(expected) => value == expected,
            Expected::StartsWith(expected) => value.as_str().is_some_and(|text| text.starts_with(expected)),
            Expected::That(_, holds) => holds(value),
        });
        (!holds).then(|| format!("{} is {}, expected: {}", self.field, shown(value), self.expected.in_words()))
    }
}

impl Expected {
    fn in_words(&self) -> String {
        match self {
            Self::Is(value) => shown(Some(value)),
            Self::StartsWith(text) => format!("{text:?} at its beginning"),
            Self::That(what, _) => (*what).to_owned(),
        }
    }
}

/// The beginning of a value; a command line may have 64 KiB.
fn shown(value: Option<&Value>) -> String {
    const CHARS: usize = 1000;
    value.map_or_else(|| "missing".to_owned(), |value| value.to_string().chars().take(CHARS).collect())
}

/// What every report of a kill with BPF must say.
pub(super) const ALWAYS: &[Fact] = &[
    Fact::that("/tracer", "bpf", |tracer| tracer == "bpf"),
    Fact::that("/victim/exited", "true", |exited| exited == true),
    Fact::that("/victim", "resident memory that is the sum of its parts", is_sum),
    Fact::that("/largest", "at most five processes, the largest first", are_sorted),
    Fact::that("", "processes that are alive as the largest", is_victim_not_among_largest),
    Fact::that("", "killed before it exited", is_killed_before_exit),
    Fact::that("/time", "a time in UTC", |time| {
        time.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z'))
    }),
];

/// Describes each of these facts that does not hold.
pub(super) fn problems(facts: &[Fact], report: &Value) -> Vec<String> {
    facts.iter().filter_map(|fact| fact.problem(report)).collect()
}

fn is_sum(victim: &Value) -> bool {
    let bytes = |field: &str| victim[field].as_u64();
    let parts = || Some(bytes("anon_bytes")? + bytes("file_bytes")? + bytes("shmem_bytes")?);
    bytes("rss_bytes").is_some() && bytes("rss_bytes") == parts() && bytes("vm_bytes") >= bytes("rss_bytes")
}

fn are_sorted(largest: &Value) -> bool {
    largest.as_array().is_some_and(|largest| {
        largest.len() <= 5 && largest.iter().map(|process| process["rss_bytes"].as_u64()).is_sorted_by(|a, b| a >= b)
    })
}

fn is_victim_not_among_largest(report: &Value) -> bool {
    let is_victim = |process: &Value| {
        process["pid"] == report["victim"]["pid"] && process["start_ticks"] == report["victim"]["start_ticks"]
    };
    report["largest"].as_array().is_some_and(|largest| !largest.iter().any(is_victim))
}

fn is_killed_before_exit(report: &Value) -> bool {
    report["killed_at_boot_ns"].as_u64() <= report["exited_at_boot_ns"].as_u64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fact_names_the_field_and_both_values() {
        let report = json!({ "victim": { "name": "big", "running_s": 7.5 } });
        assert_eq!(Fact::is("/victim/name", "big").problem(&report), None);
        let problem = Fact::is("/victim/name", "small").problem(&report);
        assert_eq!(problem.as_deref(), Some(r#"/victim/name is "big", expected: "small""#));
        let problem = Fact::starts_with("/victim/cmdline", "eat".into()).problem(&report);
        assert_eq!(problem.as_deref(), Some(r#"/victim/cmdline is missing, expected: "eat" at its beginning"#));
        let young = Fact::that("/victim/running_s", "young", |age| age.as_f64() < Some(5.0));
        assert_eq!(young.problem(&report).as_deref(), Some("/victim/running_s is 7.5, expected: young"));
    }

    #[test]
    fn every_report_has_a_dead_victim_and_the_largest_in_order() {
        let process = |pid: u64, rss: u64| json!({ "pid": pid, "start_ticks": 1, "rss_bytes": rss });
        let report = json!({
            "tracer": "bpf",
            "time": "2026-11-28T03:00:00Z",
            "killed_at_boot_ns": 5,
            "exited_at_boot_ns": 6,
            "victim": {
                "pid": 7, "start_ticks": 1, "exited": true,
                "rss_bytes": 6, "anon_bytes": 1, "file_bytes": 2, "shmem_bytes": 3, "vm_bytes": 9,
            },
            "largest": [process(8, 9), process(9, 8)],
        });
        assert_eq!(problems(ALWAYS, &report), [""; 0]);
        for (field, value) in [
            ("/tracer", json!("snapshot")),
            ("/time", json!("now")),
            ("/exited_at_boot_ns", json!(4)),
            ("/victim/exited", json!(false)),
            ("/victim/anon_bytes", json!(2)),
            ("/largest", json!([process(9, 8), process(8, 9)])),
            ("/largest/0/pid", json!(7)),
        ] {
            let mut wrong = report.clone();
            *wrong.pointer_mut(field).expect("a field") = value;
            assert_eq!(problems(ALWAYS, &wrong).len(), 1, "{field}");
        }
    }
}
