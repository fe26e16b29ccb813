//! The page as text; `tests/suites/oom_plot.rs` renders it in a browser.

use super::*;

const REPORT: &str = r#"{"event":"oom_kill","confidence":"confirmed","tracer":"bpf","time":"2026-11-20T10:11:12Z",
    "killed_at_boot_ns":11000000000,"victim":{"pid":7,"start_ticks":70,"name":"NAME","cmdline":"CMDLINE","rss_bytes":104857600},
    "members":[{"pid":8,"name":"NAME","cmdline":"CMDLINE"}],"trigger":{"pid":9,"name":"NAME"},
    "ancestors":[{"pid":5,"name":"NAME","cmdline":"CMDLINE","exited":true},{"pid":1,"name":"init"}],
    "largest":[{"pid":10,"name":"NAME","cmdline":"CMDLINE"}],
    "explanation":{"limit":{"scope":"container","kind":"memory","path":"/CMDLINE","limit_bytes":268435456,
        "usage_bytes":268435456,"is_trigger_outside":false,"is_exact":true},
      "usage":{"total_bytes":268435456,"anon_bytes":201326592,"unexplained_bytes":67108864,"freed_bytes":0,
        "mounts":[{"path":"/CMDLINE","used_bytes":8388608,"size_bytes":null}],
        "trees":[{"pid":5,"start_ticks":1,"name":"NAME","descendants":2,"rss_bytes":104857600}]},
      "growth":{"shape":"burst","rate_bytes_per_s":1e8,"duration_s":1.0,"samples":[
        {"at_boot_ns":1000000000,"usage_bytes":10485760,"inactive_file_bytes":null,"limit_bytes":268435456,
          "processes":[{"pid":7,"start_ticks":70,"name":"NAME","rss_bytes":5242880}]},
        {"at_boot_ns":10900000000,"usage_bytes":260046848,"inactive_file_bytes":null,"limit_bytes":268435456,
          "processes":[{"pid":7,"start_ticks":70,"name":"NAME","rss_bytes":251658240}]}]},
      "advice":{"at_least_bytes":268435456,"reason":"CMDLINE","remedies":["raise_limit"]}}}"#;

fn report(name: &str, cmdline: &str) -> OomReport {
    let text = |text: &str| serde_json::to_string(text).unwrap().trim_matches('"').to_owned();
    serde_json::from_str(&REPORT.replace("NAME", &text(name)).replace("CMDLINE", &text(cmdline))).unwrap()
}

fn page_of(report: &OomReport) -> String {
    page(report).unwrap()
}

/// Names of all elements of a page, including those of the chart.
fn tags(page: &str) -> Vec<&str> {
    let names =
        page.split('<').skip(1).map(|tag| tag.split(|end: char| end == '>' || end.is_whitespace()).next().unwrap());
    names.collect()
}

#[test]
fn processes_cannot_add_markup() {
    let plain = page_of(&report("hog", "hog --size 1"));
    for evil in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onload='x",
        "</style><b>",
        "<!--",
        "]]>",
        "&lt;",
    ] {
        let page = page_of(&report(evil, evil));
        assert_eq!(tags(&page), tags(&plain), "{evil}");
        assert!(!page.contains(evil) || evil == "&lt;", "{evil}");
    }
    assert!(page_of(&report("&lt;", "x")).contains("<title>OOM kill: &amp;lt; (7)</title>"));
}

#[test]
fn page_needs_nothing_but_itself() {
    let page = page_of(&report("hog", "hog"));
    for outside in ["<script", "<link", "<img", "<iframe", "@import", "url(", "src=", "href="] {
        assert!(!page.contains(outside), "{outside}");
    }
    let addresses = page.matches("://").count();
    assert_eq!(addresses, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count(), "{page}");
}

#[test]
fn findings_have_the_words_of_the_report() {
    let page = page_of(&report("hog", "hog"));
    for part in [
        "<h1>OOM kill: hog (7)</h1>",
        "<dt>confidence</dt>\n<dd>confirmed (SIGKILL and OOM mark observed)</dd>",
        "<dt>limit</dt>\n<dd>256m for this container, 256m in use at the kill (/hog)</dd>",
        "<dt>remedies</dt>\n<dd>raise the memory limit</dd>",
        "<dt>largest surviving processes</dt>\n<dd>10 (running",
        "<li><code>1 (running for 0.00s, vm: ?, rss: ?): [init]</code>\n<ul>\n<li><code>5 (",
        "</code> <strong>killed</strong></li>\n</ul>\n</li>\n</ul>\n</li>\n</ul>\n",
        ">OOM kill</text>",
    ] {
        assert!(page.contains(&part.replace(">OOM kill</text>", "OOM kill\n</text>")), "{part}: {page}");
    }
}

#[test]
fn older_reports_have_a_page_without_a_chart() {
    let older = r#"{"event":"oom_kill","confidence":"possible","tracer":"snapshot","time":"2026-11-20T10:11:12Z","victim":{"pid":7,"name":"hog"}}"#;
    let page = page_of(&serde_json::from_str(older).unwrap());
    assert!(
        page.contains("This report has no samples") && !page.contains("<svg") && page.contains("Potential OOM kill")
    );
}

#[test]
fn every_colour_of_the_picture_has_one_in_the_dark() {
    for colour in chart::LAYERS.iter().chain(&[chart::REST, chart::INK, chart::LIMIT]) {
        let rule = format!("svg [fill=\"#{:02X}{:02X}{:02X}\"] {{", colour.0, colour.1, colour.2);
        assert!(STYLE.contains(&rule), "{rule}");
    }
    for colour in [chart::INK, chart::GRID, chart::LIMIT] {
        let rule = format!("svg [stroke=\"#{:02X}{:02X}{:02X}\"] {{", colour.0, colour.1, colour.2);
        assert!(STYLE.contains(&rule), "{rule}");
    }
}
