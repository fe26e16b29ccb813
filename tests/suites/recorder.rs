//! The flight recorder: what is known of a session after its end, whatever ended it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Raw, Runner, Setup, binary, host, proc, require, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::Value;

use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};
use crate::{announce, app};

/// Of the recorder.
const FILE_BYTES: u64 = 256 * 1024;

fn with_logs() -> Setup {
    app().folder("home/work/.logs")
}

fn recording(runner: &Runner) -> PathBuf {
    runner.home().join(".logs/recorder.bin")
}

fn run_post_mortem(file: &Path) -> Output {
    Command::new(binary()).args(["oom", "post-mortem", "--json"]).arg(file).output().expect("the binary runs")
}

/// The object that is printed.
#[track_caller]
fn post_mortem(file: &Path) -> Value {
    let output = run_post_mortem(file);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Waits until the recording has this.
#[track_caller]
fn until_recorded(file: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, || {
        let output = run_post_mortem(file);
        let found: Value = serde_json::from_slice(&output.stdout).ok()?;
        wanted(&found).then_some(found)
    })
}

#[track_caller]
fn last_end(runner: &Runner) -> Value {
    serde_json::from_str(&runner.wait_for(".logs/last-end.json")).expect("JSON")
}

/// Kills the runner in a step.
#[track_caller]
fn kill_in_a_step(runner: &mut Runner) {
    let mut raw = Raw::connect(runner);
    raw.op("exec", &format!("{}; sleep 1000", announce("begun")));
    runner.wait_for("begun");
    until_recorded(&recording(runner), "a sample", |found| !found["memory"].is_null() && !found["step"].is_null());
    runner.signal(Signal::SIGKILL);
    runner.wait_exit();
}

#[test]
fn post_mortem_right_after_sigkill_names_the_step_and_the_memory() {
    let mut runner = with_logs().start();
    kill_in_a_step(&mut runner);

    let found = post_mortem(&recording(&runner));

    assert_eq!((&found["cause"], &found["pid"]), (&"killed".into(), &runner.pid().into()), "{found:#}");
    assert_eq!((&found["step"]["kind"], &found["step"]["exit_code"]), (&"exec".into(), &Value::Null), "{found:#}");
    assert!(found["step"]["text"].as_str().is_some_and(|text| text.ends_with("sleep 1000")), "{found:#}");
    assert!(found["memory"]["usage_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{found:#}");
    assert_eq!(fs::metadata(recording(&runner)).expect("the file").len(), FILE_BYTES);
}

#[test]
fn next_start_says_so_once_and_keeps_the_recording() {
    let mut runner = with_logs().start();
    let killed = runner.pid();
    kill_in_a_step(&mut runner);

    runner.start_again();
    runner.wait_for_log(&["an earlier session", "ended unexpectedly", "sleep 1000"]);
    let told = Raw::connect(&runner).exec("true");

    assert!(told.stderr().contains("ended unexpectedly"), "{told:#?}");
    let end = last_end(&runner);
    assert_eq!((&end["how"], &end["pid"], &end["cause"]), (&"unexpected".into(), &killed.into(), &"killed".into()));
    let object: Value = serde_json::from_str(&runner.wait_for(".logs/oom.jsonl")).expect("one line of JSON");
    assert_eq!(object["event"], "session_ended_unexpectedly");
    assert_eq!(object["pid"], killed);
    assert_eq!(post_mortem(&recording(&runner).with_extension("bin.1"))["pid"], killed);

    runner.restart();
    Raw::connect(&runner).sync();
    assert_eq!(last_end(&runner)["how"], "stopped");
    until_recorded(&recording(&runner), "the recorder has begun again", |found| found["pid"] == runner.pid());
    assert_eq!(runner.wait_for(".logs/oom.jsonl").lines().count(), 1, "once");
}

#[test]
fn runner_that_stops_says_goodbye() {
    let mut runner = with_logs().start();
    let run = Raw::connect(&runner).exec("exit 3");
    assert_eq!(run.codes(), [("finished", 3)]);
    until_recorded(&recording(&runner), "the end of the step", |found| found["step"]["exit_code"] == 3);

    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());

    let found = post_mortem(&recording(&runner));
    assert_eq!((&found["cause"], &found["confidence"]), (&"stopped".into(), &"certain".into()), "{found:#}");
    let end = last_end(&runner);
    assert_eq!((&end["how"], &end["step"]["exit_code"]), (&"stopped".into(), &3.into()), "{end:#}");
    assert_eq!(end["kernel_id"], krunner_tests::KERNEL_ID);
}

/// A session that sees something else at its `.logs` folder, of which the command line has the path.
fn mounted(launch: LaunchMethod, command: impl Fn(&Path) -> String) -> Setup {
    let setup = with_logs();
    let launch = launch.mounts(&command(&setup.home().join(".logs")));
    started_by(setup, &launch)
}

fn started_by(setup: Setup, launch: &LaunchMethod) -> Setup {
    let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
    setup.prefix(&links)
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn session_that_lives_is_left_alone_by_another_in_the_same_folder() {
    require!(host::root());
    require!(host::util_linux());
    let first = with_logs().start();
    until_recorded(&recording(&first), "the first is recorded", |found| found["cause"] == "running");
    let logs = first.home().join(".logs");

    let second =
        mounted(LaunchMethod::direct(), |folder| format!("mount --bind {} {}", logs.display(), folder.display()))
            .start();

    let found = until_recorded(&logs.join("recorder-2.bin"), "the second is recorded", |_| true);
    assert_eq!(found["pid"], second.pid(), "{found:#}");
    assert_eq!(post_mortem(&recording(&first))["pid"], first.pid());
    assert_eq!(count(&second.stderr(), "ended unexpectedly"), 0, "{}", second.stderr());
}

#[test]
fn what_is_no_file_is_left_alone_and_told_once() {
    let setup = with_logs().file("home/work/.logs/mine", "mine").link("home/work/.logs/recorder.bin", "mine");
    let logs = setup.home().join(".logs");
    nix::unistd::mkfifo(&logs.join("recorder-2.bin"), Mode::S_IRWXU).expect("a FIFO");
    let runner = setup.folder("home/work/.logs/recorder-3.bin").start();

    until_recorded(&logs.join("recorder-4.bin"), "the next name is used", |found| found["cause"] == "running");

    for name in ["recorder.bin", "recorder-2.bin", "recorder-3.bin"] {
        runner.wait_for_log(&[name, "not using"]);
        let output = run_post_mortem(&logs.join(name));
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
    }
    assert_eq!(Raw::connect(&runner).exec("true").codes(), [("finished", 0)]);
    assert_eq!(count(&runner.stderr(), "not using"), 3, "{}", runner.stderr());
    assert_eq!(runner.read(".logs/mine").as_deref(), Some("mine"));
}

#[test]
fn what_is_no_recording_is_renamed_and_told() {
    let other_version = [b"KRUNNERR".as_slice(), &9_u32.to_le_bytes(), &[0; 4000]].concat();
    for (content, what) in [(&b""[..], "empty"), (&other_version, "version 9"), (b"mine", "not a recording")] {
        let runner = with_logs().file("home/work/.logs/recorder.bin", content).start();
        runner.wait_for_log(&["flight recorder: recorder.bin", what]);
        let kept = recording(&runner).with_extension("bin.1");
        assert_eq!(fs::read(&kept).expect("the file"), content);
        let output = run_post_mortem(&kept);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(what), "{output:?}");
    }
}

#[test]
fn large_sparse_file_is_read_in_part() {
    const LARGE: u64 = 1 << 30;
    let setup = with_logs();
    let file = File::create(setup.home().join(".logs/recorder.bin")).expect("a file");
    file.set_len(LARGE).expect("a sparse file");
    let runner = setup.start();
    runner.wait_for_log(&["flight recorder: recorder.bin", "not a recording"]);
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak < 64 * 1024, "{peak} KiB");
}

#[test]
fn full_or_read_only_folder_is_told_once_and_reports_are_unchanged() {
    require!(host::root());
    require!(host::util_linux());
    for options in ["size=64k", "ro"] {
        let scratch = require!(Cgroup::scratch());
        let limited = scratch.limited("limited", LIMIT_MIB);
        let launch = LaunchMethod::direct().cgroup(&scratch);
        let setup = mounted(launch, |folder| format!("mount -t tmpfs -o {options} none {}", folder.display()));
        let runner = setup.start();
        runner.settle();
        runner.wait_for_log(&["flight recorder: cannot write"]);

        let hog = format!("sh -c 'echo 0 > {}; exec {VICTIM} eat {TOO_MUCH}'", limited.procs_file().display());
        let run = Raw::connect(&runner).exec(&format!("{hog}; true"));

        assert!(run.stderr().contains("oom-killed process"), "{options}: {run:#?}");
        assert_eq!(count(&runner.stderr(), "flight recorder"), 1, "{options}: {}", runner.stderr());
    }
}

#[test]
fn recording_that_is_cut_or_removed_under_the_runner_does_no_harm() {
    let runner = with_logs().start();
    until_recorded(&recording(&runner), "it is recorded", |found| !found["memory"].is_null());
    File::options().write(true).open(recording(&runner)).and_then(|file| file.set_len(0)).expect("cut");
    let mut raw = Raw::connect(&runner);
    assert_eq!(raw.exec("echo cut").codes(), [("finished", 0)]);
    wait::until_true("the recorder writes on", || fs::metadata(recording(&runner)).is_ok_and(|about| about.len() > 0));
    assert_eq!(run_post_mortem(&recording(&runner)).status.code(), Some(1), "its header is gone");
    fs::remove_file(recording(&runner)).expect("removed");
    assert_eq!(raw.exec("echo removed").codes(), [("finished", 0)]);
}

#[test]
fn monitor_records_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("monitor.bin");
    let path = file.to_str().expect("UTF-8");
    let mut monitor = Monitor::start_program(&LaunchMethod::direct(), &binary(), &["--recorder", path]);
    until_recorded(&file, "a sample", |found| found["cause"] == "running" && !found["memory"].is_null());
    proc::signal(monitor.process(), Signal::SIGKILL);
    wait::until_true("its end", || post_mortem(&file)["cause"] == "killed");

    let mut second = Monitor::start_program(&LaunchMethod::direct(), &binary(), &["--recorder", path]);
    assert!(second.end().success());
    assert_eq!(count(&second.stderr(), "ended unexpectedly"), 1, "{}", second.stderr());
    assert_eq!(post_mortem(&file)["cause"], "stopped");
    monitor.end();
}

#[test]
fn end_with_an_oom_kill_is_noted_and_told_to_kubernetes() {
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", LIMIT_MIB);
    let setup = with_logs().file("dev/termination-log", "");
    let mut runner = started_by(setup, &LaunchMethod::direct().cgroup(&scratch)).start();
    runner.settle();
    let procs = limited.procs_file();
    let hog = format!("sh -c 'echo $$ > hog; echo 0 > {}; exec {VICTIM} eat {TOO_MUCH}'", procs.display());
    Raw::connect(&runner).exec(&format!("{hog}; true"));
    let hog: u32 = runner.wait_for("hog").trim_end().parse().expect("a pid");
    let message = wait::until("the termination message", || {
        fs::read_to_string(runner.root().join("dev/termination-log")).ok().filter(|text| text.ends_with('\n'))
    });
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());

    assert!(message.contains("oom-killed process") && message.contains(VICTIM), "{message}");
    let end = last_end(&runner);
    assert_eq!((&end["how"], &end["oom_kill"]["pid"]), (&"oom_kill".into(), &hog.into()), "{end:#}");
    let line: Value = serde_json::from_str(&runner.wait_for(".logs/oom.jsonl")).expect("one line of JSON");
    assert_eq!(end["oom_kill"]["killed_at_boot_ns"], line["killed_at_boot_ns"], "the id of the report");
    let kills = &post_mortem(&recording(&runner))["kills"];
    assert!(kills[0].as_str().is_some_and(|kill| kill.contains(VICTIM)), "{kills}");
}

/// Memory grows in a step until the kernel chooses the runner, which has been made its first choice.
#[test]
fn runner_that_the_kernel_kills_at_the_limit_is_told_from_one_that_was_killed() {
    const RUNNERS_LIMIT_MIB: u64 = 160;
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("session", RUNNERS_LIMIT_MIB);
    let mut runner = started_by(with_logs(), &LaunchMethod::direct().cgroup(&limited)).start();
    runner.settle();
    fs::write(format!("/proc/{}/oom_score_adj", runner.pid()), "1000").expect("a higher one");
    let limit_bytes = RUNNERS_LIMIT_MIB << 20;
    let mut raw = Raw::connect(&runner);
    // The step's processes rank below the runner.
    let grow = "echo 0 > /proc/self/oom_score_adj; (head -c 90m /dev/zero; while [ ! -e go ]; do sleep 0.1; done; cat /dev/zero) | tail";
    raw.op("exec", grow);
    until_recorded(&recording(&runner), "a sample with half of the limit", |found| {
        found["memory"]["usage_bytes"].as_u64().is_some_and(|bytes| bytes > limit_bytes / 2)
    });
    runner.write("go", "");
    runner.wait_exit();

    let found = post_mortem(&recording(&runner));

    assert_eq!(found["memory"]["limit_bytes"], limit_bytes, "{found:#}");
    assert_eq!((&found["cause"], &found["confidence"]), (&"killed_at_limit".into(), &"likely".into()), "{found:#}");
}
