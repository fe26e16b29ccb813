//! `cargo xtask tidy`: the rules of this tree that no compiler checks.
//!
//! A rule is a pure function from a file's path and text, or from the whole list of files, to
//! complaints; each complaint names the place and the remedy. The folder beside this file has them:
//! `layers` (who may use whom in krunner), `cycles` (no module of krunner uses one that uses it), `files` (one .rs file at a time), `tree` (all files),
//! `words` (names and prose); `sizes` only counts.

mod cycles;
mod files;
mod layers;
mod modules;
mod security;
mod sizes;
mod source;
mod tree;
mod words;

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::workspace::{root, tracked_files};
use sizes::Sizes;
use source::Source;
use words::WordCounts;

const HELP: &str = "\
Looks at every file that git tracks or would track. Each complaint names the place and the remedy.

Rules:
  layers   rooms of krunner, and those inside monitor, use each other only along the arrows of
           ARCHITECTURE.md
  cycles   no two modules of krunner in one folder use each other, directly or around a ring
  owners   zeromq only in transport/socket/, aya only in monitor/sources/tracer/bpf.rs
           (the compiler checks who may use unsafe code, clippy who may spawn tasks)
  files    every .rs file opens with //! and stays within 500 lines; mod.rs only declares;
           main.rs is tiny
  tree     no new top-level folders, no host name of a package registry, a reason in
           ARCHITECTURE.md for each dependency of krunner
  security SECURITY.md names a test for each threat, and the tests exist
  words    no retired name or phrase, no doc comment of one or two words, no type of the
           same name in two modules of krunner

Examples:
  cargo xtask tidy

Exit codes: 0 no complaints, 1 a rule is broken, 2 wrong usage.";

/// Arguments of `cargo xtask tidy`: none, there is nothing to choose.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {}

/// One place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Complaint {
    path: String,
    line: usize,
    problem: String,
    remedy: String,
}

impl Complaint {
    fn new(path: &str, line: usize, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n    {}", self.path, self.line, self.problem, self.remedy)
    }
}

/// Runs the task; `false` when a rule is broken.
pub(crate) fn run(_: &Args) -> Result<bool> {
    check_workspace(&root())
}

/// Checks the checkout at `root` and prints the complaints.
pub(crate) fn check_workspace(root: &Path) -> Result<bool> {
    let sources = read_all(root)?;
    let (complaints, notes, counts) = check(&sources);
    for complaint in &complaints {
        println!("{complaint}");
    }
    for note in notes {
        println!("note: {note}");
    }
    println!("words: {}", counts.words);
    println!("modules: cycles {}", counts.cycles);
    println!("lines: {}", Sizes::of(&sources));
    match complaints.len() {
        0 => println!("tidy: {} files, no complaints", sources.len()),
        count => println!("tidy: {} files, {count} complaints", sources.len()),
    }
    Ok(complaints.is_empty())
}

/// How often the rules that are counted are broken.
#[derive(Debug, Default)]
struct Counts {
    words: WordCounts,
    cycles: usize,
}

/// All rules over all files, with notes on rules that had nothing to check, and the counts.
fn check(sources: &[Source]) -> (Vec<Complaint>, Vec<String>, Counts) {
    let mut complaints = Vec::new();
    let mut notes = Vec::new();
    let mut counts = Counts::default();
    for source in sources {
        if source.is_rust() {
            files::check(source, &mut complaints);
            layers::check(source, &mut complaints);
            layers::check_monitor(source, &mut complaints);
        }
        tree::check_file(source, &mut complaints);
        words::check(source, &mut counts.words, &mut complaints);
    }
    words::check_types(sources, &mut counts.words, &mut complaints);
    counts.cycles = cycles::check(sources, &mut complaints);
    security::check(sources, &mut complaints);
    tree::check_folders(sources, &mut complaints);
    tree::check_dependencies(sources, &mut complaints, &mut notes);
    complaints.sort();
    (complaints, notes, counts)
}

/// The files that git tracks or would track, with their text. Binary files come with none.
fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for name in tracked_files(root)? {
        match std::fs::read(root.join(&name)) {
            Ok(bytes) => sources.push(Source::new(&name, &String::from_utf8(bytes).unwrap_or_default())),
            // Deleted and not yet committed so.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_names_place_and_remedy() {
        let complaint = Complaint::new("a/b.rs", 7, "wrong", "do it right");
        assert_eq!(complaint.to_string(), "a/b.rs:7: wrong\n    do it right");
    }

    #[test]
    fn this_tree_can_be_read() {
        let sources = read_all(&root()).unwrap();
        assert!(sources.iter().any(|source| source.path() == "xtask/src/tidy.rs"));
    }
}
