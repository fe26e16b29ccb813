//! Causes outside a container that its session must report as what they are: the kernel's OOM killer started by hand, a full pod, and
//! another killer of the machine.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use krunner_tests::node_vm::ContainerOutcome;
use krunner_tests::oom_matrix::KernelLog;
use krunner_tests::{proc, wait};
use serde_json::Value;

use crate::command::{command, output, write};
use crate::engine::{Container, Engine, KRUNNER, Launch};
use crate::images::SESSION;
use crate::served::NODE_SOCKET;
use crate::session::Session;
use crate::trial::{CAPABILITIES, NAME};
use crate::{measured, older};

/// MiB; more than any other process of the machine has.
const HELD_MIB: u64 = 320;

/// A slice of two containers, as a pod is.
const POD: &str = "pod.slice";

const POD_MIB: u64 = 192;

/// MiB; more than the sibling has when their pod is full.
const HELD_IN_POD_MIB: u64 = 104;

const SIBLING: &[&str] =
    &["docker", "run", "--rm", "--network", "none", "--cgroup-parent", POD, SESSION, "victim", "eat", "128"];

const LIMIT_MIB: u64 = 512;

const PATIENCE: Duration = Duration::from_mins(1);

/// The words of krunner for a SIGKILL of earlyoom.
const OF_EARLYOOM: &str = "SIGKILL from earlyoom, a user-space OOM killer outside this container";

/// What an outsider does to the container.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostCause {
    /// `sysrq-f`: the kernel looks for a victim on the whole machine.
    Sysrq,
    /// Another container fills the pod that both are in.
    Sibling,
    /// earlyoom sends SIGKILL before the kernel would.
    Earlyoom,
    /// The same to a plain container, which a node serves.
    EarlyoomBesideNode,
}

impl HostCause {
    /// Those that need no node.
    pub(crate) const ALONE: [Self; 3] = [Self::Sysrq, Self::Sibling, Self::Earlyoom];

    fn container(self) -> &'static str {
        match self {
            Self::Sysrq => "sysrq-f",
            Self::Sibling => "a sibling fills the pod",
            Self::Earlyoom => "earlyoom",
            Self::EarlyoomBesideNode => "earlyoom, plain, the node in a unit",
        }
    }

    fn is_earlyoom(self) -> bool {
        matches!(self, Self::Earlyoom | Self::EarlyoomBesideNode)
    }

    /// What selects it.
    pub(crate) fn name(self) -> String {
        format!("{} {}", Engine::Docker.name(), self.container())
    }

    /// Why this machine has no such killer; `None` if it has.
    pub(crate) fn impossible_because(self) -> Option<&'static str> {
        self.is_earlyoom().then(older::refuses_to_ignore).flatten()
    }

    pub(crate) fn run(self) -> ContainerOutcome {
        measured(Engine::Docker, self.container(), |outcome| self.measure(outcome))
    }

    fn measure(self, outcome: &mut ContainerOutcome) -> Result<(), String> {
        const IN_POD: &[&str] = &["--cap-add", "BPF", "--cap-add", "PERFMON", "--cgroup-parent", POD];
        let (flags, tracer) = match self {
            Self::Sibling => (IN_POD, "bpf"),
            Self::EarlyoomBesideNode => (NODE_SOCKET, "node"),
            Self::Sysrq | Self::Earlyoom => (CAPABILITIES, "bpf"),
        };
        let launch = Launch::Session { memory_mib: LIMIT_MIB, flags, command: &[KRUNNER, "app"] };
        tracer.clone_into(&mut outcome.tracer);
        Engine::Docker.with(NAME, launch, |container| self.measure_in(container, outcome))
    }

    fn measure_in(self, container: &Container, outcome: &mut ContainerOutcome) -> Result<(), String> {
        let mut log = KernelLog::follow().ok_or("the kernel log is not readable")?;
        let session = Session::until_ready(container)?;
        let output = self.run_step(&session)?;
        outcome.kills = log.pids()?.len() as u64;
        let reports = session.journal();
        outcome.reported = reports.len() as u64;
        let is_right = match self {
            Self::Sysrq => outcome.kills == 1 && is_of_limit(&reports, "machine"),
            Self::Sibling => outcome.kills == 1 && is_of_limit(&reports, "above"),
            Self::Earlyoom | Self::EarlyoomBesideNode => {
                outcome.kills == 0 && reports.is_empty() && output.contains(OF_EARLYOOM)
            }
        };
        outcome.correct = u64::from(is_right) * outcome.reported;
        if is_right { Ok(()) } else { Err(format!("the step printed {output:?}; reports {reports:?}")) }
    }

    /// Runs a step that holds memory, and the cause meanwhile. Returns the step's output.
    fn run_step(self, session: &Session<'_>) -> Result<String, String> {
        // Never at its end.
        let script = format!("mkfifo /tmp/held; exec victim eat {} --hold <> /tmp/held", self.held_mib());
        thread::scope(|scope| {
            let step = scope.spawn(|| session.exec(&script));
            let acted = self.act();
            let output = step.join().map_err(|_| "the step's client panicked".to_owned())?;
            acted.and(output.map(|(_, text)| text))
        })
    }

    fn act(self) -> Result<(), String> {
        match self {
            Self::Sysrq => {
                self.until_held()?;
                write("/proc/sysrq-trigger", "f")?;
            }
            Self::Sibling => {
                self.until_held()?;
                let limit = format!("MemoryMax={POD_MIB}M");
                output(&mut command(&["systemctl", "set-property", "--runtime", POD, &limit]))?;
                output(&mut command(SIBLING))?;
            }
            Self::Earlyoom | Self::EarlyoomBesideNode => {
                let victim = self.until_held()?;
                let _killer = Ended(earlyoom()?);
                let is_gone = || (!proc::is_alive(victim)).then_some(());
                wait::within(PATIENCE, is_gone).ok_or("earlyoom killed nothing")?;
            }
        }
        Ok(())
    }

    fn held_mib(self) -> u64 {
        if matches!(self, Self::Sibling) { HELD_IN_POD_MIB } else { HELD_MIB }
    }

    /// The PID of the process that holds its memory.
    fn until_held(self) -> Result<u32, String> {
        let is_held = |pid: &u32| {
            proc::comm(*pid).as_deref() == Some("victim")
                && proc::rss_kib(*pid).is_some_and(|kib| kib >= self.held_mib() << 10)
        };
        wait::within(PATIENCE, || proc::all().find(is_held)).ok_or_else(|| "no process holds its memory".to_owned())
    }
}

/// One report, of a kill at this limit.
fn is_of_limit(reports: &[Value], scope: &str) -> bool {
    matches!(reports, [report] if report["confidence"] == "confirmed"
        && report["victim"]["name"] == "victim"
        && report["explanation"]["limit"]["scope"] == scope)
}

/// Kills the process with the highest `oom_score` whose name is the victim's, however much memory is available.
fn earlyoom() -> Result<Child, String> {
    const OPTIONS: &[&str] = &["earlyoom", "-m", "99,99", "-s", "100,100", "-r", "0", "--ignore", "^([^v]|v[^i])"];
    let mut command: Command = command(OPTIONS);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|error| format!("earlyoom: {error}"))
}

/// A program that is ended on drop.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
