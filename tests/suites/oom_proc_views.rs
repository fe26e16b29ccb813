//! OOM kills with an unusual `/proc` or clock: the host's `/proc` in a nested PID namespace, a
//! time namespace, a `/proc` that hides other users' processes.

use std::process::Command;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Sandbox, Scenario, binary, host, require};

use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM, ancestors};

/// In the command line of processes outside the sandbox.
const STRANGER: &str = "stranger-outside";

/// Uncovers the `/proc` of the PID namespace above.
const HOSTS_PROC: &str = "umount /proc";

/// A large process outside the sandbox.
fn stranger() -> Scenario {
    let mut command = Command::new(VICTIM);
    command.args(["eat", "200", "--hold", "--", STRANGER]);
    let scenario = Scenario::start(command);
    scenario.until("ready");
    scenario
}

/// Causes an OOM kill there and returns the victim's PID.
#[track_caller]
fn killed_in(launch: &LaunchMethod) -> u32 {
    let mut command = launch.command(VICTIM);
    command.args(["eat", TOO_MUCH, "--after-ms", "300"]);
    Scenario::start(command).end().pid("victim")
}

#[test]
fn hosts_proc_in_a_pid_namespace_with_bpf() {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let sandbox = Sandbox::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let _stranger = stranger();
    let mut monitor = Monitor::start(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&scratch).mounts(HOSTS_PROC));
    require!(monitor.needs_bpf());
    let pid = killed_in(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&limited));
    monitor.until_report_of(pid);
    assert_eq!(monitor.end().code(), Some(0));
    let reports = monitor.reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(!reports[0].to_string().contains(STRANGER), "{}", reports[0]);
    let told = monitor.stderr();
    assert_eq!(told.matches("/proc shows a different PID namespace").count(), 1, "{told}");
}

#[test]
fn hosts_proc_in_a_pid_namespace_without_bpf() {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let sandbox = Sandbox::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let stranger = stranger();
    let launch = LaunchMethod::direct().sandbox(&sandbox).cgroup(&scratch).mounts(HOSTS_PROC);
    let mut monitor = Monitor::start_program(&launch, &binary(), &["--no-bpf"]);
    killed_in(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&limited));
    stranger.end();
    monitor.until("the kill to be given up", |line| line["event"] == "oom_kills_unattributed");
    assert_eq!(monitor.end().code(), Some(0));
    assert_eq!(monitor.reports().len(), 0, "{:#?}", monitor.lines());
}

/// Runs in a sandbox whose `/proc` hides other processes from this user.
const HIDE: &str = "mount -o remount,hidepid=2 /proc";
const NOBODY: u32 = 65_534;

/// A process that allocates this much, and then holds it or waits before.
#[track_caller]
fn start(launch: &LaunchMethod, mib: &str, how: &str) -> Scenario {
    let mut command = launch.command(VICTIM);
    command.args(["eat", mib, how]);
    Scenario::start(command)
}

#[test]
fn hidden_victim_is_not_taken_for_a_bystander() {
    const ROUNDS: u64 = 4;
    const BYSTANDERS: usize = 6;
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let sandbox = Sandbox::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let inside = LaunchMethod::direct().sandbox(&sandbox).cgroup(&limited);
    let launch = LaunchMethod::direct().sandbox(&sandbox).cgroup(&scratch).mounts(HIDE).user(NOBODY);
    let mut monitor = Monitor::start_program(&launch, &binary(), &["--no-bpf"]);
    for _ in 0..ROUNDS {
        // Some that are seen, and end one after the other while one is killed that is not.
        let bystanders: Vec<Scenario> =
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
    let largest = Scenario::start(command);
    largest.until("ready");
    let mut given_up = 0;
    while given_up < ROUNDS {
        monitor.until("all kills to be given up", |line| {
            assert_ne!(line["event"], "oom_kill", "{line}");
            given_up += if line["event"] == "oom_kills_unattributed" { line["count"].as_u64().unwrap_or(0) } else { 0 };
            line["event"] == "oom_kills_unattributed"
        });
    }
    let reason = &monitor.lines().last().expect("the last one")["reason"];
    assert!(reason.as_str().is_some_and(|reason| reason.contains("hidepid=")), "{reason}");
    assert_eq!(monitor.reports().len(), 0, "{:#?}", monitor.lines());

    let victim = largest.end().pid("victim");
    monitor.until_report_of(victim);
    assert_eq!(monitor.end().code(), Some(0));
    assert_eq!(monitor.reports()[0]["confidence"], "inferred");
}

/// The offset of the boot clock in the time namespace.
const TIME_NAMESPACE: [&str; 6] = ["unshare", "--time", "--boottime", "100000", "--fork", "--kill-child"];

/// Seconds since 1970.
#[track_caller]
fn seconds_of_day(time: &str) -> i64 {
    let output = Command::new("date").args(["-u", "+%s", "-d", time]).output().expect("date starts");
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A shell there starts a process that is killed. The report must name the shell as parent and use our clock.
#[track_caller]
fn kill_in_a_time_namespace(args: &[&str]) {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let limited = scratch.limited("limited", LIMIT_MIB);
    let launch = LaunchMethod::direct().cgroup(&scratch).then(TIME_NAMESPACE);
    let mut monitor = Monitor::start_program(&launch, &binary(), args);
    if args.is_empty() {
        require!(monitor.needs_bpf());
    }
    let mut command = LaunchMethod::direct().cgroup(&limited).command("sh");
    command.args(["-c", "\"$@\" & wait; exit 0", "sh", VICTIM, "eat", TOO_MUCH, "--after-ms", "2500"]);
    let scenario = Scenario::start(command);
    let shell = scenario.pid();
    let victim = scenario.end().pid("victim");
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
