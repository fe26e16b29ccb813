//! Formats a report as an HTML page: a chart of memory before the kill, the findings, memory by kind, the process tree, the
//! chart's data. Pure.
//!
//! The page is self-contained: no scripts and no external resources, which its policy also forbids. Strings that a process can
//! choose (name, command line, cgroup path) go through [`html::escape`].

mod chart;
mod html;
mod series;
mod table;

use std::fmt::{Display, Write as _};
use std::sync::Arc;

use crate::monitor::attribution::correlate::Confidence;
use crate::monitor::attribution::oom_report::{OomReport, ProcessInfo};
use crate::monitor::model::ProcessMemory;
use crate::monitor::model::time::utc;
use chart::ChartError;
use html::escape;
use series::{AtKill, Series};

const STYLE: &str = include_str!("plot/style.css");

/// Blocks loading and scripts even if some text escaped the escaping.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Renders the whole page.
pub(crate) fn page(report: &OomReport) -> Result<String, ChartError> {
    let title = title(report);
    let series = report
        .explanation
        .growth
        .as_ref()
        .and_then(|growth| Series::of(&growth.samples, report.killed_at_boot_ns, at_kill(report)));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<header>\n<h1>{title}</h1>\n<p>Killed at <time>{time}</time></p>\n</header>\n",
        title = escape(&title),
        time = utc(report.time),
    );
    add_section(&mut page, "Memory before the kill", &chart(series.as_ref())?);
    add_section(&mut page, "Findings", &findings(report));
    if let Some(usage) = &report.explanation.usage {
        add_section(&mut page, "Memory by kind", &table::usage(usage));
    }
    add_section(&mut page, "Processes", &process_tree(report));
    if let Some(series) = &series {
        add_section(&mut page, "Chart data", &table::samples(series));
    }
    let version = env!("CARGO_PKG_VERSION");
    let _ = write!(page, "<footer><p>krunner {version}</p></footer>\n</main>\n</body>\n</html>\n");
    Ok(page)
}

fn title(report: &OomReport) -> String {
    let victim = &report.victim.process;
    let kind = if is_certain(report) { "OOM kill" } else { "Potential OOM kill" };
    format!("{kind}: {} ({})", victim.name.escape_debug(), victim.pid)
}

/// The kernel's readings at the kill, if there are any.
fn at_kill(report: &OomReport) -> Option<AtKill> {
    let limit = report.explanation.limit.as_ref().filter(|limit| limit.is_exact)?;
    let killed = std::iter::once(&report.victim).chain(&report.members).map(|victim_info| &victim_info.process);
    let alive = report.largest.iter().map(|large| &large.process);
    let memory = |process: &ProcessInfo| {
        Some(ProcessMemory { key: process.key(), name: Arc::clone(&process.name), rss_bytes: process.rss_bytes? })
    };
    let processes = killed.chain(alive).filter_map(memory).collect();
    Some(AtKill { limit_bytes: limit.limit_bytes?, usage_bytes: limit.usage_bytes?, processes })
}

fn is_certain(report: &OomReport) -> bool {
    matches!(report.confidence, Confidence::Confirmed | Confidence::CoVictim)
}

fn add_section(page: &mut String, heading: &str, content: &str) {
    // Writing to a String cannot fail.
    let _ = write!(page, "<section>\n<h2>{heading}</h2>\n{content}</section>\n");
}

/// The chart with its legend, or why there is none.
fn chart(series: Option<&Series>) -> Result<String, ChartError> {
    let Some(series) = series else {
        return Ok("<p>This report has no samples of memory over time: it was written by an older version, or the process was \
                   killed before two samples were taken.</p>\n"
            .to_owned());
    };
    let svg = chart::svg(series)?;
    let what = escape(&series.in_words());
    let mut figure = format!(
        "<figure>\n<div role=\"img\" aria-label=\"{what}\">\n{svg}</div>\n<figcaption>\n<ul class=\"legend\">\n"
    );
    let mut add = |class: &str, label: &dyn Display| {
        let label = escape(label);
        let _ = writeln!(figure, "<li><span class=\"swatch {class}\"></span>{label}</li>");
    };
    for (index, layer) in series.layers.iter().enumerate() {
        add(&series.class(index), &layer.label);
    }
    add("usage", &"in use");
    if series.has_limit() {
        add("limit", &"limit");
    }
    let (readings, samples) = (series.readings(), series.times_s.len());
    let _ = write!(
        figure,
        "</ul>\n<p>The layers show memory in use, split by the resident memory of the largest processes. Processes were read in \
         {readings} of {samples} samples; their shares in the other samples are interpolated.</p>\n</figcaption>\n\
         </figure>\n"
    );
    Ok(figure)
}

/// The report's details: each line is a term and its value, indented lines are further values.
fn findings(report: &OomReport) -> String {
    let mut list = "<dl>\n".to_owned();
    for line in report.details().to_string().lines().filter(|line| !line.is_empty()) {
        let (term, value) = match line.strip_prefix("  ") {
            Some(more) => (None, more),
            None => line
                .split_once(": ")
                .map_or((Some(line.trim_end_matches(':')), ""), |(term, value)| (Some(term), value)),
        };
        if let Some(term) = term {
            let _ = writeln!(list, "<dt>{}</dt>", escape(&term));
        }
        if !value.is_empty() {
            let _ = writeln!(list, "<dd>{}</dd>", escape(&value));
        }
    }
    list + "</dl>\n"
}

/// The tree from the oldest ancestor down to the victim.
fn process_tree(report: &OomReport) -> String {
    let mut tree = "<ul class=\"tree\">\n".to_owned();
    let item = |process: &ProcessInfo| format!("<li><code>{}</code>", escape(process));
    for ancestor in report.ancestors.iter().rev() {
        let gone = if ancestor.exited { " (exited)" } else { "" };
        let _ = write!(tree, "{}{gone}\n<ul>\n", item(ancestor));
    }
    let _ = writeln!(tree, "{} <strong>{}</strong></li>", item(&report.victim.process), killed(report));
    for _ in &report.ancestors {
        tree.push_str("</ul>\n</li>\n");
    }
    tree + "</ul>\n"
}

fn killed(report: &OomReport) -> &'static str {
    if is_certain(report) { "killed" } else { "potentially killed" }
}

#[cfg(test)]
#[path = "plot_tests.rs"]
mod tests;
