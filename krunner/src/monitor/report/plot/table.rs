//! The tables of the page. Pure.

use std::fmt::Write as _;

use super::html::escape;
use super::series::{Layer, Series};
use crate::monitor::explain::MemoryUsage;
use crate::monitor::model::units::{mib, mib_or_unknown};

/// Rows of data: as many as fit on a printed page. The JSON has all.
const MAX_ROWS: usize = 30;

/// Memory by kind, with a bar each.
pub(super) fn usage(usage: &MemoryUsage) -> String {
    let kernel = usage.kernel.as_ref();
    let rows = [
        ("programs", usage.anon_bytes),
        ("tmpfs and shared memory", usage.shmem_bytes),
        ("page cache", usage.page_cache_bytes),
        ("kernel", kernel.map(|kernel| kernel.total_bytes)),
        ("unaccounted", Some(usage.unexplained_bytes)),
        ("total", Some(usage.total_bytes)),
    ];
    let mut table =
        "<table>\n<thead><tr><th>kind</th><th>size</th><th>share</th><th></th></tr></thead>\n<tbody>\n".to_owned();
    for (kind, bytes) in rows {
        let share = percent(bytes.unwrap_or(0), usage.total_bytes);
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{kind}</th><td>{}</td><td>{share:.0} %</td>\
             <td class=\"bar\"><span style=\"width:{share:.1}%\"></span></td></tr>",
            mib_or_unknown(bytes)
        );
    }
    table + "</tbody>\n</table>\n"
}

/// The chart's data as numbers.
pub(super) fn samples(series: &Series) -> String {
    let processes: Vec<&Layer> = series.layers.iter().filter(|layer| !layer.is_rest).collect();
    let label = |layer: &&Layer| format!("<th scope=\"col\">{}</th>", escape(&layer.label));
    let labels: Vec<String> = processes.iter().map(label).collect();
    let labels = labels.concat();
    let mut table = format!(
        "<div class=\"scroll\">\n<table>\n<thead><tr><th scope=\"col\">seconds since the kill</th><th scope=\"col\">in use</th>\
         <th scope=\"col\">limit</th>{labels}</tr></thead>\n<tbody>\n"
    );
    for index in rows(series.times_s.len()) {
        let limit = series.limit_bytes[index].map_or_else(|| "none".to_owned(), mib);
        let resident =
            |layer: &&Layer| format!("<td>{}</td>", layer.read_bytes[index].map_or_else(|| "–".to_owned(), mib));
        let layers: Vec<String> = processes.iter().map(resident).collect();
        let layers = layers.concat();
        let (at_s, usage) = (series.times_s[index], mib(series.usage_bytes[index]));
        let _ = writeln!(table, "<tr><th scope=\"row\">{at_s:.2}</th><td>{usage}</td><td>{limit}</td>{layers}</tr>");
    }
    table.push_str("</tbody>\n</table>\n</div>\n");
    if !processes.is_empty() {
        table.push_str("<p>Process columns show resident memory; – means not read.</p>\n");
    }
    if series.times_s.len() > MAX_ROWS {
        let _ = writeln!(
            table,
            "<p>Showing {MAX_ROWS} of {} samples; the JSON object has all of them.</p>",
            series.times_s.len()
        );
    }
    table
}

/// The indexes of samples that get a row: evenly spaced, including the first and the last.
fn rows(samples: usize) -> Vec<usize> {
    let shown = samples.min(MAX_ROWS);
    (0..shown).map(|row| row * (samples - 1) / (shown - 1).max(1)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
fn percent(part: u64, all: u64) -> f64 {
    (part as f64 * 100.0 / all.max(1) as f64).min(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_bounded_and_have_both_ends() {
        assert_eq!(rows(2), [0, 1]);
        assert_eq!(rows(30), (0..30).collect::<Vec<_>>());
        let many = rows(601);
        assert_eq!((many.len(), many[0], many[29]), (30, 0, 600));
    }

    #[test]
    fn unknown_kinds_are_said_to_be_unknown() {
        let usage = MemoryUsage { total_bytes: 100 << 20, anon_bytes: Some(75 << 20), ..MemoryUsage::default() };
        let table = super::usage(&usage);
        assert!(
            table.contains("programs</th><td>75m</td><td>75 %</td><td class=\"bar\"><span style=\"width:75.0%\">"),
            "{table}"
        );
        assert!(table.contains("page cache</th><td>?</td>"), "{table}");
    }
}
