//! Kills where `/proc` or the clocks are not what they are elsewhere: the host's `/proc` in a PID namespace of its own, a
//! time namespace, a `/proc` that hides other users' processes.

use std::process::Command;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{Monitor, Scene, Way, World, binary, host, require};

use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM, ancestors};

/// In the command line of processes outside.
const STRANGER: &str = "stranger-outside";

/// Uncovers the `/proc` of the PID namespace above.
const HOSTS_PROC: &str = "umount /proc";

/// A large process outside of the world.
fn stranger() -> Scene {
    let mut command = Command::new(VICTIM);
    command.args(["eat", "200", "--hold", "--", STRANGER]);
    let scene = Scene::start(command);
    scene.until("ready");
    scene
}

/// Has one killed there; its pid.
#[track_caller]
fn killed_in(way: &Way) -> u32 {
    let mut command = way.command(VICTIM);
    command.args(["eat", TOO_MUCH, "--after-ms", "300"]);
    Scene::start(command).end().pid("victim")
}

#[test]
fn hosts_proc_in_a_pid_namespace_with_bpf() {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let world = World::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let _stranger = stranger();
    let mut monitor = Monitor::start(&Way::here().world(&world).cgroup(&scratch).mounts(HOSTS_PROC));
    require!(monitor.needs_bpf());
    let pid = killed_in(&Way::here().world(&world).cgroup(&limited));
    monitor.until_report_of(pid);
    assert_eq!(monitor.end().code(), Some(0));
    let reports = monitor.reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(!reports[0].to_string().contains(STRANGER), "{}", reports[0]);
    let told = monitor.stderr();
    assert_eq!(told.matches("/proc shows another PID namespace").count(), 1, "{told}");
}

#[test]
fn hosts_proc_in_a_pid_namespace_without_bpf() {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let world = World::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let stranger = stranger();
    let way = Way::here().world(&world).cgroup(&scratch).mounts(HOSTS_PROC);
    let mut monitor = Monitor::start_program(&way, &binary(), &["--no-bpf"]);
    killed_in(&Way::here().world(&world).cgroup(&limited));
    stranger.end();
    monitor.until("the kill to be given up", |line| line["event"] == "oom_kills_unattributed");
    assert_eq!(monitor.end().code(), Some(0));
    assert_eq!(monitor.reports().len(), 0, "{:#?}", monitor.said());
}

/// In a world whose `/proc` hides others from this user.
const HIDE: &str = "mount -o remount,hidepid=2 /proc";
const NOBODY: u32 = 65_534;

/// One that eats so much, and holds it or waits before.
#[track_caller]
fn start(way: &Way, mib: &str, how: &str) -> Scene {
    let mut command = way.command(VICTIM);
    command.args(["eat", mib, how]);
    Scene::start(command)
}

#[test]
fn hidden_victim_is_not_taken_for_a_bystander() {
    const ROUNDS: u64 = 4;
    const BYSTANDERS: usize = 6;
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let world = World::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let inside = Way::here().world(&world).cgroup(&limited);
    let way = Way::here().world(&world).cgroup(&scratch).mounts(HIDE).user(NOBODY);
    let mut monitor = Monitor::start_program(&way, &binary(), &["--no-bpf"]);
    for _ in 0..ROUNDS {
        // Some that are seen, and end one after the other while one is killed that is not.
        let bystanders: Vec<Scene> =
            (0..BYSTANDERS).map(|_| start(&inside.clone().user(NOBODY), "2", "--hold")).collect();
        for bystander in &bystanders {
            bystander.until("ready");
        }
        let mut hog = start(&inside, TOO_MUCH, "--wait");
        hog.until("victim");
        hog.go();
        for bystander in bystanders {
            bystander.end();
        }
        hog.end();
    }
    // One that is seen, and has most of what there is.
    let mut command = inside.user(NOBODY).command(VICTIM);
    command.args(["eat", "24", "--hold", "--then", TOO_MUCH]);
    let largest = Scene::start(command);
    largest.until("ready");
    let mut given_up = 0;
    while given_up < ROUNDS {
        monitor.until("all kills to be given up", |line| {
            assert_ne!(line["event"], "oom_kill", "{line}");
            given_up += if line["event"] == "oom_kills_unattributed" { line["count"].as_u64().unwrap_or(0) } else { 0 };
            line["event"] == "oom_kills_unattributed"
        });
    }
    let reason = &monitor.said().last().expect("the last one")["reason"];
    assert!(reason.as_str().is_some_and(|reason| reason.contains("hidepid=")), "{reason}");
    assert_eq!(monitor.reports().len(), 0, "{:#?}", monitor.said());

    let victim = largest.end().pid("victim");
    monitor.until_report_of(victim);
    assert_eq!(monitor.end().code(), Some(0));
    assert_eq!(monitor.reports()[0]["confidence"], "inferred");
}

/// What the boot clock is ahead of the machine's in there.
const TIME_NAMESPACE: [&str; 6] = ["unshare", "--time", "--boottime", "100000", "--fork", "--kill-child"];

/// Since 1970.
#[track_caller]
fn seconds_of_day(time: &str) -> i64 {
    let output = Command::new("date").args(["-u", "+%s", "-d", time]).output().expect("date starts");
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A shell there starts one that is killed. Its report has the shell as the parent, and times of our clock.
#[track_caller]
fn kill_in_a_time_namespace(args: &[&str]) {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let limited = scratch.limited("limited", LIMIT_MIB);
    let way = Way::here().cgroup(&scratch).then(TIME_NAMESPACE);
    let mut monitor = Monitor::start_program(&way, &binary(), args);
    if args.is_empty() {
        require!(monitor.needs_bpf());
    }
    let mut command = Way::here().cgroup(&limited).command("sh");
    command.args(["-c", "\"$@\" & wait; exit 0", "sh", VICTIM, "eat", TOO_MUCH, "--after-ms", "2500"]);
    let scene = Scene::start(command);
    let shell = scene.pid();
    let victim = scene.end().pid("victim");
    monitor.until_report_of(victim);
    assert_eq!(monitor.end().code(), Some(0));
    let report = monitor.reports()[0];
    assert_eq!(ancestors(report), [u64::from(shell)], "{report}");
    let running_s = report["victim"]["running_s"].as_f64().expect("seconds");
    assert!((2.0..60.0).contains(&running_s), "{report}");
    let age_s = seconds_of_day("now") - seconds_of_day(report["time"].as_str().expect("a time"));
    assert!((0..60).contains(&age_s), "{age_s} s ago: {report}");
}

#[test]
fn kill_in_a_time_namespace_with_bpf() {
    kill_in_a_time_namespace(&[]);
}

#[test]
fn kill_in_a_time_namespace_without_bpf() {
    kill_in_a_time_namespace(&["--no-bpf"]);
}
