//! `krunner oom plot` of a real kill, in a real browser.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Scenario, binary, host, require, wait};
use tempfile::TempDir;

use crate::oom::VICTIM;

const LIMIT_MIB: u64 = 128;

/// A burst within 3 s, after 4 s without growth.
const BURST: [&str; 3] = ["20:0", "20:4", "220:3"];

/// The journal of a monitor that saw one process of its own cgroup grow into the limit.
fn journal_of_a_kill(folder: &Path, args: &[&str]) -> Result<PathBuf, String> {
    let journal = folder.join("oom.jsonl");
    let scratch = Cgroup::scratch()?;
    let limited = scratch.limited("limited", LIMIT_MIB);
    let launch = LaunchMethod::direct().cgroup(&limited);
    let log = ["--log", journal.to_str().expect("UTF-8")];
    let mut monitor = Monitor::start_program(&launch, &binary(), &[args, &log].concat());
    if args.is_empty() {
        monitor.needs_bpf()?;
    }
    // The sampler has seen who is there.
    monitor.within(Duration::from_secs(1), "nothing", |_| false);
    let mut command = launch.command(VICTIM);
    command.arg("grow").args(BURST);
    let victim = Scenario::start(command).end().pid("victim");
    monitor.until_report_of(victim);
    let is_written = || fs::read_to_string(&journal).is_ok_and(|text| text.ends_with('\n'));
    wait::until_true("a line in the journal", is_written);
    drop(monitor);
    Ok(journal)
}

fn plot(journal: &Path, page: &Path) -> Output {
    let mut command = Command::new(binary());
    command.args(["oom", "plot", "1"]).arg(journal).arg("-o").arg(page).stdin(Stdio::null());
    command.output().expect("the binary runs")
}

/// A browser without a window.
struct Browser {
    program: PathBuf,
    profile: TempDir,
}

impl Browser {
    fn here() -> Result<Self, String> {
        let program = host::program("chromium-headless-shell").or_else(|_| host::program("chromium"))?;
        Ok(Self { program, profile: TempDir::with_prefix("krc-").expect("a temporary folder") })
    }

    /// Opens a page and returns what was written to its console.
    #[track_caller]
    fn open(&self, page: &Path, arguments: &[String]) -> Vec<String> {
        let mut command = Command::new("timeout");
        command.arg("60").arg(&self.program);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]);
        command.arg(format!("--user-data-dir={}", self.profile.path().display()));
        command.args(arguments).arg(format!("file://{}", page.display())).stdin(Stdio::null());
        let output = command.output().expect("the browser runs");
        assert!(output.status.success(), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect()
    }

    /// A picture of the page with that colour scheme.
    #[track_caller]
    fn screenshot(&self, page: &Path, picture: &Path, is_dark: bool) -> Vec<u8> {
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark));
        let shot = format!("--screenshot={}", picture.display());
        let console = self.open(page, &[scheme, shot, "--window-size=1000,1700".to_owned()]);
        assert_eq!(console, Vec::<String>::new());
        fs::read(picture).expect("a screenshot")
    }
}

/// Where pictures are kept for people to look at, if the run says so.
fn pictures(folder: &TempDir) -> PathBuf {
    std::env::var_os("KRUNNER_TEST_PICTURES").map_or_else(|| folder.path().to_owned(), PathBuf::from)
}

#[track_caller]
fn renders(args: &[&str], name: &str) -> Result<(), String> {
    let browser = Browser::here()?;
    let folder = TempDir::with_prefix("kro-").expect("a temporary folder");
    let page = folder.path().join("report.html");
    let plotted = plot(&journal_of_a_kill(folder.path(), args)?, &page);
    assert!(plotted.status.success() && plotted.stdout.is_empty() && plotted.stderr.is_empty(), "{plotted:?}");
    assert_eq!(fs::metadata(&page).expect("a page").permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&page).expect("a page");
    for part in ["<svg ", "victim (", "<dt>limit</dt>", "<dt>growth</dt>", "(burst)", "<strong>"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let pictures = pictures(&folder);
    fs::copy(&page, pictures.join(format!("{name}.html"))).ok();
    let light = browser.screenshot(&page, &pictures.join(format!("{name}-light.png")), false);
    let dark = browser.screenshot(&page, &pictures.join(format!("{name}-dark.png")), true);
    assert!(light.starts_with(b"\x89PNG") && dark.starts_with(b"\x89PNG") && light != dark);

    let pdf = pictures.join(format!("{name}.pdf"));
    let print = [format!("--print-to-pdf={}", pdf.display()), "--no-pdf-header-footer".to_owned()];
    assert_eq!(browser.open(&page, &print), Vec::<String>::new());
    assert!(fs::read(&pdf).expect("a print").starts_with(b"%PDF"));
    Ok(())
}

#[test]
fn page_of_a_real_kill_renders_with_bpf() {
    require!(renders(&[], "bpf"));
}

#[test]
fn page_of_a_real_kill_renders_without_bpf() {
    require!(renders(&["--no-bpf"], "no-bpf"));
}

/// Otherwise the other tests would pass with any page.
#[test]
fn errors_of_a_page_are_noticed() {
    let browser = require!(Browser::here());
    let folder = TempDir::with_prefix("kro-").expect("a temporary folder");
    let page = folder.path().join("faulty.html");
    fs::write(&page, "<!DOCTYPE html><script>console.error('seen'); missing()</script>").expect("a page");
    let console = browser.open(&page, &["--dump-dom".to_owned()]);
    assert!(console.len() == 2 && console[0].contains("seen"), "{console:?}");
}

#[test]
fn name_of_a_process_is_no_markup_in_a_browser() {
    let browser = require!(Browser::here());
    let folder = TempDir::with_prefix("kro-").expect("a temporary folder");
    let (journal, page) = (folder.path().join("oom.jsonl"), folder.path().join("report.html"));
    let evil = "</title><script>console.error(1)</script><img src=x onerror=console.error(2)>";
    let report = serde_json::json!({
        "event": "oom_kill", "confidence": "possible", "tracer": "snapshot", "time": "2026-11-20T10:11:12Z",
        "victim": { "pid": 7, "name": evil, "cmdline": evil },
    });
    fs::write(&journal, format!("{report}\n")).expect("a journal");
    assert!(plot(&journal, &page).status.success());
    assert_eq!(browser.open(&page, &["--dump-dom".to_owned()]), Vec::<String>::new());
}
