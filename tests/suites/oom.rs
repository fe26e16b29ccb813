//! Shared by the OOM suites: an environment in which processes are OOM-killed under a monitor, and checks of what
//! it reported.
//!
//! The ground truth does not come from krunner: it is the kernel's counter and the exit statuses that
//! parents observed. To show that a kill was **not** reported, the suites cause one more, the marker: once it is
//! reported, every earlier report has arrived.

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::{LaunchMethod, Monitor, Sandbox, Scenario, ScenarioOutput, host};
use serde_json::Value;

/// MiB; above every limit here, so a process that allocates this much is killed.
pub(crate) const TOO_MUCH: &str = "96";

/// Small, because several tests run in parallel.
pub(crate) const LIMIT_MIB: u64 = 32;

/// A limit that is enough for a monitor but less than [`TOO_MUCH`].
pub(crate) const OWN_MIB: u64 = 64;

/// The helper program.
pub(crate) const VICTIM: &str = env!("CARGO_BIN_EXE_victim");

/// A monitor, and a child of its cgroup with little memory.
pub(crate) struct TestEnv {
    pub(crate) monitor: Monitor,
    inside: LaunchMethod,
    pub(crate) limited: Cgroup,
    _sandbox: Option<Sandbox>,
    pub(crate) scratch: Cgroup,
}

impl TestEnv {
    /// In the tests' own PID namespace, where the monitor reports kills in its cgroup and below.
    pub(crate) fn new() -> Result<Self, String> {
        Self::within(Cgroup::scratch()?, None)
    }

    /// In a PID namespace of its own, as in a container.
    pub(crate) fn in_sandbox() -> Result<Self, String> {
        host::util_linux()?;
        Self::within(Cgroup::scratch()?, Some(Sandbox::new()))
    }

    /// In a PID namespace, with a monitor that sees only its own cgroup of the memory controller's hierarchy.
    pub(crate) fn seeing_only_its_own() -> Result<Self, String> {
        host::util_linux()?;
        let scratch = Cgroup::scratch()?;
        let dir = scratch.path().display();
        let mount = match scratch.version() {
            Version::One => "/sys/fs/cgroup/memory",
            Version::Two => "/sys/fs/cgroup",
        };
        let commands =
            format!("mount --bind {dir} /mnt; umount -l {mount}; mkdir -p {mount}; mount --move /mnt {mount}");
        Self::seen_by(scratch, Some(Sandbox::new()), |launch| launch.mounts(&commands))
    }

    fn within(scratch: Cgroup, sandbox: Option<Sandbox>) -> Result<Self, String> {
        Self::seen_by(scratch, sandbox, |launch| launch)
    }

    fn seen_by(
        scratch: Cgroup,
        sandbox: Option<Sandbox>,
        monitor: impl FnOnce(LaunchMethod) -> LaunchMethod,
    ) -> Result<Self, String> {
        let limited = scratch.limited("limited", LIMIT_MIB);
        let inside =
            sandbox.as_ref().map_or_else(LaunchMethod::direct, |sandbox| LaunchMethod::direct().sandbox(sandbox));
        let monitor = Monitor::start(&monitor(inside.clone().cgroup(&scratch)));
        monitor.needs_bpf()?;
        Ok(Self { monitor, inside, limited, _sandbox: sandbox, scratch })
    }

    /// Launches a program in the monitor's namespaces.
    pub(crate) fn inside(&self) -> LaunchMethod {
        self.inside.clone()
    }

    /// Launches a program in the monitor's namespaces, in the limited cgroup.
    pub(crate) fn launch(&self) -> LaunchMethod {
        self.inside.clone().cgroup(&self.limited)
    }

    /// Starts a scenario in the limited cgroup.
    #[track_caller]
    pub(crate) fn start(&self, args: &[&str]) -> Scenario {
        let mut command = self.launch().command(VICTIM);
        command.args(args);
        Scenario::start(command)
    }

    /// Runs a scenario in the limited cgroup.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> ScenarioOutput {
        let before = self.limited.oom_kills();
        let told = self.start(args).end();
        assert!(self.limited.oom_kills() > before, "{args:?}: no OOM kill: {told:?}");
        told
    }

    /// Runs a scenario outside the limited cgroup; its members move themselves into it.
    #[track_caller]
    pub(crate) fn run_many(&self, scenario: &str, count: usize) -> ScenarioOutput {
        self.run_from_outside(&[scenario, &count.to_string(), TOO_MUCH])
    }

    /// Runs any scenario of that kind.
    #[track_caller]
    pub(crate) fn run_from_outside(&self, args: &[&str]) -> ScenarioOutput {
        let mut command = self.inside.clone().cgroup(&self.scratch).command(VICTIM);
        command.args(args).arg(self.limited.procs_file());
        Scenario::start(command).end()
    }

    /// Causes the marker kill and waits for its report. No report of an earlier kill can arrive after that.
    #[track_caller]
    pub(crate) fn marker(&mut self) -> u32 {
        let pid = self.run(&["eat", TOO_MUCH, "--name", "marker"]).pid("victim");
        self.monitor.until_report_of(pid);
        pid
    }

    /// Stops the monitor. It must have reported exactly these processes, each once at this confidence. Returns their
    /// reports in this order.
    #[track_caller]
    pub(crate) fn finish(mut self, expected: &[(u32, &str)]) -> Vec<Value> {
        self.monitor.until_reports(expected.len());
        let marker = self.marker();
        let status = self.monitor.end();
        assert_eq!(status.code(), Some(0), "{status}");
        let mut reports: Vec<Value> = self.monitor.reports().into_iter().cloned().collect();
        let last =
            reports.iter().position(|report| report["victim"]["pid"] == marker).expect("the marker was reported");
        assert_eq!(reports.remove(last)["confidence"], "confirmed");
        let said = |report: &Value| (report["victim"]["pid"].to_string(), report["confidence"].clone());
        let mut actual: Vec<_> = reports.iter().map(said).collect();
        let mut wanted: Vec<_> = expected.iter().map(|(pid, sure)| (pid.to_string(), Value::from(*sure))).collect();
        actual.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(actual, wanted, "(left: reported; right: expected)");
        assert!(self.monitor.lines().iter().all(|line| line["event"] != "records_lost"), "{:?}", self.monitor.lines());
        let of = |(pid, _): &(u32, &str)| {
            reports.iter().find(|report| report["victim"]["pid"] == *pid).expect("just compared").clone()
        };
        expected.iter().map(of).collect()
    }
}

/// The pids of the ancestors, the parent first.
pub(crate) fn ancestors(report: &Value) -> Vec<u64> {
    let ancestors = report["ancestors"].as_array().expect("a list");
    ancestors.iter().map(|process| process["pid"].as_u64().expect("a pid")).collect()
}
