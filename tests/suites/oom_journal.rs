//! `krunner monitor --log` keeps a journal, and `krunner oom` shows it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Scenario, binary, require, wait};
use serde_json::Value;

use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};

fn krunner(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).arg(file).stdin(Stdio::null());
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A monitor with a journal, and two processes that were killed under it. Cgroups go after what is in them.
struct Killed {
    monitor: Monitor,
    pids: [u32; 2],
    _limited: Cgroup,
    _scratch: Cgroup,
}

fn kill_two(file: &str) -> Result<Killed, String> {
    let scratch = Cgroup::scratch()?;
    let limited = scratch.limited("limited", LIMIT_MIB);
    let mut monitor = Monitor::start_program(&LaunchMethod::direct().cgroup(&scratch), &binary(), &["--log", file]);
    monitor.needs_bpf()?;
    let pids = ["first", "second"].map(|name| {
        let mut command = LaunchMethod::direct().cgroup(&limited).command(VICTIM);
        command.args(["eat", TOO_MUCH, "--name", name]);
        let pid = Scenario::start(command).end().pid("victim");
        monitor.until_report_of(pid);
        pid
    });
    Ok(Killed { monitor, pids, _limited: limited, _scratch: scratch })
}

#[test]
fn kills_are_kept_listed_and_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("kills.jsonl");
    let killed = require!(kill_two(file.to_str().expect("UTF-8")));
    let is_written = || fs::read_to_string(&file).is_ok_and(|text| text.lines().count() == 2 && text.ends_with('\n'));
    wait::until_true("two lines in the journal", is_written);
    let pids = killed.pids;

    let listed = krunner(&["oom", "list", "--json"], &file);
    let rows: Vec<Value> = text(&listed.stdout).lines().map(|row| serde_json::from_str(row).expect("JSON")).collect();
    let seen: Vec<_> = rows.iter().map(|row| (row["number"].as_u64(), row["victim"]["pid"].as_u64())).collect();
    assert_eq!(seen, [(Some(2), Some(pids[0].into())), (Some(1), Some(pids[1].into()))], "{listed:?}");
    assert_eq!(rows[0]["limit_bytes"], LIMIT_MIB << 20, "{rows:#?}");
    let only = krunner(&["oom", "list", "--since", "1h", "--process", "second"], &file);
    assert!(text(&only.stdout).lines().count() == 2 && text(&only.stdout).contains("confirmed"), "{only:?}");

    let shown = krunner(&["oom", "show", "2"], &file);
    let line = format!("\n{} (running for ", pids[0]);
    assert!(text(&shown.stdout).contains(&line) && text(&shown.stdout).contains("\nconfidence: "), "{shown:?}");
}

#[test]
fn a_journal_that_cannot_be_written_is_said_once_and_reports_continue() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("kills.jsonl");
    // Fails for root, too: the name of the older journal is taken by a folder.
    fs::create_dir(folder.path().join("kills.jsonl.1")).expect("a folder");
    fs::write(&file, vec![b'\n'; 16 << 20]).expect("a journal that has to be renamed");
    let killed = require!(kill_two(file.to_str().expect("UTF-8")));

    let told = |monitor: &Monitor| monitor.stderr().matches("cannot write OOM reports to").count();
    wait::until_true("the failure to be said", || told(&killed.monitor) > 0);
    assert_eq!(told(&killed.monitor), 1, "{}", killed.monitor.stderr());
}

#[test]
fn what_is_not_a_journal_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    for file in [fifo.as_path(), folder.path(), Path::new("/missing/oom.jsonl")] {
        for command in ["list", "show"] {
            let arguments: &[&str] = if command == "list" { &["oom", "list"] } else { &["oom", "show", "1"] };
            let refused = krunner(arguments, file);
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            assert!(text(&refused.stderr).contains(file.to_str().expect("UTF-8")), "{refused:?}");
        }
        let refused = krunner(&["monitor", "--log"], file);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    }
}
