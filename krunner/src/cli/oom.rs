//! `krunner oom`: the OOM kills of a journal, and how a session that was recorded ended.

mod plot;
mod post_mortem;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::args::{OomCommand, OomListArgs, OomShowArgs};
use super::stdout::print;
use crate::exit::Exit;
use crate::monitor::{JournalFile, OomReport, in_mib, utc};

/// Rows are printed when they are this long together.
const PRINTED_BYTES: usize = 64 * 1024;

pub(super) fn oom(command: &OomCommand) -> anyhow::Result<ExitCode> {
    match command {
        OomCommand::List(args) => list(args),
        OomCommand::Show(args) => show(args),
        OomCommand::Plot(args) => plot::plot(args),
        OomCommand::PostMortem(args) => return post_mortem::post_mortem(args),
    }?;
    Ok(Exit::Ok.into())
}

/// Two passes: the first one counts, since a number counts from the newest.
fn list(args: &OomListArgs) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read {}", args.file.display());
    let mut journal = open(&args.file)?;
    let total = journal.for_each(|_| anyhow::Ok(())).with_context(unreadable)?.reports;
    let since = args.since.map(|since| since.time(SystemTime::now()));
    let mut number = total + 1;
    let mut rows = if args.json { String::new() } else { heading() };
    let counts = journal
        .for_each(|report| {
            number = number.saturating_sub(1);
            if is_wanted(report, since, args.process.as_deref()) {
                let row = ListRow::of(number, report);
                rows += &if args.json { row.to_json() } else { row.to_text() };
            }
            if rows.len() >= PRINTED_BYTES {
                print(std::mem::take(&mut rows))?;
            }
            anyhow::Ok(())
        })
        .with_context(unreadable)?;
    print(rows)?;
    say_skipped(&args.file, counts.skipped);
    Ok(())
}

fn show(args: &OomShowArgs) -> anyhow::Result<()> {
    let report = find(&args.file, args.number)?;
    let text = if args.json {
        serde_json::to_string(&report)?
    } else {
        format!("{}: Out-of-memory detected!\n{report}", utc(report.time))
    };
    print(text + "\n")
}

/// The report with that number, counted from the newest.
fn find(file: &Path, number: u64) -> anyhow::Result<OomReport> {
    let mut journal = open(file)?;
    let (report, counts) = journal.find(number).with_context(|| format!("cannot read {}", file.display()))?;
    say_skipped(file, counts.skipped);
    let Some(report) = report else {
        bail!("{} has no report {number}: it has {} (see `krunner oom list`)", file.display(), counts.reports);
    };
    Ok(report)
}

fn open(file: &Path) -> anyhow::Result<JournalFile> {
    JournalFile::open(file).with_context(|| {
        format!(
            "cannot read the journal {} (a session creates it at its first OOM kill, `krunner monitor --log FILE` in FILE; \
             name another one as the last argument)",
            file.display()
        )
    })
}

fn say_skipped(file: &Path, lines: u64) {
    if lines > 0 {
        eprintln!("krunner: {}: {lines} lines skipped: truncated, too long, or not written by krunner", file.display());
    }
}

/// Whether it happened since then, and to a process of that name.
fn is_wanted(report: &OomReport, since: Option<SystemTime>, process: Option<&str>) -> bool {
    let mut killed = std::iter::once(&report.victim).chain(&report.members);
    since.is_none_or(|since| report.time >= since)
        && process.is_none_or(|name| killed.any(|dead| &*dead.process.name == name))
}

/// A line of the list.
struct ListRow<'a> {
    number: u64,
    report: &'a OomReport,
    limit_bytes: Option<u64>,
    confidence: Value,
}

impl<'a> ListRow<'a> {
    fn of(number: u64, report: &'a OomReport) -> Self {
        let hit = report.explanation.limit.as_ref().and_then(|limit| limit.limit_bytes);
        let limit_bytes = hit.or_else(|| report.cgroup.as_ref()?.limit_bytes);
        Self { number, report, limit_bytes, confidence: json!(report.confidence) }
    }

    fn to_json(&self) -> String {
        let victim = &self.report.victim.process;
        let row = json!({
            "number": self.number,
            "time": utc(self.report.time),
            "victim": { "pid": victim.pid, "name": victim.name, "rss_bytes": victim.rss_bytes },
            "killed": 1 + self.report.members.len() + self.report.members_left_out,
            "limit_bytes": self.limit_bytes,
            "confidence": self.confidence,
        });
        format!("{row}\n")
    }

    fn to_text(&self) -> String {
        let victim = &self.report.victim.process;
        let time = utc(self.report.time);
        let confidence = self.confidence.as_str().unwrap_or_default();
        let limit = self.limit_bytes.map_or_else(|| "-".to_owned(), in_mib);
        // A name is the user's: what could drive a terminal is escaped.
        let name = victim.name.escape_debug();
        columns(&self.number.to_string(), &time, [&victim.rss(), &limit, confidence], &format!("{} {name}", victim.pid))
    }
}

fn heading() -> String {
    columns("N", "TIME", ["SIZE", "LIMIT", "CONFIDENCE"], "VICTIM")
}

fn columns(number: &str, time: &str, [size, limit, confidence]: [&str; 3], victim: &str) -> String {
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(line, "{number:>4}  {time:<27}  {size:>8}  {limit:>8}  {confidence:<10}  {victim}");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"event":"oom_kill","confidence":"inferred","tracer":"snapshot","time":"2026-11-20T10:11:12Z",
        "victim":{"pid":7,"name":"ho\u001bg","rss_bytes":104857600},"members":[{"pid":8,"name":"worker"}],
        "cgroup":{"path":"/","version":2,"limit_bytes":268435456,"usage_bytes":null,"oom_kill_count":null}}"#;

    #[test]
    fn a_row_has_size_limit_and_a_name_without_control_characters() {
        let report: OomReport = serde_json::from_str(REPORT).unwrap();
        let row = ListRow::of(3, &report);
        let expected = "   3  2026-11-20T10:11:12.000000Z      100m      256m  inferred    7 ho\\u{1b}g\n";
        assert_eq!(row.to_text(), expected);
        let json: Value = serde_json::from_str(&row.to_json()).unwrap();
        assert_eq!((&json["killed"], &json["limit_bytes"]), (&json!(2), &json!(268_435_456)));
    }

    #[test]
    fn a_report_is_chosen_by_time_and_by_the_names_of_the_killed() {
        let report: OomReport = serde_json::from_str(REPORT).unwrap();
        let later = Some(report.time + std::time::Duration::from_secs(1));
        assert!(is_wanted(&report, Some(report.time), Some("worker")));
        assert!(!is_wanted(&report, later, None));
        assert!(!is_wanted(&report, None, Some("python3")));
    }

    #[test]
    fn errors_name_file_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("oom.jsonl");
        std::fs::write(&file, "").unwrap();
        let show = |file: &Path| {
            let args = OomShowArgs { number: 2, json: false, file: file.to_owned() };
            format!("{:#}", show(&args).unwrap_err())
        };
        let (missing, empty) = (show(&folder.path().join("missing")), show(&file));
        assert!(missing.contains("/missing (a session creates it") && missing.ends_with("(os error 2)"), "{missing}");
        assert!(empty.contains("oom.jsonl has no report 2: it has 0"), "{empty}");
        assert!(show(folder.path()).ends_with("not a regular file"));
    }
}
