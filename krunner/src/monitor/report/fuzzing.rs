//! Fuzz target of `oom.jsonl`, read back.

use std::io;

use serde_json::Value;

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
    let again = serde_json::to_string(&again).expect("it has one again");
    let value = |json: &str| serde_json::from_str(json).expect("JSON");
    assert!(json == again || is_same(&value(&json), &value(&again)), "{json}\n{again}");
    let text = report.to_string();
    assert!(!text.contains(|character: char| character.is_control() && character != '\n'), "{text:?}");
    let page = plot::page(report).expect("a page can be drawn");
    assert!(!page.contains("<script"), "a page has no script");
}

/// Whether both are equal, but for the last digit of a number: `serde_json` reads floats fast by default, not exactly.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|it| is_same(value, it)))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Number(number), Value::Number(other)) if number.is_f64() => {
            let (one, other) = (number.as_f64().unwrap_or_default(), other.as_f64().unwrap_or_default());
            (one - other).abs() <= one.abs() * 4.0 * f64::EPSILON
        }
        _ => one == other,
    }
}
