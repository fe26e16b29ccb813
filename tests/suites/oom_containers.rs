//! The same OOM kills in real containers with different restrictions: the tracer that results, the stated reason, and
//! the reports.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::container::{self, KRUNNER};
use krunner_tests::{Monitor, proc, require};
use serde_json::Value;

use crate::contained::{Contained, assert_names_own_processes_only, plain, with_bpf};
use crate::oom::OWN_MIB;
use crate::oom_privilege::{capable, threads_without_any};

/// The user of the agent's images.
const WORK: u32 = 1000;

const HEADLINE: &str = "Out-of-memory detected!";
const GUESS: &str = "detected potentially oom-killed process:";
const NOTHING_FOUND: &str = "failed to get the information of oom-killed processes";

/// Runs the kills without BPF, for this reason. Processes that lived for a while are named. One that lives for 20 ms is seen only if
/// a scan happens just then, and a process that exits right after it may be mistaken for it. Such a kill may be reported
/// only as a count. `cargo xtask oom-matrix` scores how many of them are named.
#[track_caller]
fn infers(mut session: Contained, check: &str, reason: &str) {
    const INNOCENTS_AT_MOST: usize = 1;
    session.assert_snapshot(check, reason);
    session.run_scenarios();
    session.until_accounted();
    let fleeting = session.victims.len();
    session.kill_seen();
    let told = session.told("snapshot", "inferred");
    let victims: BTreeSet<u32> = session.victims.iter().copied().collect();
    let right = told.intersection(&victims).count();
    println!("{check}: of {} kills {right} named, and {} innocents", victims.len(), told.len() - right);
    let innocents: Vec<&u32> = told.difference(&victims).collect();
    assert!(innocents.len() <= INNOCENTS_AT_MOST, "{innocents:?} were not OOM-killed; {victims:?} were");
    let missed: Vec<&u32> = session.victims[fleeting..].iter().filter(|pid| !told.contains(pid)).collect();
    assert!(missed.is_empty(), "{missed:?} were there for long enough; named: {told:?}; true: {victims:?}");
}

/// Runs the kills with BPF.
#[track_caller]
fn traces(mut session: Contained) {
    session.assert_bpf();
    session.run_scenarios();
    session.assert_reported("bpf", "confirmed");
}

#[test]
fn plain_container() {
    let session = require!(Contained::start(&plain()));
    infers(session, "capabilities", "CAP_BPF and CAP_PERFMON are required; held: none");
}

#[test]
fn bpf_and_perfmon_without_tracefs() {
    let mut session = require!(Contained::start(&with_bpf()));
    let mounts = session.run("cat /proc/mounts");
    assert!(mounts.contains(" /sys sysfs ") && !mounts.contains("tracefs"), "{mounts}");
    traces(session);
}

#[test]
fn bpf_and_perfmon_with_tracefs() {
    let mut session = require!(Contained::start(&with_bpf().tracefs()));
    let mounts = session.run("cat /proc/mounts");
    assert!(mounts.contains(" /sys/kernel/tracing tracefs "), "{mounts}");
    traces(session);
}

#[test]
fn sys_admin_alone() {
    traces(require!(Contained::start(&plain().capabilities(&["CAP_SYS_ADMIN"]))));
}

#[test]
fn bpf_where_cgroups_are_hidden() {
    traces(require!(Contained::start(&with_bpf().mask("/sys/fs/cgroup"))));
}

#[test]
fn btf_is_hidden() {
    let session = require!(Contained::start(&with_bpf().mask("/sys/kernel/btf")));
    infers(session, "kernel-btf", "cannot read the kernel's BTF from /sys/kernel/btf/vmlinux: No such file");
}

#[test]
fn seccomp_refuses_bpf() {
    let session = require!(Contained::start(&with_bpf().refuse("bpf", libc::EPERM)));
    infers(session, "bpf-call", "blocked by seccomp (capabilities are sufficient)");
}

#[test]
fn seccomp_denies_that_there_is_bpf() {
    let session = require!(Contained::start(&with_bpf().refuse("bpf", libc::ENOSYS)));
    infers(session, "bpf-call", "or blocked by seccomp (remedy: allow bpf in the container's seccomp profile)");
}

#[test]
fn user_namespace() {
    let session = require!(Contained::start(&with_bpf().user_namespace()));
    infers(session, "user-namespace", "BPF requires capabilities in the host's user namespace");
}

#[test]
fn user_without_rights() {
    let session = require!(Contained::start(&plain().user(WORK)));
    infers(session, "capabilities", "start the container with --cap-add BPF --cap-add PERFMON, and `setcap");
}

#[test]
fn user_with_file_capabilities() {
    let capable = require!(capable());
    let session = require!(Contained::start(&with_bpf().user(WORK).krunner(&capable.program)));
    session.until_it_watches();
    let pid = session.container.pid();
    assert!(threads_without_any(pid), "what the file gave is dropped once BPF is attached");
    traces(session);
}

#[test]
fn file_capabilities_without_new_privileges() {
    let capable = require!(capable());
    let spec = with_bpf().user(WORK).krunner(&capable.program).no_new_privileges();
    let mut session = require!(Contained::start(&spec));
    session.assert_snapshot("capabilities", "run krunner as root: no_new_privs disables file capabilities");
}

#[test]
fn cgroup_namespace() {
    let mut session = require!(Contained::start(&with_bpf().cgroup_namespace()));
    session.assert_bpf();
    session.kill_holder();
    session.until_report_of(session.victims[0]);
    let reports = session.reports();
    let limit_bytes = OWN_MIB << 20;
    assert_eq!(
        (&reports[0]["cgroup"]["path"], &reports[0]["cgroup"]["limit_bytes"]),
        (&"/".into(), &limit_bytes.into())
    );
}

/// `krunner monitor`, started in the container from outside, reports the same as the session.
#[track_caller]
fn monitors(mut session: Contained, tracer: &str, confidence: &str) {
    session.until_it_watches();
    let mut monitor = Monitor::start_program(&session.container.launch(), Path::new(KRUNNER), &[]);
    let watching = monitor.watching().clone();
    assert_eq!((&watching["tracer"], &watching["scope"]), (&tracer.into(), &"pid-namespace".into()), "{watching}");
    assert_eq!(watching["why_not_bpf"].is_null(), tracer == "bpf", "{watching}");

    session.kill_holder();

    for victim in &session.victims {
        monitor.until_report_of(*victim);
        session.until_report_of(*victim);
    }
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    let (told, reports) = (monitor.reports(), session.reports());
    assert_eq!((told.len(), reports.len()), (session.victims.len(), session.victims.len()), "{:#?}", monitor.lines());
    for (told, report) in told.into_iter().zip(&reports) {
        assert_eq!(
            (&told["confidence"], &told["victim"]["cmdline"]),
            (&confidence.into(), &report["victim"]["cmdline"])
        );
        assert_names_own_processes_only(told);
    }
}

#[test]
fn monitor_with_bpf() {
    monitors(require!(Contained::start(&with_bpf())), "bpf", "confirmed");
}

#[test]
fn monitor_without_bpf() {
    monitors(require!(Contained::start(&plain())), "snapshot", "inferred");
}

/// Where kills cannot be counted, nothing is reported until the agent says that there was one. The report is then marked
/// as a guess.
#[track_caller]
fn guesses(session: Contained) {
    let _ = guesses_after(session, "CAP_BPF and CAP_PERFMON are required", || {});
}

/// The same after this has happened. Returns the session's log.
#[track_caller]
pub(crate) fn guesses_after(mut session: Contained, reason: &str, meanwhile: impl FnOnce()) -> String {
    session.assert_snapshot("capabilities", reason);
    // Large for long enough that a regular scan sees it, when another process allocates more.
    session.kill_holder();
    meanwhile();
    assert_eq!(session.reports(), Vec::<Value>::new(), "nothing is reported yet");

    session.raw.op("event", r#"{"type": "oom", "data": {}}"#);

    let victim = session.victims[0];
    session.until_report_of(victim);
    session.runner.wait_for_log(&[GUESS]);
    let reports = session.reports();
    assert_eq!(reports[0]["victim"]["pid"], victim, "the largest comes first: {reports:#?}");
    for report in &reports {
        assert_eq!((&report["tracer"], &report["confidence"]), (&"snapshot".into(), &"possible".into()), "{report}");
        assert_names_own_processes_only(report);
    }
    let text = session.runner.stderr();
    assert!(text.contains(HEADLINE) && !text.contains(NOTHING_FOUND), "{text}");
    text
}

#[test]
fn cgroups_are_masked() {
    guesses(require!(Contained::start(&plain().mask("/sys/fs/cgroup"))));
}

#[test]
fn cgroups_are_not_mounted() {
    guesses(require!(Contained::start(&plain().no_cgroups())));
}

#[test]
fn counter_is_masked() {
    require!(container::available());
    let cgroup = require!(Cgroup::for_container());
    let path = match cgroup.version() {
        Version::One => "/sys/fs/cgroup/memory/memory.oom_control",
        Version::Two => "/sys/fs/cgroup/memory.events",
    };
    guesses(Contained::start_in(&plain().mask(path), cgroup));
}

#[test]
fn a_container_leaves_nothing_behind() {
    let session = require!(Contained::start(&plain()));
    let (pid, cgroup) = (session.container.pid(), session.container.cgroup().path().to_owned());
    let name = cgroup.file_name().expect("a name").to_owned();
    assert!(proc::is_alive(pid) && cgroup.is_dir());
    let hierarchies: Vec<_> = fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().collect();
    let left = || hierarchies.iter().map(|entry| entry.path().join(&name)).filter(|path| path.exists()).count();
    assert!(left() > 0 || !cgroup.starts_with("/sys/fs/cgroup/memory"), "runc has made one in each");

    drop(session);

    assert!(!proc::is_alive(pid) && !cgroup.exists());
    assert_eq!(left(), 0, "in other hierarchies");
}
