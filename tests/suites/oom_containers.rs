//! The same battery in real containers, each with another handicap: a session as its first process, kills by the
//! container's own limit, and what `krunner doctor` says in there.
//!
//! The truth is the kernel's counter, read from outside, and what the processes themselves have told of who is who. A
//! sentinel, one more kill, shows that nothing more was told of what came before.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::container::{self, Container, HELPER, KRUNNER, Spec};
use krunner_tests::{Raw, Runner, Scene, host, proc, require, wait};
use serde_json::Value;

use crate::app;
use crate::oom::{OWN_MIB, TOO_MUCH, VICTIM};

/// What BPF needs.
const FOR_BPF: [&str; 2] = ["CAP_BPF", "CAP_PERFMON"];

/// The user of the agent's images.
const WORK: u32 = 1000;

const HEADLINE: &str = "Out-of-memory detected!";
const GUESS: &str = "detected potentially oom-killed process:";
const NOTHING_FOUND: &str = "failed to get the information of oom-killed processes";

/// In the command line of other people's processes.
const STRANGER: &str = "tenant-b";

/// How many in a row.
const BURST: usize = 5;

fn plain() -> Spec {
    Spec::plain(OWN_MIB).helper(VICTIM)
}

fn with_bpf() -> Spec {
    plain().capabilities(&FOR_BPF)
}

/// A session in a container. They end in this order.
struct Contained {
    raw: Raw,
    runner: Runner,
    container: Container,
    /// Victims so far, as the container numbers them.
    victims: Vec<u32>,
}

impl Contained {
    fn start(spec: &Spec) -> Result<Self, String> {
        container::available()?;
        Ok(Self::start_in(spec, Cgroup::for_container()?))
    }

    /// Waits until it is known by which means.
    #[track_caller]
    fn until_it_watches(&self) {
        let pid = self.container.pid();
        wait::until_true("the session to watch for kills", || {
            let is_loading = proc::threads(pid).iter().any(|thread| thread == "oom-loader");
            !is_loading && (proc::has_bpf(pid) || self.runner.stderr().contains("kills for memory are inferred"))
        });
    }

    #[track_caller]
    fn start_in(spec: &Spec, cgroup: Cgroup) -> Self {
        let (runner, container) = app().folder("home/work/.logs").start_in(spec, cgroup);
        Self { raw: Raw::connect(&runner), runner, container, victims: Vec::new() }
    }

    /// Runs a command in the session; its stdout.
    #[track_caller]
    fn run(&mut self, line: &str) -> String {
        self.raw.exec(line).stdout()
    }

    /// Runs a scene in which so many are killed.
    #[track_caller]
    fn kill(&mut self, scene: &str, kills: usize) {
        let before = self.container.cgroup().oom_kills();
        let told = self.run(&format!("{HELPER} {scene}; echo code $?"));
        let killed = all(&told, "killed");
        // A scene without children is the victim itself.
        let victims = if killed.is_empty() && told.contains("code 137") { all(&told, "victim") } else { killed };
        assert_eq!(victims.len(), kills, "{scene}: {told}");
        let counted = self.container.cgroup().oom_kills() - before;
        assert_eq!(counted, kills as u64, "{scene}: what the kernel counts; {told}");
        self.victims.extend(victims);
    }

    /// Has one killed that has been large for a while.
    #[track_caller]
    fn kill_holder(&mut self) {
        let before = self.container.cgroup().oom_kills();
        let holder = format!("sleep 2 | {HELPER} eat 40 --hold --role big & sleep 1");
        let told = self.run(&format!("{holder}; {HELPER} eat 36 --role trigger; echo code $?; wait"));
        assert!(told.contains("code 0"), "{told}");
        assert_eq!(self.container.cgroup().oom_kills(), before + 1, "{told}");
        self.victims.extend(all(&told, "big"));
    }

    /// What the session has told of kills so far.
    fn reports(&self) -> Vec<Value> {
        let text = self.runner.read(".logs/oom.jsonl").unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[track_caller]
    fn until_report_of(&self, pid: u32) {
        wait::until(&format!("the report of {pid}"), || {
            self.reports().iter().any(|report| report["victim"]["pid"] == pid).then_some(())
        });
    }

    /// All that can happen in a container, once.
    #[track_caller]
    fn play_battery(&mut self) {
        self.kill(&format!("eat {TOO_MUCH}"), 1);
        self.kill(&format!("eat {TOO_MUCH} --after-ms 40"), 1);
        self.kill(&format!("bystanders 8 {TOO_MUCH}"), 1);
        let told = self.run("sleep 600 & kill -9 $!; wait $!; echo code $?");
        assert_eq!(told, "code 137\n");
        self.kill(&format!("row {BURST} {TOO_MUCH} /dev/null"), BURST);
    }

    /// Every victim was told of, once, this sure, and nobody else.
    #[track_caller]
    fn assert_told(&mut self, tracer: &str, confidence: &str) {
        let told = self.told(tracer, confidence);
        let victims: BTreeSet<u32> = self.victims.iter().copied().collect();
        assert_eq!(told, victims, "(left: told; right: true)");
    }

    /// Whom it has told of, each once and this sure, when all that can be told has been.
    #[track_caller]
    fn told(&mut self, tracer: &str, confidence: &str) -> BTreeSet<u32> {
        self.kill_holder();
        self.until_report_of(*self.victims.last().expect("the sentinel"));
        let reports = self.reports();
        for report in &reports {
            assert_eq!((&report["tracer"], &report["confidence"]), (&tracer.into(), &confidence.into()), "{report}");
            assert_names_own_processes_only(report);
        }
        let pid = |report: &Value| report["victim"]["pid"].as_u64().and_then(|pid| pid.try_into().ok());
        let told: BTreeSet<u32> = reports.iter().map(|report| pid(report).expect("a pid")).collect();
        assert_eq!(told.len(), reports.len(), "nobody twice: {reports:#?}");
        assert!(told.len() <= self.victims.len(), "no more than the kernel has counted: {reports:#?}");
        told
    }

    fn doctor(&mut self) -> Value {
        let told = self.run(&format!("{KRUNNER} doctor --json"));
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error} in {told:?}"))
    }

    /// BPF is at work, and nothing of it is handed on.
    #[track_caller]
    fn assert_bpf(&mut self) {
        self.until_it_watches();
        assert!(proc::has_bpf(self.container.pid()), "{}", self.runner.stderr());
        let told = self.doctor();
        assert_eq!((&told["tracer"], missing(&told)), (&"bpf".into(), vec![]), "{told}");
        self.assert_children_have_what_the_container_has();
    }

    /// No BPF for this reason: the doctor's check of that name, and the words of the session's log line.
    #[track_caller]
    fn assert_snapshot(&mut self, check: &str, reason: &str) {
        self.runner.wait_for_log(&["kills for memory are inferred from snapshots, not traced", reason]);
        let told = self.doctor();
        assert_eq!((&told["tracer"], missing(&told)), (&"snapshot".into(), vec![check]), "{told}");
        assert!(!proc::has_bpf(self.container.pid()));
        self.assert_children_have_what_the_container_has();
    }

    /// As a process that krunner has no part in.
    #[track_caller]
    fn assert_children_have_what_the_container_has(&mut self) {
        let output = self.container.way().command("cat").arg("/proc/self/status").output().expect("runc starts");
        let beside = String::from_utf8(output.stdout).expect("text");
        let child = self.run("cat /proc/self/status");
        let (child, beside) = (rights(&child), rights(&beside));
        assert_eq!(child, beside, "(left: the session's child)");
        assert_eq!(child.len(), 7, "{child:?}");
        let links = self.run("ls -l /proc/self/fd");
        assert!(!links.contains("bpf") && links.contains("/dev/null"), "{links}");
    }
}

/// Command lines inside begin with one of these, whatever runs outside.
#[track_caller]
fn assert_names_own_processes_only(report: &Value) {
    const OWN: [&str; 7] = [KRUNNER, HELPER, "sh", "sleep", "ls", "cat", "runc"];
    let process = [&report["victim"]].into_iter();
    let list = |name: &str| report[name].as_array().expect("a list");
    for process in process.chain(list("ancestors")).chain(list("largest")) {
        let cmdline = process["cmdline"].as_str().expect("a text");
        let program = cmdline.split_once(' ').map_or(cmdline, |(program, _)| program);
        // The runner gives itself a name. Of one that is on its way out only its own is left.
        let is_own = OWN.contains(&program.trim_start_matches("/bin/"))
            || cmdline.starts_with("backend.ai: ")
            || cmdline.is_empty();
        assert!(is_own, "{cmdline:?} in {report}");
    }
}

/// The pids of which a scene has told this.
fn all(told: &str, what: &str) -> Vec<u32> {
    let pairs = told.lines().filter_map(|line| line.split_once(' '));
    pairs.filter(|(told, _)| *told == what).map(|(_, pid)| pid.parse().expect("a pid")).collect()
}

/// Names of the checks that rule BPF out.
fn missing(diagnosis: &Value) -> Vec<&str> {
    let checks = diagnosis["checks"].as_array().expect("checks");
    checks.iter().filter(|check| check["state"] == "missing").filter_map(|check| check["check"].as_str()).collect()
}

/// What a status file has of capabilities and of what curbs them.
fn rights(status: &str) -> BTreeMap<String, String> {
    let pairs = status.lines().filter_map(|line| line.split_once(":\t"));
    let is_right = |field: &str| field.starts_with("Cap") || field == "Seccomp" || field == "NoNewPrivs";
    pairs.filter(|(field, _)| is_right(field)).map(|(field, value)| (field.into(), value.into())).collect()
}

/// The battery without BPF, for this reason. One that lives for 20 ms is seen only if the machine has time for a look, and
/// who ends right after it may be taken for it: a part, told on stdout. Where victims live longer, all has to be right
/// ([`keep_apart`]).
#[track_caller]
fn infers(mut session: Contained, check: &str, reason: &str) {
    session.assert_snapshot(check, reason);
    session.play_battery();
    let told = session.told("snapshot", "inferred");
    let victims: BTreeSet<u32> = session.victims.iter().copied().collect();
    let right = told.intersection(&victims).count();
    println!("{check}: of {} kills {right} named, and {} innocents", victims.len(), told.len() - right);
    let innocents: Vec<&u32> = told.difference(&victims).collect();
    assert!(innocents.len() * 3 <= victims.len(), "{innocents:?} were not killed for memory; {victims:?} were");
    assert!(right * 2 > victims.len(), "named: {told:?}; true: {victims:?}");
}

/// The battery with BPF.
#[track_caller]
fn traces(mut session: Contained) {
    session.assert_bpf();
    session.play_battery();
    session.assert_told("bpf", "confirmed");
}

#[test]
fn plain_container() {
    let session = require!(Contained::start(&plain()));
    infers(session, "capabilities", "CAP_BPF and CAP_PERFMON are needed, held: none");
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
    infers(session, "bpf-call", "refused by the seccomp filter, for the capabilities are there");
}

#[test]
fn seccomp_denies_that_there_is_bpf() {
    let session = require!(Contained::start(&with_bpf().refuse("bpf", libc::ENOSYS)));
    infers(session, "bpf-call", "a seccomp filter says so (remedy: allow bpf in the container's seccomp profile)");
}

#[test]
fn user_namespace() {
    let session = require!(Contained::start(&with_bpf().user_namespace()));
    infers(session, "user-namespace", "whose capabilities do not count for BPF");
}

#[test]
fn user_without_rights() {
    let session = require!(Contained::start(&plain().user(WORK)));
    infers(session, "capabilities", "start the container with --cap-add BPF --cap-add PERFMON, and `setcap");
}

/// Where kills cannot be counted, nothing is told until the agent says that there was one, and then who may have been it,
/// as what it is: a guess.
#[track_caller]
fn guesses(session: Contained) {
    guesses_after(session, "CAP_BPF and CAP_PERFMON are needed", || {});
}

/// The same, when this has happened meanwhile.
#[track_caller]
fn guesses_after(mut session: Contained, reason: &str, meanwhile: impl FnOnce()) {
    session.assert_snapshot("capabilities", reason);
    // Large for long enough to be seen by a look that nothing hurries, when another one asks for more.
    session.kill_holder();
    meanwhile();
    assert_eq!(session.reports(), Vec::<Value>::new(), "nobody knows yet");

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
    assert!(!text.contains(STRANGER), "{text}");
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

/// Two tenants at once: each session is told of its own kill, and of nothing that is the other's.
#[track_caller]
fn keep_apart(spec: &Spec, confidence: &str) {
    const TENANTS: [&str; 2] = ["tenant-a", STRANGER];
    let first = match container::available().and_then(|()| Cgroup::for_container()) {
        Ok(cgroup) => cgroup,
        Err(reason) => return host::skip("suites::oom_containers::keep_apart::here", &reason),
    };
    let second = first.beside().expect("a cgroup beside the first");
    let mut sessions = [first, second].map(|cgroup| Contained::start_in(spec, cgroup));
    for session in &sessions {
        session.until_it_watches();
    }
    for (session, tenant) in sessions.iter_mut().zip(TENANTS) {
        // One that lives on, two that die.
        let hog = format!("{HELPER} eat {TOO_MUCH} --after-ms 300 -- {tenant}");
        session.raw.op("exec", &format!("sh -c 'sleep 600; : {tenant}' & {hog}; {hog}; kill $!"));
    }
    for (session, tenant) in sessions.iter_mut().zip(TENANTS) {
        let told = session.raw.read_runs(1).stdout();
        session.victims = all(&told, "victim");
        assert_eq!((session.victims.len(), session.container.cgroup().oom_kills()), (2, 2), "{tenant}: {told}");
    }
    let tracer = if confidence == "confirmed" { "bpf" } else { "snapshot" };
    for ((session, own), other) in sessions.iter_mut().zip(TENANTS).zip(TENANTS.iter().rev()) {
        session.assert_told(tracer, confidence);
        let told = [session.runner.stderr(), session.runner.read(".logs/oom.jsonl").unwrap_or_default()].concat();
        assert!(told.contains(own) && !told.contains(other), "{own}: {told}");
    }
}

#[test]
fn two_side_by_side_with_bpf() {
    keep_apart(&with_bpf(), "confirmed");
}

#[test]
fn two_side_by_side_without_bpf() {
    keep_apart(&plain(), "inferred");
}

#[test]
fn two_side_by_side_in_the_hosts_pid_namespace_with_bpf() {
    keep_apart(&with_bpf().host_pids(), "confirmed");
}

#[test]
fn two_side_by_side_in_the_hosts_pid_namespace_without_bpf() {
    keep_apart(&plain().host_pids(), "inferred");
}

#[test]
fn hosts_pid_namespace_and_no_cgroups_is_no_way_to_name_others() {
    let session = require!(Contained::start(&plain().host_pids().no_cgroups()));
    // Other people's processes, larger than any in there: one lives on, one ends just before the agent tells of a kill.
    let hoard = || {
        let mut command = Command::new(VICTIM);
        command.args(["eat", "200", "--hold", "--", STRANGER]);
        let scene = Scene::start(command);
        scene.until("ready");
        scene
    };
    let (_stays, goes) = (hoard(), hoard());
    guesses_after(session, "only a memory cgroup tells ours from others", || drop(goes.end()));
}
