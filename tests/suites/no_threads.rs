//! The container's limit of processes and threads is reached: steps end with the reason, and all else continues.

use std::fs;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::pids::PidsCgroup;
use krunner_tests::{LaunchMethod, Monitor, Raw, Runner, Scenario, Setup, require, wait};
use serde_json::Value;

use crate::app;
use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};

/// A session in this cgroup, after all that it does at its start.
fn start_in(pids: &PidsCgroup, launch: LaunchMethod, setup: Setup) -> (Runner, Raw) {
    let launch = launch.then(pids.enter());
    let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
    let runner = setup.prefix(&links).start();
    runner.settle();
    let mut raw = Raw::connect(&runner);
    assert_eq!(raw.exec("echo ready").stdout(), "ready\n");
    (runner, raw)
}

#[test]
fn step_that_cannot_start_ends_with_the_reason_and_the_next_one_runs() {
    let pids = require!(PidsCgroup::scratch());
    let (mut runner, mut raw) = start_in(&pids, LaunchMethod::direct(), app().folder("home/work/.logs"));
    raw.exec("for i in $(seq 20); do sleep 300 & done >/dev/null 2>&1");
    let limit = pids.fill(runner.pid(), 0);

    for _ in 0..3 {
        let run = raw.exec("echo hi");
        assert_eq!(run.codes(), [("finished", -1)]);
        let told = run.stderr();
        let reason =
            format!("the limit of {limit} processes and threads of this container is reached ({limit} in use)");
        assert!(told.contains("Resource temporarily unavailable: ") && told.contains(&reason), "{told}");
    }
    raw.sync();

    pids.lift();
    let run = raw.exec("echo hi");
    assert_eq!((run.stdout().as_str(), run.codes()), ("hi\n", vec![("finished", 0)]));
    assert!(runner.is_running());
}

#[test]
fn kill_is_reported_and_recorded_while_no_thread_can_be_started() {
    let pids = require!(PidsCgroup::scratch());
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", LIMIT_MIB);
    let setup = app().folder("home/work/.logs");
    let (runner, mut raw) = start_in(&pids, LaunchMethod::direct().cgroup(&scratch), setup);
    let hog = format!(
        "mkfifo go; exec 3<>go; echo 0 > {}; echo $$ > hog; exec {VICTIM} eat {TOO_MUCH} --wait <&3",
        limited.procs_file().display()
    );
    raw.op("exec", &hog);
    runner.wait_for("hog");
    runner.wait_for_program("victim", 1);
    pids.fill(runner.pid(), 1);

    fs::write(runner.home().join("go"), "\n").expect("the victim waits");
    let run = raw.read_runs(1);

    assert_eq!(run.codes(), [("finished", -9)]);
    runner.wait_for_log(&[VICTIM, "eat", "rss"]);
    let path = runner.home().join(".logs/oom.jsonl");
    let text = wait::until("oom.jsonl", || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')));
    let report: Value = serde_json::from_str(&text).expect("one line of JSON");
    assert_eq!(report["event"], "oom_kill", "{report}");
    raw.sync();
    pids.lift();
    assert_eq!(raw.exec("echo next").stdout(), "next\n");
}

#[test]
fn monitor_reports_while_no_thread_can_be_started() {
    let pids = require!(PidsCgroup::scratch());
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", LIMIT_MIB);
    let mut monitor = Monitor::start(&LaunchMethod::direct().cgroup(&scratch).then(pids.enter()));
    pids.fill(monitor.process(), 0);

    for _ in 0..2 {
        let mut command = LaunchMethod::direct().cgroup(&limited).command(VICTIM);
        command.args(["eat", TOO_MUCH]);
        let pid = Scenario::start(command).end().pid("victim");
        monitor.until_report_of(pid);
    }
    assert_eq!(monitor.end().code(), Some(0));
}
