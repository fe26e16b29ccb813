//! Rules on words: names and phrases that were retired and must not come back, doc comments that say nothing, and types of one
//! name in two modules of krunner.

use std::collections::BTreeMap;

use super::Complaint;
use super::source::{Source, find_words};

/// How often each rule on words is broken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct WordCounts {
    retired: usize,
    short_comments: usize,
    same_names: usize,
}

/// Names that no type, function or module has any more, and the name to use instead.
const RETIRED_NAMES: &[(&str, &str)] = &[
    ("Accused", "Attributed"),
    ("Assembled", "ResolvedCommand"),
    ("Asks", "ControlReceiver"),
    ("Circumstances", "KillContext"),
    ("Company", "KillGroup"),
    ("Deaths", "ExitReporter"),
    ("Desk", "ServiceManager, InputBroker, ShellOwner"),
    ("Fence", "CgroupFilter"),
    ("Inlet", "ChannelReader"),
    ("Intake", "ReceiveLimits"),
    ("Joiner", "Correlator"),
    ("Keeper", "RestartLoop"),
    ("Lab", "Bench"),
    ("Ledger", "ReplyQueue"),
    ("Lookout", "SamplerThread"),
    ("Outbox", "ReplySender"),
    ("Outlets", "Sinks"),
    ("Parcel", "QueuedReply"),
    ("Pulse", "Heartbeat"),
    ("Storm", "RateLimiter"),
    ("Surroundings", "EngineContext, HostEnv"),
    ("Suspect", "Candidate"),
    ("Teller", "ResponseQueue"),
    ("Unheard", "ReceiverClosed"),
    ("Verdict", "Attribution"),
    ("Witness", "ExitObserver"),
    ("Workshop", "ActionContext"),
    ("farewell", "shutdown_request"),
    ("give_back", "trim_heap"),
    ("keep_little", "tune_malloc"),
    ("yardstick", "baseline"),
];

/// Phrases that read as translated, in code, comments, messages and documents; compared without case.
const RETIRED_PHRASES: &[(&str, &str)] = &[
    ("whoever", "name the subject"),
    ("somebody", "name the subject"),
    ("kill for memory", "OOM kill"),
    ("kills for memory", "OOM kills"),
    ("killed for memory", "OOM-killed"),
    ("not to be had", "unavailable"),
    ("for want of", "without, or for lack of"),
    ("found no room", "were dropped"),
    ("comes of it", "say what happens"),
];

/// This file quotes what it forbids.
const EXEMPT: &str = "xtask/src/tidy/words.rs";

/// Complaints about the words of one file.
pub(super) fn check(source: &Source, counts: &mut WordCounts, complaints: &mut Vec<Complaint>) {
    if source.path() == EXEMPT || !is_prose(source.path()) {
        return;
    }
    let before = complaints.len();
    let mut retired = |offset, word: &str, instead: &str| {
        let problem = format!("`{word}` is a retired word");
        complaints.push(Complaint::new(source.path(), source.line_of(offset), problem, instead));
    };
    for (name, instead) in RETIRED_NAMES {
        find_words(source.code(), name).for_each(|offset| retired(offset, name, instead));
    }
    let text = source.text().to_ascii_lowercase();
    for (phrase, instead) in RETIRED_PHRASES {
        find_words(&text, phrase).for_each(|offset| retired(offset, phrase, instead));
    }
    counts.retired += complaints.len() - before;
    for line in short_comments(source.text()) {
        counts.short_comments += 1;
        let remedy = "state a fact that the name does not, or delete it";
        complaints.push(Complaint::new(source.path(), line, "a doc comment of one or two words", remedy));
    }
}

/// Complaints about types that have their name in common with one of another module of krunner.
pub(super) fn check_types(sources: &[Source], counts: &mut WordCounts, complaints: &mut Vec<Complaint>) {
    let mut places: BTreeMap<&str, Vec<(&Source, usize)>> = BTreeMap::new();
    let is_wanted =
        |source: &&Source| source.path().starts_with("krunner/src/") && !source.path().ends_with("_tests.rs");
    for source in sources.iter().filter(is_wanted) {
        for (name, line) in types(source.code_without_tests()) {
            places.entry(name).or_default().push((source, line));
        }
    }
    for (name, places) in places {
        for (source, line) in places.iter().skip(1) {
            counts.same_names += 1;
            let (first, _) = places[0];
            let problem = format!("`{name}` is a type of {} as well", first.path());
            complaints.push(Complaint::new(source.path(), *line, problem, "prefix it by what it belongs to"));
        }
    }
}

impl std::fmt::Display for WordCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { retired, short_comments, same_names } = self;
        write!(
            f,
            "retired words {retired}, doc comments of one or two words {short_comments}, types of one name {same_names}"
        )
    }
}

fn is_prose(path: &str) -> bool {
    let ends_with = |extension: &str| path.ends_with(extension);
    [".rs", ".md", ".py", ".sh", ".yaml", ".toml", "Dockerfile"].into_iter().any(ends_with)
}

/// The lines of doc comments that are one line of one or two words.
fn short_comments(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_doc = |at: Option<&&str>| at.is_some_and(|line| line.starts_with("///") || line.starts_with("//!"));
    let is_short = |line: &str| {
        let words = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        words.is_some_and(|words| (1..=2).contains(&words.split_whitespace().count()) && !words.contains("```"))
    };
    let found = lines.iter().enumerate().filter(|(at, line)| {
        let before = at.checked_sub(1).and_then(|at| lines.get(at));
        is_short(line) && !is_doc(before) && !is_doc(lines.get(at + 1))
    });
    found.map(|(at, _)| at + 1).collect()
}

/// Types that are declared at the top of a file, and the line of each.
fn types(code: &str) -> impl Iterator<Item = (&str, usize)> {
    code.lines().enumerate().filter_map(|(at, line)| {
        let line = line.strip_prefix("pub").map_or(line, |rest| {
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(rest, |(_, rest)| rest).trim_start()
        });
        let (keyword, rest) = line.split_once(' ')?;
        let is_type = ["struct", "enum", "trait", "type", "union"].contains(&keyword);
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        (is_type && !name.is_empty()).then_some((name, at + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        check(&Source::new(path, text), &mut WordCounts::default(), &mut complaints);
        complaints.into_iter().map(|complaint| format!("{} {}", complaint.line, complaint.problem)).collect()
    }

    #[test]
    fn retired_names_are_found_in_code_only() {
        let text = "// A Desk in a comment.\nstruct Desk;\nstruct DeskLamp;\n";
        assert_eq!(problems("a.rs", text), ["2 `Desk` is a retired word"]);
    }

    #[test]
    fn retired_phrases_are_found_anywhere() {
        let text = "//! a\nfn f() { say(\"Whoever kills for memory\") }\n";
        assert_eq!(problems("a.rs", text).len(), 2 + 1, "{:?}", problems("a.rs", text));
        assert_eq!(problems("README.md", "This is not to be had.\n"), ["1 `not to be had` is a retired word"]);
        assert!(problems("picture.svg", "whoever").is_empty());
    }

    #[test]
    fn a_doc_comment_of_two_words_is_short() {
        let text = "/// Which one.\nfn a() {}\n/// The pid of it.\nfn b() {}\n/// First\n/// line of two.\nfn c() {}\n";
        assert_eq!(short_comments(text), [1]);
    }

    #[test]
    fn types_of_one_name_are_found_across_files() {
        let sources = [
            Source::new("krunner/src/a.rs", "pub(crate) struct Case {}\nfn f() {\n    enum Inner {}\n}\n"),
            Source::new("krunner/src/b.rs", "enum Case {}\n\n#[cfg(test)]\nmod tests {\n}\nstruct Case;\n"),
            Source::new("krunner/src/c_tests.rs", "struct Case;\n"),
            Source::new("xtask/src/d.rs", "struct Case;\n"),
        ];
        let (mut counts, mut complaints) = (WordCounts::default(), Vec::new());
        check_types(&sources, &mut counts, &mut complaints);
        assert_eq!((counts.same_names, complaints.len()), (1, 1), "{complaints:?}");
        assert!(complaints[0].problem.contains("krunner/src/a.rs"));
    }
}
