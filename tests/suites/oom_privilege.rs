//! The monitor's privileges: which it keeps, that children inherit none, and how it runs without them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Monitor, Raw, Sandbox, Scenario, Setup, binary, host, proc, require, wait};
use serde_json::Value;
use tempfile::TempDir;

use crate::app;
use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};

const NOBODY: u32 = 65_534;

/// The five sets of capabilities in a status file.
fn capabilities(status: &str) -> BTreeMap<String, String> {
    let pairs = status.lines().filter_map(|line| line.split_once(":\t"));
    pairs.filter(|(field, _)| field.starts_with("Cap")).map(|(field, set)| (field.into(), set.into())).collect()
}

fn own_capabilities() -> BTreeMap<String, String> {
    capabilities(&fs::read_to_string("/proc/thread-self/status").expect("our own status"))
}

/// No capability in any set but the bounding set, which grants nothing.
fn is_none(sets: &BTreeMap<String, String>) -> bool {
    ["CapInh", "CapPrm", "CapEff", "CapAmb"].iter().all(|field| sets[*field].bytes().all(|digit| digit == b'0'))
}

#[track_caller]
fn assert_none(sets: &BTreeMap<String, String>) {
    assert!(is_none(sets), "{sets:?}");
}

/// Whether the process is there and none of its threads has any capability.
pub(crate) fn threads_without_any(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).ok();
    let sets: Vec<_> = threads.flatten().filter_map(status).map(|status| capabilities(&status)).collect();
    !sets.is_empty() && sets.iter().all(is_none)
}

/// The binary with file capabilities, in a world-accessible folder.
pub(crate) struct Capable {
    _folder: TempDir,
    pub(crate) program: PathBuf,
}

/// As the documentation says to grant them.
const CAPABILITIES: &str = "cap_bpf,cap_perfmon+p";

pub(crate) fn capable() -> Result<Capable, String> {
    host::root()?;
    host::util_linux()?;
    let setcap = host::program("setcap")?;
    let folder = TempDir::with_prefix("krc-").map_err(|error| error.to_string())?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    let program = folder.path().join("krunner");
    fs::copy(binary(), &program).map_err(|error| error.to_string())?;
    let output = Command::new(setcap).arg(CAPABILITIES).arg(&program).output();
    match output {
        Ok(output) if output.status.success() => Ok(Capable { _folder: folder, program }),
        Ok(output) => Err(format!("setcap: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("setcap: {error}")),
    }
}

/// The child's capability sets and the targets of its file descriptors.
fn child_of(setup: Setup) -> (BTreeMap<String, String>, String) {
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    wait::until_true("BPF is attached", || proc::has_bpf(runner.pid()));
    let status = raw.exec("cat /proc/self/status").stdout();
    let links = raw.exec("ls -l /proc/self/fd").stdout();
    (capabilities(&status), links)
}

#[test]
fn children_of_a_root_session_keep_its_capabilities_and_get_no_bpf() {
    require!(host::root());
    let (sets, links) = child_of(app());
    assert_eq!(sets, own_capabilities());
    assert_eq!(sets.len(), 5, "{sets:?}");
    assert!(!links.contains("bpf") && links.contains("/dev/null"), "{links}");
}

#[test]
fn runner_with_file_capabilities_drops_them_once_attached() {
    let capable = require!(capable());
    let runner = app().program(&capable.program).user(NOBODY).start();
    let mut raw = Raw::connect(&runner);
    wait::until_true("BPF is attached", || proc::has_bpf(runner.pid()));

    // While it loads it has them; children have none at any time.
    let sets = capabilities(&raw.exec("cat /proc/self/status").stdout());
    assert_none(&sets);
    wait::until_true("all threads have dropped all capabilities", || threads_without_any(runner.pid()));

    let sets = capabilities(&raw.exec("cat /proc/self/status").stdout());
    assert_none(&sets);
    let links = raw.exec("ls -l /proc/self/fd").stdout();
    assert!(!links.contains("bpf") && links.contains("/dev/null"), "{links}");
    assert!(proc::has_bpf(runner.pid()), "it is attached still");

    // The runner's own files in /proc are root's, and a child of it can change its rank all the same.
    assert!(proc::oom_score_adj(runner.pid()) < own_oom_score_adj(&mut raw));
}

/// Before Linux 6.4 only `/proc/self/auxv` has what prctl(2) gives since, and it is root's where a file has capabilities.
#[test]
fn runner_with_file_capabilities_needs_no_auxv_of_proc() {
    let capable = require!(capable());
    let setup = app();
    let root = setup.root();
    let open = format!("chmod a+rx {root}/..; chown -R {NOBODY} {root}; exec \"$@\"", root = root.display());
    let launch = LaunchMethod::direct().then(["sh", "-c", &open, "sh"]).then([VICTIM, "no-auxv"]).user(NOBODY);
    let runner = setup.program(&capable.program).prefix_first(&launch).start();
    let run = Raw::connect(&runner).exec("echo hi");
    assert_eq!((run.stdout().as_str(), run.codes()), ("hi\n", vec![("finished", 0)]), "{}", runner.stderr());
}

#[test]
fn runner_with_file_capabilities_names_a_program_that_is_missing() {
    let capable = require!(capable());
    let setup = Setup::new("php").runtime("/nonexistent/php").file("home/work/main.php", "");
    let runner = setup.program(&capable.program).user(NOBODY).start();
    let run = Raw::connect(&runner).exec("*");
    assert_eq!(run.codes(), [("finished", 127)], "{run:?}");
    runner.wait_for_log(&["/nonexistent/php not found"]);
}

fn own_oom_score_adj(raw: &mut Raw) -> i32 {
    raw.exec("cat /proc/self/oom_score_adj").stdout().trim().parse().expect("a number")
}

#[test]
fn monitor_with_file_capabilities_is_as_precise_and_has_none_left() {
    let capable = require!(capable());
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", LIMIT_MIB);
    let mut monitor =
        Monitor::start_program(&LaunchMethod::direct().cgroup(&scratch).user(NOBODY), &capable.program, &[]);
    assert_eq!(monitor.watching()["tracer"], "bpf", "{}", monitor.watching());
    assert!(threads_without_any(monitor.process()), "once it watches it has none");

    let pid = killed_in(&LaunchMethod::direct().cgroup(&limited).user(NOBODY));

    monitor.until_report_of(pid);
    let report = monitor.reports()[0].clone();
    assert_eq!(report["confidence"], "confirmed");
    assert_eq!(report["victim"]["uid"], NOBODY);
    assert!(report["victim"]["cmdline"].as_str().is_some_and(|cmdline| cmdline.ends_with(" eat 96")), "{report}");
    assert_eq!(monitor.end().code(), Some(0));
    assert_eq!(monitor.reports().len(), 1);
}

#[test]
fn file_capabilities_are_no_way_to_see_other_peoples_processes() {
    let capable = require!(capable());
    let launch = LaunchMethod::direct().user(NOBODY);
    let output =
        launch.command(&capable.program).args(["monitor", "--all-namespaces"]).output().expect("krunner starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// Without BPF only the kills of a cgroup are counted.
#[test]
fn whole_machine_is_not_watched_by_halves() {
    require!(host::root().and_then(|()| host::util_linux()));
    let launch = LaunchMethod::direct().user(NOBODY);
    let output = launch.command(binary()).args(["monitor", "--all-namespaces"]).output().expect("krunner starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let reason = "--all-namespaces requires eBPF, which is unavailable: bpf(2) failed";
    assert_eq!((output.status.code(), said.contains(reason)), (Some(1), true), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// Causes an OOM kill there.
#[track_caller]
fn killed_in(launch: &LaunchMethod) -> u32 {
    let mut command = launch.command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let told = Scenario::start(command).end();
    assert_eq!(told.status.signal(), Some(9), "{told:?}");
    told.pid("victim")
}

/// Starts a monitor in an unusual way and causes a kill. Returns its first line and what it reports of the
/// kill within the time that one more of its snapshots takes.
#[track_caller]
fn told_with(scratch: &Cgroup, launch: &LaunchMethod) -> (Value, Vec<Value>, u32) {
    let limited = scratch.limited("limited", LIMIT_MIB);
    let mut monitor = Monitor::start(launch);
    let watching = monitor.watching().clone();
    let pid = killed_in(&LaunchMethod::direct().cgroup(&limited));
    if watching["tracer"] == "bpf" {
        monitor.until_report_of(pid);
    }
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    let stderr = monitor.stderr();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let reports: Vec<_> = monitor.reports().into_iter().cloned().collect();
    (watching, reports, pid)
}

/// Without BPF the monitor states this reason, and reports no more of the kill than it can know.
#[track_caller]
fn assert_snapshot(launch: impl FnOnce(LaunchMethod) -> LaunchMethod, reason: &[&str]) {
    let scratch = match host::util_linux().and_then(|()| Cgroup::scratch()) {
        Ok(scratch) => scratch,
        Err(error) => return host::skip("suites::oom_privilege::assert_snapshot::here", &error),
    };
    let (watching, reports, pid) = told_with(&scratch, &launch(LaunchMethod::direct().cgroup(&scratch)));
    assert_eq!(watching["tracer"], "snapshot", "{watching}");
    let why = watching["why_not_bpf"].as_str().unwrap_or_default().to_lowercase();
    assert!(reason.iter().any(|word| why.contains(word)), "{watching}");
    assert!(!why.contains('\n'), "one line: {why}");
    for report in reports {
        assert!(report["confidence"] == "inferred" || report["confidence"] == "possible", "{report}");
        assert_eq!(report["tracer"], "snapshot");
        assert_eq!(report["victim"]["pid"], pid, "no other process was killed: {report}");
    }
}

#[track_caller]
fn assert_bpf(launch: impl FnOnce(LaunchMethod) -> LaunchMethod) {
    let scratch = match host::util_linux().and_then(|()| Cgroup::scratch()) {
        Ok(scratch) => scratch,
        Err(error) => return host::skip("suites::oom_privilege::assert_bpf::here", &error),
    };
    let (watching, reports, pid) = told_with(&scratch, &launch(LaunchMethod::direct().cgroup(&scratch)));
    assert_eq!((&watching["tracer"], &watching["why_not_bpf"]), (&"bpf".into(), &Value::Null));
    let [report] = &reports[..] else { panic!("one report: {reports:#?}") };
    assert_eq!((&report["victim"]["pid"], &report["confidence"]), (&pid.into(), &"confirmed".into()));
}

const NO_TRACEFS: &str = "for at in /sys/kernel/tracing /sys/kernel/debug; do
    while mountpoint --quiet $at; do umount --lazy $at; done
done";

#[test]
fn no_tracefs() {
    assert_bpf(|launch| launch.mounts(NO_TRACEFS));
}

#[test]
fn with_tracefs() {
    // Where it is mounted already (a session of perf does it), it cannot be mounted twice.
    let mounts = format!("{NO_TRACEFS}; mount -t tracefs tracefs /sys/kernel/tracing");
    assert_bpf(|launch| launch.mounts(&mounts));
}

#[test]
fn no_capabilities() {
    assert_snapshot(|launch| launch.user(NOBODY), &["cap_bpf", "capabilit", "not permitted"]);
}

#[test]
fn capabilities_but_no_btf() {
    assert_snapshot(|launch| launch.mounts("mount --bind /dev/null /sys/kernel/btf/vmlinux"), &["btf"]);
}

#[test]
fn capabilities_but_an_empty_btf() {
    let mounts = "mount -t tmpfs tmpfs /sys/kernel/btf; : > /sys/kernel/btf/vmlinux";
    assert_snapshot(|launch| launch.mounts(mounts), &["btf"]);
}

#[test]
fn capabilities_but_no_btf_at_all() {
    assert_snapshot(|launch| launch.mounts("mount -t tmpfs tmpfs /sys/kernel/btf"), &["btf"]);
}

#[test]
fn capabilities_but_a_garbled_btf() {
    let mounts = "mount -t tmpfs tmpfs /sys/kernel/btf; head -c 300000 /dev/urandom > /sys/kernel/btf/vmlinux";
    assert_snapshot(|launch| launch.mounts(mounts), &["btf"]);
}

#[test]
fn bpf_blocked_by_seccomp() {
    assert_snapshot(|launch| launch.then([VICTIM, "no-bpf"]), &["seccomp", "not permitted", "forbid", "block"]);
}

#[test]
fn proc_with_hidepid_as_root() {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let sandbox = Sandbox::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let hide = "mount -o remount,hidepid=2 /proc";
    let mut monitor = Monitor::start(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&scratch).mounts(hide));
    require!(monitor.needs_bpf());
    let pid = killed_in(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&limited));
    monitor.until_report_of(pid);
    assert_eq!(monitor.end().code(), Some(0));
}

#[test]
fn proc_with_hidepid_as_nobody() {
    let scratch = require!(host::util_linux().and_then(|()| Cgroup::scratch()));
    let sandbox = Sandbox::new();
    let hide = "mount -o remount,hidepid=2 /proc";
    let mut monitor =
        Monitor::start(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&scratch).mounts(hide).user(NOBODY));
    assert_eq!(monitor.watching()["tracer"], "snapshot");
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    assert_eq!(monitor.reports().len(), 0, "{:#?}", monitor.lines());
}

#[test]
fn proc_with_hidepid_and_file_capabilities() {
    let capable = require!(capable());
    let scratch = require!(Cgroup::scratch());
    let sandbox = Sandbox::new();
    let limited = scratch.limited("limited", LIMIT_MIB);
    let hide = "mount -o remount,hidepid=2 /proc";
    let launch = LaunchMethod::direct().sandbox(&sandbox).cgroup(&scratch).mounts(hide).user(NOBODY);
    let mut monitor = Monitor::start_program(&launch, &capable.program, &[]);
    assert_eq!(monitor.watching()["tracer"], "bpf", "{}", monitor.watching());
    // Another user's process, of which /proc shows nothing: BPF has seen it.
    let pid = killed_in(&LaunchMethod::direct().sandbox(&sandbox).cgroup(&limited));
    monitor.until_report_of(pid);
    assert_eq!(monitor.reports()[0]["confidence"], "confirmed");
    assert_eq!(monitor.end().code(), Some(0));
}
