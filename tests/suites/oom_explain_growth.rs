//! How memory grew before a kill, and the warning before it: real cgroups, real kills, with BPF and without.
//!
//! The monitor is in the cgroup whose limit is reached, as a runner is in its container.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Scenario, binary, host, proc, require, wait};
use serde_json::Value;
use tempfile::TempDir;

use crate::oom::VICTIM;
use crate::{app, with_agent};

const LIMIT_MIB: u64 = 128;

/// 30 MiB for 3 s, and from there on a fifth of the limit each second.
const FIFTH_EACH_SECOND: [&str; 3] = ["30:0", "30:3", "286:10"];

/// A monitor within a limit.
struct Watched {
    monitor: Monitor,
    launch: LaunchMethod,
    _limited: Cgroup,
    _scratch: Cgroup,
}

impl Watched {
    fn start(args: &[&str], variables: &[&str]) -> Result<Self, String> {
        let scratch = Cgroup::scratch()?;
        let limited = scratch.limited("limited", LIMIT_MIB);
        let launch = LaunchMethod::direct().cgroup(&limited);
        let mut monitor = Monitor::start_program(&launch.clone().then(environment(variables)), &binary(), args);
        if args.is_empty() {
            monitor.needs_bpf()?;
        }
        // The tracer's loader has left, and the sampler has seen who is there.
        monitor.within(Duration::from_secs(1), "nothing", |_| false);
        Ok(Self { monitor, launch, _limited: limited, _scratch: scratch })
    }

    /// Has a process grow like this until it is killed; its report, and when that came.
    #[track_caller]
    fn grow(&mut self, segments: &[&str]) -> (Value, Instant) {
        let mut command = self.launch.command(VICTIM);
        command.arg("grow").args(segments);
        let victim = Scenario::start(command).end().pid("victim");
        self.monitor.until_report_of(victim);
        let is_report = |line: &Value| line["event"] == "oom_kill" && line["victim"]["pid"] == victim;
        let at = self.monitor.lines().iter().position(is_report).expect("it was heard");
        (self.monitor.lines()[at].clone(), self.monitor.received_at()[at])
    }

    fn warnings(&self) -> Vec<(Value, Instant)> {
        let said = self.monitor.lines().iter().zip(self.monitor.received_at());
        said.filter(|(line, _)| line["event"] == "memory_warning").map(|(line, at)| (line.clone(), *at)).collect()
    }
}

fn environment(variables: &[&str]) -> Vec<String> {
    let mut command = vec!["env".to_owned()];
    command.extend(variables.iter().map(|variable| (*variable).to_owned()));
    command
}

#[track_caller]
fn assert_shape(report: &Value, shape: &str, mib_per_s: std::ops::RangeInclusive<f64>) {
    let growth = &report["explanation"]["growth"];
    assert_eq!(growth["shape"], shape, "{growth:#}");
    let rate = growth["rate_bytes_per_s"].as_f64().expect("a rate") / 1_048_576.0;
    assert!(mib_per_s.contains(&rate), "{rate} MiB/s: {growth:#}");
    let samples = growth["samples"].as_array().expect("samples");
    assert!(samples.len() >= 5 && samples.iter().all(|sample| sample["limit_bytes"] == LIMIT_MIB << 20), "{growth:#}");
    let has_victim = |sample: &Value| {
        sample["processes"].as_array().is_some_and(|all| all.iter().any(|one| one["pid"] == report["victim"]["pid"]))
    };
    assert!(samples.iter().any(has_victim), "the victim is in the samples: {growth:#}");
}

#[track_caller]
fn shapes(args: &[&str]) -> Result<(), String> {
    let mut watched = Watched::start(args, &[])?;
    let (report, _) = watched.grow(&["20:0", "20:3", "220:20"]);
    assert_shape(&report, "leak", 7.0..=13.0);
    assert_eq!(report["explanation"]["advice"]["at_least_bytes"], Value::Null, "{report:#}");
    drop(watched);

    let mut watched = Watched::start(args, &[])?;
    let (report, _) = watched.grow(&["20:0", "20:4", "220:3"]);
    assert_shape(&report, "burst", 40.0..=90.0);
    assert_eq!(report["explanation"]["advice"]["at_least_bytes"], LIMIT_MIB << 20, "{report:#}");
    drop(watched);

    let mut watched = Watched::start(args, &[])?;
    let (report, _) = watched.grow(&["20:0", "20:3", "100:0.5", "100:4", "220:1"]);
    assert_shape(&report, "step", 40.0..=400.0);
    Ok(())
}

#[test]
fn shape_of_the_growth_is_told_with_bpf() {
    require!(shapes(&[]));
}

#[test]
fn shape_of_the_growth_is_told_without_bpf() {
    require!(shapes(&["--no-bpf"]));
}

/// Growth by a fifth of the limit each second.
#[track_caller]
fn warned_in_time(args: &[&str]) -> Result<(), String> {
    let mut watched = Watched::start(args, &[])?;
    let (report, killed_at) = watched.grow(&FIFTH_EACH_SECOND);
    let warnings = watched.warnings();
    let [(warning, warned_at)] = &warnings[..] else { panic!("one warning: {warnings:#?}") };
    let before = killed_at.duration_since(*warned_at);
    eprintln!("warned {before:?} before the report: {warning}");
    assert!(before >= Duration::from_secs(1), "{before:?} before the report: {warning:#}");
    assert_eq!(warning["growing"]["pid"], report["victim"]["pid"], "{warning:#}");
    let rate = warning["rate_bytes_per_s"].as_f64().expect("a rate") / 1_048_576.0;
    assert!((10.0..=45.0).contains(&rate), "{rate} MiB/s");
    Ok(())
}

#[test]
fn warning_comes_a_second_before_the_kill_with_bpf() {
    require!(warned_in_time(&[]));
}

#[test]
fn warning_comes_a_second_before_the_kill_without_bpf() {
    require!(warned_in_time(&["--no-bpf"]));
}

#[test]
fn page_cache_is_not_warned_of() {
    let mut watched = require!(Watched::start(&[], &[]));
    let folder = TempDir::with_prefix_in("kro-", env!("CARGO_TARGET_TMPDIR")).expect("a folder on disk");
    let script = "for round in 1 2 3; do dd if=/dev/zero of=$0/file bs=1M count=300 2> /dev/null; \
                  cat $0/file $0/file $0/file > /dev/null; done; echo done 1";
    let mut command = watched.launch.command("sh");
    command.args(["-c", script]).arg(folder.path());
    let told = Scenario::start(command).end();
    assert!(told.status.success(), "{:?}", told.status);
    watched.monitor.within(Duration::from_secs(1), "nothing", |_| false);
    assert_eq!(watched.warnings(), [], "of a cgroup that is full of page cache");
}

#[test]
fn warnings_can_be_off() {
    let mut watched = require!(Watched::start(&[], &["KRUNNER_MEMORY_WARNING=off"]));
    watched.grow(&FIFTH_EACH_SECOND);
    assert_eq!(watched.warnings(), []);
}

/// A script that is a hook.
fn hook(folder: &Path, text: &str) -> String {
    let path = folder.join("hook");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a hook");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable hook");
    format!("KRUNNER_MEMORY_HOOK={} {}", path.display(), folder.display())
}

fn read(folder: &Path, name: &str) -> String {
    wait::until(name, || fs::read_to_string(folder.join(name)).ok().filter(|text| text.ends_with('\n')))
}

#[test]
fn hook_gets_the_warning_and_nothing_of_ours() {
    let folder = TempDir::with_prefix("kro-").expect("a temporary folder");
    let script = "cat > $1/draft; ls -l /proc/self/fd > $1/fds; mv $1/draft $1/got";
    let setting = hook(folder.path(), script);
    let mut watched = require!(Watched::start(&[], &[&setting, "KRUNNER_MEMORY_WARNING=off"]));
    watched.grow(&FIFTH_EACH_SECOND);
    let warning: Value = serde_json::from_str(&read(folder.path(), "got")).expect("JSON");
    assert_eq!((&warning["event"], &warning["limit_bytes"]), (&"memory_warning".into(), &(LIMIT_MIB << 20).into()));
    let descriptors = read(folder.path(), "fds");
    assert!(descriptors.contains("/fd\n"), "the folder that `ls` reads is one: {descriptors}");
    assert!(!descriptors.contains("bpf") && !descriptors.contains("cgroup"), "{descriptors}");
    assert_eq!(watched.warnings(), [], "the hook runs with warnings off");
}

#[test]
fn hook_that_hangs_is_ended() {
    let folder = TempDir::with_prefix("kro-").expect("a temporary folder");
    let setting = hook(folder.path(), "echo $$ > $1/pid; exec sleep 1000");
    let mut watched = require!(Watched::start(&["--no-bpf"], &[&setting, "KRUNNER_MEMORY_HOOK_TIMEOUT=1"]));
    watched.grow(&FIFTH_EACH_SECOND);
    let pid: u32 = read(folder.path(), "pid").trim().parse().expect("a pid");
    wait::until_true("the hook to be ended", || proc::comm(pid).as_deref() != Some("sleep"));
    wait::until_true("the failure to be reported", || watched.monitor.stderr().contains("the memory hook"));
    assert_eq!(watched.monitor.stderr().matches("the memory hook").count(), 1, "{}", watched.monitor.stderr());
}

#[test]
fn step_is_warned_on_its_stderr() {
    let client = require!(host::agent_python());
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", LIMIT_MIB);
    let launch = LaunchMethod::direct().cgroup(&limited);
    let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
    let (_runner, agent) = with_agent(&client, app().prefix(&links));
    let run = agent.exec(&format!("sleep 1; {VICTIM} grow {}; echo code $?", FIFTH_EACH_SECOND.join(" ")));
    let text = run.stderr();
    let warning = text.find("memory is running out: ").unwrap_or_else(|| panic!("no warning: {text}"));
    let report = text.find("Out-of-memory detected!").unwrap_or_else(|| panic!("no report: {text}"));
    assert!(warning < report, "{text}");
    assert_eq!(text.matches("memory is running out").count(), 1, "{text}");
    assert!(text.contains("growth: 128m  ") && text.contains("\nneeded: "), "{text}");
    eprintln!("{text}");
}
