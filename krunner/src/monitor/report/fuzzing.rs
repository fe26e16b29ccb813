//! Fuzz target of `oom.jsonl`, read back.

use std::io;

use super::journal_reader::read_lines;
use super::plot;
use crate::monitor::attribution::oom_report::OomReport;

/// Each line is a report, something else, or skipped. A report survives being written, and can be shown.
pub(crate) fn journal(text: &[u8]) {
    let mut offsets = Vec::new();
    let counts = read_lines(text, |offset, report| {
        offsets.push(offset);
        check_report(report);
        io::Result::Ok(())
    })
    .expect("memory can be read");
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count() as u64;
    assert!(counts.reports + counts.skipped <= lines);
    assert_eq!(counts.reports, offsets.len() as u64);
    assert!(offsets.is_sorted());
    for offset in offsets {
        let offset = usize::try_from(offset).expect("within the text");
        assert!(offset == 0 || text[offset - 1] == b'\n');
    }
}

fn check_report(report: &OomReport) {
    let json = serde_json::to_string(report).expect("a report has a JSON form");
    let again: OomReport = serde_json::from_str(&json).expect("a report can be read back");
    assert_eq!(serde_json::to_string(&again).ok(), Some(json));
    let text = report.to_string();
    assert!(!text.contains(|character: char| character.is_control() && character != '\n'), "{text:?}");
    let page = plot::page(report).expect("a page can be drawn");
    assert!(!page.contains("<script"), "a page has no script");
}
