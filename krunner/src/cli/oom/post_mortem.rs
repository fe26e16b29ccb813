//! `krunner oom post-mortem`: what a flight recorder's file says of an end.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::args::PostMortemArgs;
use crate::cli::stdout::print;
use crate::config::Paths;
use crate::error::chain;
use crate::exit::Exit;
use crate::monitor::recorder::{PostMortem, RecordingPath, post_mortem as read};

pub(super) fn post_mortem(args: &PostMortemArgs) -> anyhow::Result<ExitCode> {
    let found = match &args.file {
        Some(file) => read(file)?,
        None => latest(&RecordingPath::of_session(Paths::default().logs()))?,
    };
    print(if args.json { serde_json::to_string(&found)? + "\n" } else { format!("{found}\n") })?;
    Ok(Exit::Ok.into())
}

/// The last unexpected end; where there is none, the last end, or what runs.
fn latest(place: &RecordingPath) -> anyhow::Result<PostMortem> {
    let found = place.files().filter(|file| file.exists()).filter_map(|file| {
        let read = read(&file);
        read.inspect_err(|error| eprintln!("krunner: {}", chain(error))).ok()
    });
    let latest = found.max_by_key(|found| (found.is_unexpected(), found.last_record));
    latest.with_context(|| format!("no recording in {}", Paths::default().logs().display()))
}
