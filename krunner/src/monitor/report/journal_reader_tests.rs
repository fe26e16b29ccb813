//! Journals with foreign, damaged and old lines.

use std::fs;

use super::*;

/// Written by a version without `explanation`, `members` and `first_cmdline`.
const OLD: &str = r#"{"event":"oom_kill","confidence":"confirmed","tracer":"bpf","time":"2026-11-20T10:11:12.000345Z","killed_at_boot_ns":5,"victim":{"pid":7,"start_ticks":3,"name":"hog","cmdline":"./hog 300","running_s":1.5,"vm_bytes":null,"rss_bytes":1048576},"ancestors":[],"largest":[],"lost_records":0}"#;

fn journal(text: impl AsRef<[u8]>) -> (tempfile::TempDir, JournalFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("oom.jsonl");
    fs::write(&path, text).unwrap();
    let file = JournalFile::open(&path).unwrap();
    (folder, file)
}

#[test]
fn foreign_lines_are_skipped_and_counted() {
    let (cut, other) = (&OLD[..OLD.len() / 2], "{\"event\":\"oom_kills_suppressed\",\"by_name\":{}}");
    let long = "x".repeat(usize::try_from(MAX_LINE_BYTES).unwrap() + 10);
    let text = format!("{OLD}\n{cut}\n\n[1]\nhello\n{other}\n{long}\n{OLD}\n{cut}");
    let mut pids = Vec::new();
    let counts = journal(text)
        .1
        .for_each(|report| {
            pids.push(report.victim.process.pid);
            io::Result::Ok(())
        })
        .unwrap();
    assert_eq!((pids, counts), (vec![7, 7], LineCounts { reports: 2, skipped: 5 }));
}

#[test]
fn a_line_that_is_not_utf8_is_skipped() {
    let mut text = OLD.as_bytes().to_vec();
    text.extend_from_slice(b"\n\xff\xfe\0\n");
    let counts = journal(text).1.for_each(|_| io::Result::Ok(())).unwrap();
    assert_eq!(counts, LineCounts { reports: 1, skipped: 1 });
}

#[test]
fn the_newest_report_has_number_one() {
    let newer = OLD.replace("\"pid\":7", "\"pid\":8");
    let (_folder, mut file) = journal(format!("{OLD}\nnoise\n{newer}\n"));
    let mut pid = |number| file.find(number).unwrap().0.map(|report| report.victim.process.pid);
    assert_eq!((pid(1), pid(2), pid(3), pid(u64::MAX)), (Some(8), Some(7), None, None));
}

#[test]
fn report_survives_a_json_round_trip() {
    let report: OomReport = serde_json::from_str(OLD).unwrap();
    let written = serde_json::to_string(&report).unwrap();
    let again: OomReport = serde_json::from_str(&written).unwrap();
    assert_eq!(again, report);
    let text = report.to_string();
    assert!(text.contains("\n7 (running for 1.50s, vm: ?, rss: 1m): ./hog 300\n"), "{text}");
    assert!(written.contains("\"time\":\"2026-11-20T10:11:12.000345Z\""), "{written}");
}

#[test]
fn a_fifo_and_a_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo.as_path(), folder.path()] {
        assert_eq!(JournalFile::open(path).unwrap_err().to_string(), "not a regular file");
    }
}
