//! Real OOM kills: every victim is reported once with full confidence, and no other process.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::flaky::Retry;
use krunner_tests::{LaunchMethod, Monitor, Scenario, ScenarioOutput, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::oom::{LIMIT_MIB, OWN_MIB, TOO_MUCH, TestEnv, VICTIM, ancestors, assert_filled};

const CONFIRMED: &str = "confirmed";

#[track_caller]
fn assert_sigkill(told: &ScenarioOutput) {
    assert_eq!(told.status.signal(), Some(Signal::SIGKILL as i32), "{told:?}");
}

/// The scenario's first process is the only victim, and its numbers are plausible.
#[track_caller]
fn assert_only_victim(env: TestEnv, told: &ScenarioOutput) -> Value {
    assert_sigkill(told);
    let (limit_bytes, room_bytes) = (env.limited.limit_bytes(), env.limited.room_bytes());
    let report = env.finish(&[(told.pid("victim"), CONFIRMED)]).remove(0);
    assert_filled(&report, limit_bytes, room_bytes);
    assert_eq!(report["tracer"], "bpf");
    report
}

/// The process that the scenario saw killed is the only victim.
#[track_caller]
fn assert_only_killed(env: TestEnv, told: &ScenarioOutput) -> Value {
    let [killed] = told.all("killed")[..] else { panic!("one is killed: {told:?}") };
    env.finish(&[(killed, CONFIRMED)]).remove(0)
}

/// Runs a group in which this member is to be killed. Sometimes the kernel kills another member as well: a victim that has
/// begun to exit is no longer visible to the OOM killer (`css_task_iter_advance`, kernel/cgroup/cgroup.c, leaves out
/// groups without a live thread), but frees its memory only later, above all on a busy machine. That is another
/// scenario, so this one is run again.
#[track_caller]
fn run_group(
    env: fn() -> Result<TestEnv, String>,
    members: &[&str],
    victim: &str,
) -> Result<(TestEnv, ScenarioOutput), String> {
    const TIMES: usize = 4;
    for attempt in 1..=TIMES {
        let env = env()?;
        let told = env.run(&[&["group"], members].concat());
        if told.all("killed") == [told.pid(victim)] {
            return Ok((env, told));
        }
        Retry::of_test(&format!("other processes were killed: {told:?}"), attempt, TIMES).record();
    }
    panic!("{TIMES} times others than {victim} were killed");
}

fn running_s(report: &Value) -> f64 {
    report["victim"]["running_s"].as_f64().expect("seconds")
}

#[test]
fn hog_that_lives_20_ms() {
    let env = require!(TestEnv::new());
    let told = env.run(&["eat", TOO_MUCH]);
    let limit_bytes = env.limited.limit_bytes();
    let version = env.limited.version();
    let name = env.limited.path().file_name().and_then(OsStr::to_str).expect("a name").to_owned();

    let report = assert_only_victim(env, &told);

    assert!(running_s(&report) < 5.0, "{report}");
    assert_eq!(report["victim"]["name"], "victim");
    assert_eq!(report["victim"]["cmdline"], format!("{VICTIM} eat {TOO_MUCH}"));
    assert_eq!(report["victim"]["cmdline_is_cut"], false);
    assert_eq!((&report["victim"]["uid"], &report["victim"]["oom_score_adj"]), (&0.into(), &0.into()));
    assert_eq!(report["trigger"]["pid"], told.pid("victim"), "it asked for the memory itself");
    assert_eq!(report["with_pid"], Value::Null);
    assert!(report["killed_at_boot_ns"].as_u64() <= report["exited_at_boot_ns"].as_u64(), "{report}");
    assert!(report["time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{report}");
    let cgroup = &report["cgroup"];
    assert!(cgroup["path"].as_str().is_some_and(|path| path.ends_with(&name)), "{cgroup}");
    if version == Version::One {
        assert_eq!((&cgroup["version"], &cgroup["limit_bytes"]), (&1.into(), &limit_bytes.into()));
    }
}

#[test]
fn hog_4_s_old() {
    let env = require!(TestEnv::new());
    let told = env.run(&["eat", TOO_MUCH, "--after-ms", "4000"]);
    let report = assert_only_victim(env, &told);
    assert!((4.0..60.0).contains(&running_s(&report)), "{report}");
}

#[test]
fn bystanders_that_end_in_the_same_second() {
    let env = require!(TestEnv::new());
    let told = env.run(&["bystanders", "8", TOO_MUCH]);
    assert_eq!(told.all("exited").len(), 8, "{told:?}");
    assert_eq!(told.all("killed"), [told.pid("victim")], "{told:?}");
    assert_only_killed(env, &told);
}

#[test]
fn trigger_is_not_the_victim() {
    let (env, told) = require!(run_group(TestEnv::new, &["big=20", "trigger=16"], "big"));

    let report = assert_only_killed(env, &told);

    assert_eq!(report["trigger"]["pid"], told.pid("trigger"), "{report}");
    assert_eq!(report["trigger"]["name"], "trigger", "{report}");
    assert_eq!(report["victim"]["name"], "big", "{report}");
}

#[test]
fn biggest_is_not_the_newest() {
    let (env, told) = require!(run_group(TestEnv::new, &["big=18", "newer=4", "newest=14"], "big"));
    assert_only_killed(env, &told);
}

#[test]
fn smallest_is_the_victim_because_of_its_score() {
    let (env, told) = require!(run_group(TestEnv::new, &["small=8:1000", "other=9", "trigger=16"], "small"));
    let report = assert_only_killed(env, &told);
    assert_eq!(report["victim"]["oom_score_adj"], 1000);
}

#[test]
fn thread_that_is_not_the_leader_allocates() {
    let env = require!(TestEnv::new());
    let told = env.run(&["thread-eat", TOO_MUCH]);
    assert_only_victim(env, &told);
}

#[test]
fn leader_thread_is_gone_already() {
    let env = require!(TestEnv::new());
    let told = env.run(&["leader-gone", TOO_MUCH]);
    let report = assert_only_victim(env, &told);
    let cmdline = report["victim"]["cmdline"].as_str().expect("a text");
    assert!(cmdline.contains("leader-gone"), "as it was before: {report}");
}

#[test]
fn sharer_of_the_memory_is_told_with_the_victim() {
    let env = require!(TestEnv::new());
    let told = env.run(&["clone-vm", TOO_MUCH]);
    assert_sigkill(&told);
    let (victim, sharer) = (told.pid("victim"), told.pid("sharer"));
    wait::until_true("the kernel kills it, too", || !proc::is_alive(sharer));
    let mut env = env;
    env.monitor.until_reports(1);
    // Both score the same: the kernel may choose either.
    let chosen = env.monitor.reports()[0]["victim"]["pid"].as_u64();
    let (first, second) = if chosen == Some(sharer.into()) { (sharer, victim) } else { (victim, sharer) };

    // The victim lets go of nothing and may have exited, and been reported, before the kernel comes to the other one.
    let is_late = env.monitor.reports()[0]["members"] == Value::Array(Vec::new());
    let due = [(first, CONFIRMED), (second, "co-victim")];
    let reports = env.finish(&due[..if is_late { 2 } else { 1 }]);

    if is_late {
        assert_eq!(reports[1]["with_pid"], first, "{}", reports[1]);
    } else {
        let members = reports[0]["members"].as_array().expect("a list");
        assert_eq!((members.len(), &members[0]["pid"]), (1, &second.into()), "{}", reports[0]);
    }
    assert_eq!(reports[0]["trigger"]["pid"], victim, "the other one only sleeps");
}

#[test]
fn victim_in_a_nested_pid_namespace() {
    let env = require!(TestEnv::new());
    let told = env.run(&["nested-pidns", TOO_MUCH]);
    assert_eq!(told.all("killed"), [told.pid("victim")], "{told:?}");
    assert_only_killed(env, &told);
}

#[test]
fn those_who_end_with_their_pid_namespace_are_no_victims() {
    let env = require!(TestEnv::new());
    let told = env.run(&["nested-init", TOO_MUCH]);
    assert_eq!(told.all("killed").len(), 4, "the kernel ends the siblings too: {told:?}");
    assert_eq!(env.limited.oom_kills(), 1);
    env.finish(&[(told.pid("victim"), CONFIRMED)]);
}

#[test]
fn runner_and_victim_in_a_container() {
    let env = require!(TestEnv::in_sandbox());
    assert_eq!(env.monitor.watching()["scope"], "pid-namespace");
    let told = env.run(&["eat", TOO_MUCH]);
    let report = assert_only_victim(env, &told);
    assert_eq!(report["trigger"]["pid"], told.pid("victim"), "{report}");
}

#[test]
fn nested_pid_namespace_in_a_container() {
    let env = require!(TestEnv::in_sandbox());
    let told = env.run(&["nested-pidns", TOO_MUCH]);
    assert_eq!(told.all("killed"), [told.pid("victim")], "{told:?}");
    let report = assert_only_killed(env, &told);
    assert_eq!(report["trigger"]["pid"], told.pid("victim"), "{report}");
}

#[test]
fn chain_of_starters_in_a_container() {
    let (env, told) = require!(run_group(TestEnv::in_sandbox, &["big=20", "trigger=16"], "big"));
    let report = assert_only_killed(env, &told);
    let starter = &report["ancestors"][0];
    assert_eq!(starter["name"], "victim", "{report}");
    assert_eq!(starter["cmdline"], format!("{VICTIM} group big=20 trigger=16"), "{report}");
    assert_eq!(starter["exited"], false, "{report}");
}

#[test]
fn largest_are_alive_and_sorted() {
    let (env, told) = require!(run_group(TestEnv::new, &["big=18", "newer=4", "newest=14"], "big"));
    let report = assert_only_killed(env, &told);
    let largest = report["largest"].as_array().expect("a list");
    assert!(largest.len() <= 5, "{report}");
    assert!(!largest.is_empty(), "{report}");
    let sizes: Vec<_> = largest.iter().map(|process| process["rss_bytes"].as_u64().expect("bytes")).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    assert!(largest.iter().all(|process| process["pid"] != report["victim"]["pid"]), "{report}");
}

#[test]
fn parent_died_before_the_victim() {
    let env = require!(TestEnv::new());
    let told = env.run(&["orphan", TOO_MUCH]);
    assert_eq!(told.all("killed"), [told.pid("victim")], "{told:?}");

    let report = assert_only_killed(env, &told);

    let ancestors = ancestors(&report);
    let (middle, first) = (told.pid("middle").into(), told.pid("first").into());
    assert!(ancestors.starts_with(&[middle, first]), "{middle}, {first}: {report}");
    assert_eq!((&report["ancestors"][0]["exited"], &report["ancestors"][1]["exited"]), (&true.into(), &false.into()));
    let started = &report["ancestors"][0]["cmdline"];
    assert!(started.as_str().is_some_and(|cmdline| cmdline.contains("middle")), "{report}");
}

#[test]
fn pid_that_is_used_again() {
    let mut env = require!(TestEnv::in_sandbox());
    let told = env.run_from_outside(&["pid-reuse", TOO_MUCH]);
    let pid = told.pid("second");
    assert_eq!((told.all("killed"), told.pid("early"), told.pid("third")), (vec![pid; 2], pid, pid), "{told:?}");
    env.monitor.until_reports(2);
    env.marker();

    let reports: Vec<_> = env.monitor.reports().into_iter().filter(|report| report["victim"]["pid"] == pid).collect();

    let names: Vec<_> = reports.iter().map(|report| report["victim"]["name"].clone()).collect();
    assert_eq!(names, ["second", "third"], "in the order of their deaths");
    let cmdline = |index: usize| reports[index]["victim"]["cmdline"].as_str().expect("a text");
    assert!(cmdline(0).contains("second") && cmdline(1).contains("third"), "{reports:#?}");
    assert!(reports.iter().all(|report| running_s(report) < 10.0), "{reports:#?}");
    assert_eq!(env.monitor.reports().len(), 3, "with the marker");
}

/// Runs a hog with further arguments, which it ignores.
#[track_caller]
fn hog_with(arguments: &[&OsStr]) -> Option<Value> {
    let env = match TestEnv::new() {
        Ok(env) => env,
        Err(reason) => {
            krunner_tests::host::skip("suites::oom_kills::hog_with::here", &reason);
            return None;
        }
    };
    let mut command = env.launch().command(VICTIM);
    command.args(["eat", TOO_MUCH, "--"]).args(arguments);
    let told = Scenario::start(command).end();
    Some(assert_only_victim(env, &told))
}

#[test]
fn command_line_of_100_kb() {
    let argument = "x".repeat(100_000);
    let Some(report) = hog_with(&[OsStr::new(&argument)]) else { return };
    let cmdline = report["victim"]["cmdline"].as_str().expect("a text");
    let begin = format!("{VICTIM} eat {TOO_MUCH} -- xxx");
    assert!(cmdline.starts_with(&begin), "{}", &cmdline[..200.min(cmdline.len())]);
    assert_eq!(report["victim"]["cmdline_is_cut"], cmdline.len() < argument.len(), "{}", cmdline.len());
    assert!(cmdline.len() <= 64 * 1024, "{} bytes are kept of one process", cmdline.len());
}

#[test]
fn command_line_that_is_not_utf8() {
    let argument = OsStr::from_bytes(b"caf\xe9\n\x1b[31mred");
    let Some(report) = hog_with(&[argument]) else { return };
    let cmdline = report["victim"]["cmdline"].as_str().expect("a text");
    assert!(cmdline.contains("caf\u{fffd}"), "{cmdline:?}");
    assert!(!cmdline.contains(char::is_control), "{cmdline:?}");
}

#[test]
fn command_line_that_is_empty() {
    let env = require!(TestEnv::new());
    let told = env.run(&["bare", "empty", TOO_MUCH]);
    let report = assert_only_victim(env, &told);
    assert_eq!(report["victim"]["cmdline"].as_str().map(str::trim), Some(""), "{report}");
}

#[test]
fn command_line_that_was_overwritten() {
    let env = require!(TestEnv::new());
    let told = env.run(&["bare", "wiped", TOO_MUCH]);
    let report = assert_only_victim(env, &told);
    // As it was at the exec, or as it was at a later snapshot.
    let cmdline = report["victim"]["cmdline"].as_str().expect("a text").trim();
    assert!(cmdline.is_empty() || cmdline == format!("{VICTIM} bare wiped {TOO_MUCH}"), "{report}");
}

#[test]
fn comm_with_parentheses_and_newlines() {
    let env = require!(TestEnv::new());
    let told = env.run(&["eat", TOO_MUCH, "--name", "a) R 1 (\nb"]);
    let report = assert_only_victim(env, &told);
    let name = report["victim"]["name"].as_str().expect("a text");
    assert!(name.starts_with("a) R 1 ("), "{report}");
}

#[test]
fn all_namespaces_shows_what_the_cgroup_filter_hides() {
    let scratch = require!(Cgroup::scratch());
    let (own, limited) = (scratch.limited("own", OWN_MIB), scratch.limited("other", LIMIT_MIB));
    require!(Monitor::start(&LaunchMethod::direct()).needs_bpf());
    let mut monitor =
        Monitor::start_program(&LaunchMethod::direct().cgroup(&own), &krunner_tests::binary(), &["--all-namespaces"]);
    assert_eq!(monitor.watching()["scope"], "all");
    let mut command = LaunchMethod::direct().cgroup(&limited).command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let told = Scenario::start(command).end();
    assert_sigkill(&told);
    monitor.until_report_of(told.pid("victim"));
}
