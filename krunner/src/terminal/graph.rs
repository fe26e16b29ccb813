//! The history of a git repository as a list of commits, for `%show graph`.
//!
//! Two calls of git: all commits, and the commits that a branch reaches, with the branch. The output is data from the user's
//! repository, arbitrary bytes of any length, so fields are separated by NUL and the result is bounded.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{ChildStatus, CollectedOutput, Command, CommandOutcome, Control, Launcher};

/// More would be unreadable, and the agent rejects replies over 10 MiB.
const MAX_COMMITS: usize = 10_000;

/// Limit of git's output, far more than [`MAX_COMMITS`] ordinary commits need.
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// Limit of the JSON that is sent.
const MAX_GRAPH_BYTES: usize = 8 * 1024 * 1024;

/// A longer subject or name is cut.
const MAX_TEXT_BYTES: usize = 512;

/// A commit as the viewer of `application/vnd.sorna.gitgraph` reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Commit {
    oid: String,
    parent_ids: Vec<String>,
    author: String,
    message: String,
    branch: Option<String>,
    parent_branches: Vec<Option<String>>,
}

/// The history, or the newest part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graph {
    /// Ordered from oldest to newest.
    pub(super) commits: Vec<Commit>,
    /// Whether older commits were left out.
    pub is_cut: bool,
}

impl Graph {
    /// The JSON that the viewer reads.
    #[must_use]
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self.commits)
    }

    /// The number of commits.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.commits.len()
    }
}

/// Why there is no graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GraphError {
    /// The text for the user.
    pub message: String,
    /// The exit code of the step.
    pub exit_code: i32,
}

/// Reads the history of the repository that `directory` is in.
///
/// # Errors
/// When git is missing, fails (the message is git's own), or was interrupted.
pub(crate) async fn show(
    directory: &Path,
    launcher: &Launcher,
    env: &ChildEnv,
    control: &Control,
) -> Result<Graph, GraphError> {
    let all = log(directory, "--all", "%h%x00%p%x00%an%x00%s", launcher, env, control).await?;
    let branches = log(directory, "--branches", "%h%x00%S", launcher, env, control).await?;
    Ok(graph(&all, &branches))
}

/// The newest commits first, each as NUL-terminated fields.
async fn log(
    directory: &Path,
    which: &str,
    format: &str,
    launcher: &Launcher,
    env: &ChildEnv,
    control: &Control,
) -> Result<Vec<u8>, GraphError> {
    // The user's configuration must not add to the output, page it or color it.
    let mut argv: Vec<OsString> = vec!["git".into(), "-C".into(), directory.into()];
    let settings = ["i18n.logOutputEncoding=UTF-8", "log.showSignature=false", "color.ui=false"];
    argv.extend(settings.into_iter().flat_map(|setting| ["-c".into(), setting.into()]));
    argv.extend(["--no-pager", "log", "-z", "--no-decorate", "--topo-order", which].map(Into::into));
    argv.push(format!("--max-count={}", MAX_COMMITS + 1).into());
    argv.push(format!("--format={format}").into());
    argv.push("--".into());
    let collected = launcher.collect(&Command::argv(argv), env, control, MAX_OUTPUT_BYTES).await;
    let failed = |message: String, exit_code| Err(GraphError { message, exit_code });
    match collected {
        Ok(CollectedOutput { outcome: CommandOutcome::Exited(ChildStatus::Code(0)), stdout, .. }) => Ok(stdout),
        Ok(CollectedOutput { outcome: CommandOutcome::Exited(exit), stderr, .. }) if !stderr.is_empty() => {
            let said = String::from_utf8_lossy(&stderr[..stderr.len().min(MAX_TEXT_BYTES)]).into_owned();
            failed(format!("{}: {}", directory.display(), said.trim_end()), exit.code())
        }
        Ok(CollectedOutput { outcome, .. }) => failed("git was interrupted".to_owned(), outcome.code()),
        Err(error) => failed(chain(&error), error.code()),
    }
}

fn graph(all: &[u8], branches: &[u8]) -> Graph {
    let branches: HashMap<String, String> = records(branches).map(|[oid, branch]| (oid, branch)).collect();
    let branch_of = |oid: &String| branches.get(oid).cloned();
    let mut commits = Vec::new();
    let (mut bytes, mut is_cut) = (0, all.len() >= MAX_OUTPUT_BYTES);
    for [oid, parents, author, message] in records(all) {
        let parent_ids: Vec<String> = parents.split_ascii_whitespace().map(str::to_owned).collect();
        let commit = Commit {
            branch: branch_of(&oid),
            parent_branches: parent_ids.iter().map(branch_of).collect(),
            oid,
            parent_ids,
            author,
            message,
        };
        bytes += serde_json::to_vec(&commit).map_or(0, |json| json.len() + 1);
        if commits.len() == MAX_COMMITS || bytes > MAX_GRAPH_BYTES {
            is_cut = true;
            break;
        }
        commits.push(commit);
    }
    commits.reverse();
    Graph { commits, is_cut }
}

/// Complete records of `FIELDS` NUL-terminated fields; an incomplete last record is dropped.
fn records<const FIELDS: usize>(output: &[u8]) -> impl Iterator<Item = [String; FIELDS]> {
    let mut fields = output.split_inclusive(|byte| *byte == 0).filter_map(|field| field.strip_suffix(&[0])).map(text);
    std::iter::from_fn(move || {
        let record: Vec<String> = fields.by_ref().take(FIELDS).collect();
        record.try_into().ok()
    })
}

fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn commits_are_listed_oldest_first_with_their_branches() {
        let all = b"c3\0c2 b1\0Ann\0Merge it\0b1\0c1\0J\xfcrgen\0side\0c2\0c1\0Ann\0two\0c1\0\0Ann\0\0";
        let branches = b"c3\0main\0c2\0main\0c1\0main\0";
        let graph = graph(all, branches);
        assert!(!graph.is_cut);
        let main = "main";
        assert_eq!(
            graph.to_json(),
            json!([
                {"oid": "c1", "parent_ids": [], "author": "Ann", "message": "", "branch": main, "parent_branches": []},
                {"oid": "c2", "parent_ids": ["c1"], "author": "Ann", "message": "two", "branch": main, "parent_branches": [main]},
                {"oid": "b1", "parent_ids": ["c1"], "author": "J\u{fffd}rgen", "message": "side", "branch": null, "parent_branches": [main]},
                {"oid": "c3", "parent_ids": ["c2", "b1"], "author": "Ann", "message": "Merge it", "branch": main, "parent_branches": [main, null]},
            ])
        );
    }

    #[test]
    fn the_newest_are_kept_when_there_are_too_many_or_they_are_too_long() {
        let many: Vec<u8> = (0..=MAX_COMMITS).flat_map(|n| format!("{n}\0\0a\0m\0").into_bytes()).collect();
        let cut = graph(&many, b"");
        assert!(cut.is_cut);
        assert_eq!(cut.len(), MAX_COMMITS);
        assert_eq!(cut.commits.last().map(|commit| commit.oid.as_str()), Some("0"));
        let long = "\u{1}".repeat(MAX_TEXT_BYTES);
        let long: Vec<u8> = (0..5000).flat_map(|n| format!("{n}\0\0a\0{long}\0").into_bytes()).collect();
        let cut = graph(&long, b"");
        assert!(cut.is_cut && cut.len() > 100);
        assert!(cut.to_json().to_string().len() <= MAX_GRAPH_BYTES + 2);
        assert_eq!(cut.commits.last().map(|commit| commit.oid.as_str()), Some("0"));
    }

    proptest! {
        #[test]
        fn any_output_of_git_is_read(all in prop::collection::vec(any::<u8>(), 0..200), branches in prop::collection::vec(any::<u8>(), 0..50)) {
            let graph = graph(&all, &branches);
            prop_assert_eq!(graph.len(), all.iter().filter(|byte| **byte == 0).count() / 4);
        }
    }
}
