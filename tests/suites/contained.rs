//! A session in a real container, OOM kills in it, and checks of its reports.
//!
//! The ground truth is the kernel's counter, read from outside, and the roles that the processes print. A
//! marker, one more kill, shows that no earlier report is missing.

use std::collections::{BTreeMap, BTreeSet};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, Container, HELPER, KRUNNER, Spec};
use krunner_tests::{Raw, Runner, proc, wait};
use serde_json::Value;

use crate::app;
use crate::oom::{OWN_MIB, TOO_MUCH, VICTIM};

/// The capabilities that BPF needs.
const FOR_BPF: [&str; 2] = ["CAP_BPF", "CAP_PERFMON"];

/// The number of consecutive kills.
const BURST: usize = 5;

/// A process that lives this long before it allocates is seen by a regular scan; those are 250 ms apart.
pub(crate) const SEEN_MS: u64 = 600;

/// The number of such processes.
const SEEN: usize = 3;

/// Follows the number of unattributed kills in the log.
const UNATTRIBUTED: &str = " OOM kills could not be attributed to a process";

/// Docker's defaults with the helper program and little memory.
pub(crate) fn plain() -> Spec {
    Spec::plain(OWN_MIB).helper(VICTIM)
}

/// The same with the capabilities that BPF needs.
pub(crate) fn with_bpf() -> Spec {
    plain().capabilities(&FOR_BPF)
}

/// A session in a container. The fields are dropped in this order.
pub(crate) struct Contained {
    pub(crate) raw: Raw,
    pub(crate) runner: Runner,
    pub(crate) container: Container,
    /// Victims so far; PIDs of the container's namespace.
    pub(crate) victims: Vec<u32>,
}

impl Contained {
    /// Starts a session. Fails if this machine cannot run containers.
    pub(crate) fn start(spec: &Spec) -> Result<Self, String> {
        container::available()?;
        Ok(Self::start_in(spec, Cgroup::for_container()?))
    }

    /// Starts a session in this cgroup.
    #[track_caller]
    pub(crate) fn start_in(spec: &Spec, cgroup: Cgroup) -> Self {
        let (runner, container) = app().folder("home/work/.logs").start_in(spec, cgroup);
        Self { raw: Raw::connect(&runner), runner, container, victims: Vec::new() }
    }

    /// Waits until the session has chosen its tracer.
    #[track_caller]
    pub(crate) fn until_it_watches(&self) {
        self.runner.until_it_watches(self.container.pid());
    }

    /// Runs a command in the session and returns its stdout.
    #[track_caller]
    pub(crate) fn run(&mut self, line: &str) -> String {
        self.raw.exec(line).stdout()
    }

    /// Runs a scenario with at least this many kills. There may be more: a victim's memory is not free at once, and a process
    /// that allocates meanwhile is killed as well (`exit_mmap` in mm/mmap.c sets `MMF_OOM_SKIP` before the pages are free).
    #[track_caller]
    pub(crate) fn kill(&mut self, scenario: &str, kills: usize) {
        let before = self.container.cgroup().oom_kills();
        let told = self.run(&format!("{HELPER} {scenario}; echo code $?"));
        let killed = all(&told, "killed");
        // A scenario without children is the victim itself.
        let victims = if killed.is_empty() && told.contains("code 137") { all(&told, "victim") } else { killed };
        assert!(victims.len() >= kills, "{scenario}: {told}");
        let counted = self.container.cgroup().oom_kills() - before;
        assert_eq!(counted, victims.len() as u64, "{scenario}: the kernel's count; {told}");
        self.victims.extend(victims);
    }

    /// Causes the kill of a process that was large for a while. Only this process allocates: if another one did while
    /// the first is dying, the kernel might kill it as well.
    #[track_caller]
    pub(crate) fn kill_holder(&mut self) {
        let before = self.container.cgroup().oom_kills();
        // A second is enough for several regular scans.
        let told = self.run(&format!(
            "rm -f hold; mkfifo hold; {HELPER} eat 40 --hold --then {TOO_MUCH} --role big < hold > told & exec 3> hold
             until grep -q ready told; do sleep 0.05; done; sleep 1
             exec 3>&-; wait $!; echo code $?; cat told"
        ));
        assert!(told.contains("code 137"), "{told}");
        assert_eq!(self.container.cgroup().oom_kills(), before + 1, "{told}");
        self.victims.extend(all(&told, "big"));
    }

    /// Causes kills of processes that started long enough before they allocate for a regular scan to see them.
    #[track_caller]
    pub(crate) fn kill_seen(&mut self) {
        for _ in 0..SEEN {
            self.kill(&format!("eat {TOO_MUCH} --after-ms {SEEN_MS}"), 1);
        }
    }

    /// Kills that were reported only as a count.
    pub(crate) fn unattributed(&self) -> usize {
        let text = self.runner.stderr();
        let counts = text.lines().filter_map(|line| line.strip_suffix(UNATTRIBUTED));
        counts.map(|count| count.parse::<usize>().expect("a number")).sum()
    }

    /// Waits until every kill is reported, by name or as a count.
    #[track_caller]
    pub(crate) fn until_accounted(&self) {
        let of = |kills: usize| format!("{kills} kills to be reported, by name or as a count");
        wait::until_true(&of(self.victims.len()), || self.reports().len() + self.unattributed() >= self.victims.len());
        assert_eq!(self.reports().len() + self.unattributed(), self.victims.len(), "{}", self.runner.stderr());
    }

    /// The session's reports so far.
    pub(crate) fn reports(&self) -> Vec<Value> {
        let text = self.runner.read(".logs/oom.jsonl").unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits until the session has reported this process.
    #[track_caller]
    pub(crate) fn until_report_of(&self, pid: u32) {
        wait::until(&format!("the report of {pid}"), || {
            self.reports().iter().any(|report| report["victim"]["pid"] == pid).then_some(())
        });
    }

    /// Runs every kind of kill in a container once.
    #[track_caller]
    pub(crate) fn run_scenarios(&mut self) {
        self.kill(&format!("eat {TOO_MUCH}"), 1);
        self.kill(&format!("eat {TOO_MUCH} --after-ms 40"), 1);
        self.kill(&format!("bystanders 8 {TOO_MUCH}"), 1);
        let told = self.run("sleep 600 & kill -9 $!; wait $!; echo code $?");
        assert_eq!(told, "code 137\n");
        self.kill(&format!("row {BURST} {TOO_MUCH} /dev/null"), BURST);
    }

    /// Every victim was reported once at this confidence, and no other process.
    #[track_caller]
    pub(crate) fn assert_reported(&mut self, tracer: &str, confidence: &str) {
        let told = self.told(tracer, confidence);
        let victims: BTreeSet<u32> = self.victims.iter().copied().collect();
        assert_eq!(told, victims, "(left: reported; right: killed)");
    }

    /// Only victims were reported; with BPF all of them.
    #[track_caller]
    pub(crate) fn assert_reported_only_victims(&mut self, tracer: &str, confidence: &str) {
        if tracer == "bpf" {
            return self.assert_reported(tracer, confidence);
        }
        let told = self.told(tracer, confidence);
        let victims: BTreeSet<u32> = self.victims.iter().copied().collect();
        assert!(told.is_subset(&victims), "reported: {told:?}; killed: {victims:?}");
    }

    /// The reported processes, each once at this confidence, after the marker's report has arrived.
    #[track_caller]
    pub(crate) fn told(&mut self, tracer: &str, confidence: &str) -> BTreeSet<u32> {
        self.kill_holder();
        self.until_report_of(*self.victims.last().expect("the marker"));
        self.until_accounted();
        let reports = self.reports();
        for report in &reports {
            assert_eq!((&report["tracer"], &report["confidence"]), (&tracer.into(), &confidence.into()), "{report}");
            assert_names_own_processes_only(report);
        }
        let pid = |report: &Value| report["victim"]["pid"].as_u64().and_then(|pid| pid.try_into().ok());
        let told: BTreeSet<u32> = reports.iter().map(|report| pid(report).expect("a pid")).collect();
        assert_eq!(told.len(), reports.len(), "no process is reported twice: {reports:#?}");
        assert!(told.len() <= self.victims.len(), "no more reports than the kernel counted: {reports:#?}");
        told
    }

    /// The output of `krunner doctor` as a child of the session.
    #[track_caller]
    fn doctor(&mut self) -> Value {
        let told = self.run(&format!("{KRUNNER} doctor --json"));
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error} in {told:?}"))
    }

    /// The session uses BPF, and its children inherit nothing of it.
    #[track_caller]
    pub(crate) fn assert_bpf(&mut self) {
        self.until_it_watches();
        assert!(proc::has_bpf(self.container.pid()), "{}", self.runner.stderr());
        let told = self.doctor();
        assert_eq!((&told["tracer"], missing(&told)), (&"bpf".into(), vec![]), "{told}");
        self.assert_children_have_what_the_container_has();
    }

    /// The session does not use BPF, because of this doctor check; its log line has this reason.
    #[track_caller]
    pub(crate) fn assert_snapshot(&mut self, check: &str, reason: &str) {
        self.runner.wait_for_log(&["OOM kills are inferred, not traced", reason]);
        let told = self.doctor();
        assert_eq!((&told["tracer"], missing(&told)), (&"snapshot".into(), vec![check]), "{told}");
        assert!(!proc::has_bpf(self.container.pid()));
        self.assert_children_have_what_the_container_has();
    }

    /// Children have the same privileges as a process that krunner did not start.
    #[track_caller]
    fn assert_children_have_what_the_container_has(&mut self) {
        let output = self.container.launch().command("cat").arg("/proc/self/status").output().expect("runc starts");
        let beside = String::from_utf8(output.stdout).expect("text");
        let child = self.run("cat /proc/self/status");
        let (child, beside) = (rights(&child), rights(&beside));
        assert_eq!(child, beside, "(left: the session's child)");
        assert_eq!(child.len(), 7, "{child:?}");
        let links = self.run("ls -l /proc/self/fd");
        assert!(!links.contains("bpf") && links.contains("/dev/null"), "{links}");
    }
}

/// The report names only programs that run in the container.
#[track_caller]
pub(crate) fn assert_names_own_processes_only(report: &Value) {
    const OWN: [&str; 10] = [KRUNNER, HELPER, "sh", "sleep", "ls", "cat", "grep", "rm", "mkfifo", "runc"];
    let process = [&report["victim"]].into_iter();
    let list = |name: &str| report[name].as_array().expect("a list");
    for process in process.chain(list("ancestors")).chain(list("largest")) {
        let cmdline = process["cmdline"].as_str().expect("a text");
        let program = cmdline.split_once(' ').map_or(cmdline, |(program, _)| program);
        // The runner sets its own process title. An exiting process has no command line.
        let is_own = OWN.contains(&program.trim_start_matches("/bin/"))
            || cmdline.starts_with("backend.ai: ")
            || cmdline.is_empty();
        assert!(is_own, "{cmdline:?} in {report}");
    }
}

/// The PIDs that a scenario printed with this role or event.
pub(crate) fn all(told: &str, what: &str) -> Vec<u32> {
    let pairs = told.lines().filter_map(|line| line.split_once(' '));
    pairs.filter(|(told, _)| *told == what).map(|(_, pid)| pid.parse().expect("a pid")).collect()
}

/// The names of the checks that rule out BPF.
pub(crate) fn missing(diagnosis: &Value) -> Vec<&str> {
    let checks = diagnosis["checks"].as_array().expect("checks");
    checks.iter().filter(|check| check["state"] == "missing").filter_map(|check| check["check"].as_str()).collect()
}

/// The capabilities, seccomp mode and `no_new_privs` in a status file.
fn rights(status: &str) -> BTreeMap<String, String> {
    let pairs = status.lines().filter_map(|line| line.split_once(":\t"));
    let is_right = |field: &str| field.starts_with("Cap") || field == "Seccomp" || field == "NoNewPrivs";
    pairs.filter(|(field, _)| is_right(field)).map(|(field, value)| (field.into(), value.into())).collect()
}
