//! The cases. Each runs a scenario and returns which processes the OOM killer killed.
//!
//! A case returns `Err` if the machine lacks something that the scenario needs, and panics if the scenario takes an unexpected
//! course.

#![expect(clippy::unnecessary_wraps, reason = "all cases have one type, and some can run on any machine")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

use super::harness::Placement;
use super::kernel_log::KernelLog;
use super::run::Machine;
use super::scoring::{ActualKills, Victim};
use crate::cgroup::{Cgroup, Version};
use crate::{LaunchMethod, Sandbox, Scenario, ScenarioOutput, proc, wait};

/// MiB; above every limit here, so a process that takes this much is killed.
pub(super) const TOO_MUCH: &str = "96";

/// MiB; more than any machine has.
const FAR_TOO_MUCH: &str = "1000000";

/// Consecutive group kills: more than 50 on the four kernels of `cargo xtask vm` together.
const GROUPS: u64 = 13;

/// The number of consecutive kills.
const ROW: usize = 100;

/// A case of the matrix.
#[derive(Debug)]
pub(super) struct Case {
    /// What `--only` matches and tables show.
    pub(super) name: &'static str,
    pub(super) placement: Placement,
    /// Runs the scenario and returns its victims, or the reason why this machine cannot run it.
    pub(super) run: fn(&Fixture) -> Result<ActualKills, String>,
}

const fn case(name: &'static str, placement: Placement, run: fn(&Fixture) -> Result<ActualKills, String>) -> Case {
    Case { name, placement, run }
}

/// Every case. Cases with the same placement are adjacent, so that they share a harness.
pub(super) const CASES: &[Case] = &[
    case("lived-20-ms", Placement::Below, |fixture| fixture.kills_itself(&["eat", TOO_MUCH])),
    case("hog-0-s-bystanders", Placement::Below, |fixture| fixture.kills_child(&["bystanders", "8", TOO_MUCH])),
    case("hog-4-s-bystanders", Placement::Below, |fixture| fixture.kills_child(&["bystanders", "8", TOO_MUCH, "4000"])),
    case("trigger-survives", Placement::Below, |fixture| fixture.kills_role(&["group", "big=20", "trigger=16"], "big")),
    case("biggest-not-newest", Placement::Below, |fixture| {
        fixture.kills_role(&["group", "big=18", "newer=4", "newest=14"], "big")
    }),
    case("smallest-by-score", Placement::Below, |fixture| {
        fixture.kills_role(&["group", "small=8:1000", "other=9", "trigger=16"], "small")
    }),
    case("thread-allocates", Placement::Below, |fixture| fixture.kills_itself(&["thread-eat", TOO_MUCH])),
    case("leader-gone", Placement::Below, |fixture| fixture.kills_itself(&["leader-gone", TOO_MUCH])),
    case("shared-memory", Placement::Below, shared_memory),
    case("nested-pidns", Placement::Below, |fixture| fixture.kills_child(&["nested-pidns", TOO_MUCH])),
    case("nested-init", Placement::Below, nested_init),
    case("parent-died-first", Placement::Below, |fixture| fixture.kills_child(&["orphan", TOO_MUCH])),
    case("cmdline-100-kb", Placement::Below, |fixture| {
        fixture.kills_itself_with_argument(OsStr::new(&"x".repeat(100_000)))
    }),
    case("cmdline-not-utf8", Placement::Below, |fixture| {
        fixture.kills_itself_with_argument(OsStr::from_bytes(b"caf\xe9\n\x1b[31mred"))
    }),
    case("cmdline-empty", Placement::Below, |fixture| fixture.kills_itself(&["bare", "empty", TOO_MUCH])),
    case("cmdline-wiped", Placement::Below, |fixture| fixture.kills_itself(&["bare", "wiped", TOO_MUCH])),
    case("odd-name", Placement::Below, |fixture| fixture.kills_itself(&["eat", TOO_MUCH, "--name", "a) R 1 (\nb"])),
    case("kill-9", Placement::Below, kill_9),
    case("bystanders-alone", Placement::Below, bystanders_alone),
    case("row-of-100", Placement::Below, row),
    case("global-oom", Placement::Below, global_oom),
    case("container", Placement::Container, |fixture| fixture.kills_itself(&["eat", TOO_MUCH])),
    case("container-nested", Placement::Container, |fixture| fixture.kills_child(&["nested-pidns", TOO_MUCH])),
    case("container-kill-9", Placement::Container, kill_9_by_a_shell),
    case("pid-reused", Placement::Container, pid_reused),
    case("sibling-namespace", Placement::Container, |fixture| kill_elsewhere(fixture, Some(&Sandbox::new()))),
    case("namespace-above", Placement::Container, |fixture| kill_elsewhere(fixture, None)),
    case("no-tracefs", Placement::NoTracefs, |fixture| fixture.kills_itself(&["eat", TOO_MUCH])),
    case("oom-group", Placement::Top, oom_group),
    case("oom-group-init", Placement::Top, oom_group_init),
];

/// What the harness provides to a scenario.
pub(super) struct Fixture<'a> {
    pub(super) limited: &'a Cgroup,
    pub(super) scratch: &'a Cgroup,
    pub(super) inside: &'a LaunchMethod,
    pub(super) victim: &'a Path,
    pub(super) machine: Machine,
}

impl Fixture<'_> {
    /// Launches a program in the cgroup with little memory.
    fn launch(&self) -> LaunchMethod {
        self.inside.clone().cgroup(self.limited)
    }

    /// Starts a scenario in the cgroup with little memory.
    pub(super) fn scenario(&self, args: &[&str]) -> Scenario {
        let mut command = self.launch().command(self.victim);
        command.args(args);
        Scenario::start(command)
    }

    /// Runs a scenario whose first process is the only victim.
    fn kills_itself(&self, args: &[&str]) -> Result<ActualKills, String> {
        Ok(own_victim(&self.scenario(args).end()))
    }

    fn kills_itself_with_argument(&self, argument: &OsStr) -> Result<ActualKills, String> {
        let mut command = self.launch().command(self.victim);
        command.args(["eat", TOO_MUCH, "--"]).arg(argument);
        Ok(own_victim(&Scenario::start(command).end()))
    }

    /// Runs a scenario whose only victim is a descendant, according to its wait status.
    fn kills_child(&self, args: &[&str]) -> Result<ActualKills, String> {
        let output = self.scenario(args).end();
        let killed = output.all("killed");
        assert_eq!(killed, [output.pid("victim")], "{output:?}");
        Ok(ActualKills::killed(killed))
    }

    /// Runs a scenario whose only victim is the process with this role.
    fn kills_role(&self, args: &[&str], role: &str) -> Result<ActualKills, String> {
        let output = self.scenario(args).end();
        let killed = output.all("killed");
        assert_eq!(killed, [output.pid(role)], "{output:?}");
        Ok(ActualKills::killed(killed))
    }
}

/// Whether SIGKILL ended the process, or the one that `nsenter` of busybox waited for.
fn was_killed(status: ExitStatus) -> bool {
    const KILLED: i32 = Signal::SIGKILL as i32;
    status.signal() == Some(KILLED) || status.code() == Some(128 + KILLED)
}

fn own_victim(output: &ScenarioOutput) -> ActualKills {
    assert!(was_killed(output.status), "{output:?}");
    ActualKills::killed([output.pid("victim")])
}

fn shared_memory(fixture: &Fixture) -> Result<ActualKills, String> {
    let output = fixture.scenario(&["clone-vm", TOO_MUCH]).end();
    assert!(was_killed(output.status), "{output:?}");
    let sharer = output.pid("sharer");
    wait::until_true("the sharer to exit", || !proc::is_alive(sharer));
    Ok(ActualKills { chosen: 1, ..ActualKills::killed([output.pid("victim"), sharer]) })
}

/// The kernel also SIGKILLs the other processes in the namespace. They are not OOM victims.
fn nested_init(fixture: &Fixture) -> Result<ActualKills, String> {
    let output = fixture.scenario(&["nested-init", TOO_MUCH]).end();
    assert_eq!(output.all("killed").len(), 4, "{output:?}");
    Ok(ActualKills::killed([output.pid("victim")]))
}

fn kill_9(fixture: &Fixture) -> Result<ActualKills, String> {
    let hog = fixture.scenario(&["eat", "16", "--hold"]);
    proc::signal(hog.until("ready"), Signal::SIGKILL);
    assert!(was_killed(hog.end().status), "our SIGKILL ended it");
    Ok(ActualKills::none())
}

fn kill_9_by_a_shell(fixture: &Fixture) -> Result<ActualKills, String> {
    let mut command = fixture.launch().command("sh");
    command.args(["-c", "sleep 600 & kill -9 $!; wait $!; echo code $?"]);
    assert_eq!(Scenario::start(command).end().pid("code"), 137);
    Ok(ActualKills::none())
}

fn bystanders_alone(fixture: &Fixture) -> Result<ActualKills, String> {
    let output = fixture.scenario(&["bystanders", "20", "1"]).end();
    assert_eq!((output.all("exited").len(), output.all("killed").len()), (21, 0), "{output:?}");
    Ok(ActualKills::none())
}

/// Starts a scenario outside the limited cgroup. The processes that allocate move themselves into it.
fn starter_outside(fixture: &Fixture, args: &[&str]) -> Scenario {
    let inside = fixture.inside.clone();
    // In cgroup v2 the scratch cgroup has the limit, so the starter must be outside of it.
    let launch = if fixture.scratch.version() == Version::Two { inside } else { inside.cgroup(fixture.scratch) };
    let mut command = launch.command(fixture.victim);
    command.args(args).arg(fixture.limited.procs_file());
    Scenario::start(command)
}

fn row(fixture: &Fixture) -> Result<ActualKills, String> {
    let killed = starter_outside(fixture, &["row", &ROW.to_string(), TOO_MUCH]).end().all("killed");
    assert_eq!(killed.len(), ROW);
    Ok(ActualKills::killed(killed))
}

fn pid_reused(fixture: &Fixture) -> Result<ActualKills, String> {
    let last = Path::new("/proc/sys/kernel/ns_last_pid");
    fs::metadata(last).map_err(|error| format!("{}: {error}", last.display()))?;
    let output = starter_outside(fixture, &["pid-reuse", TOO_MUCH]).end();
    let pid = output.pid("second");
    assert_eq!(
        (output.all("killed"), output.pid("early"), output.pid("third")),
        (vec![pid; 2], pid, pid),
        "{output:?}"
    );
    let victims = ["second", "third"].map(|word| Victim { pid, word: Some(word) }).to_vec();
    Ok(ActualKills::of(victims))
}

/// An OOM kill in another container.
fn kill_elsewhere(fixture: &Fixture, sandbox: Option<&Sandbox>) -> Result<ActualKills, String> {
    let scratch = Cgroup::scratch()?;
    let other = scratch.limited("other", 32);
    let launch = sandbox.map_or_else(LaunchMethod::direct, |sandbox| LaunchMethod::direct().sandbox(sandbox));
    let mut command = launch.cgroup(&other).command(fixture.victim);
    command.args(["eat", TOO_MUCH]);
    assert!(was_killed(Scenario::start(command).end().status), "the other container has an OOM kill");
    assert_eq!(other.oom_kills(), 1);
    Ok(ActualKills::none())
}

fn global_oom(fixture: &Fixture) -> Result<ActualKills, String> {
    if fixture.machine == Machine::Shared {
        return Err("it would use up all memory of this machine; `cargo xtask vm` runs it".to_owned());
    }
    fixture.limited.lift();
    // Spare victims: the kernel panics if a process allocates before the victim's memory is free and nothing is left to kill.
    let others: Vec<Scenario> = (0..3).map(|_| fixture.scenario(&["eat", "0", "--hold"])).collect();
    let pids: Vec<u32> = others.iter().map(|other| other.until("ready")).collect();
    let mut actual = fixture.kills_itself(&["eat", FAR_TOO_MUCH])?;
    let ends = others.into_iter().map(|other| was_killed(other.end().status));
    let killed = pids.into_iter().zip(ends).filter_map(|(pid, is_killed)| is_killed.then_some(pid));
    actual.victims.extend(killed.map(|pid| Victim { pid, word: None }));
    actual.chosen = actual.victims.len() as u64;
    Ok(actual)
}

/// One process exceeds the limit and the whole group is killed, including the process that started them.
fn oom_group(fixture: &Fixture) -> Result<ActualKills, String> {
    fixture.limited.group(true)?;
    let scenario = fixture.scenario(&["group", "big=20", "trigger=16"]);
    let starter = scenario.pid();
    let output = scenario.end();
    assert!(was_killed(output.status), "{output:?}");
    let members = [output.pid("big"), output.pid("trigger"), starter];
    wait::until_true("all of them to exit", || !members.iter().any(|pid| proc::is_alive(*pid)));
    Ok(ActualKills { groups: 1, ..ActualKills::killed(members) })
}

/// The way a Kubernetes container is killed: the init of its PID namespace is a member, and its exit kills the others as well.
/// Init may also die with its parent before the kernel reaches it. The kernel log has the processes that the OOM killer killed.
fn oom_group_init(fixture: &Fixture) -> Result<ActualKills, String> {
    let mut log = KernelLog::follow().ok_or("the kernel log is not readable")?;
    let (mut members, mut also_sigkilled) = (Vec::new(), Vec::new());
    fixture.limited.group(true)?;
    for _ in 0..GROUPS {
        fixture.limited.fit();
        let scenario = fixture.scenario(&["nested-pidns", TOO_MUCH]);
        let own = scenario.pid();
        let output = scenario.end();
        assert!(was_killed(output.status), "{output:?}");
        let (victim, init) = (output.pid("victim"), output.pid("init"));
        wait::until_true("all of them to exit", || ![victim, init, own].iter().any(|pid| proc::is_alive(*pid)));
        let logged = log.take().ok_or("the kernel log was overwritten")?;
        let is_logged = |pid: u32| logged.iter().any(|logged| logged.pid == pid);
        assert!(
            logged[0].pid == victim && is_logged(own),
            "the kernel killed the hog first, then the others: {logged:?} of {output:?}"
        );
        members.extend([victim, own]);
        if is_logged(init) {
            members.push(init);
        } else {
            also_sigkilled.push(Victim { pid: init, word: None });
        }
    }
    Ok(ActualKills { groups: GROUPS, also_sigkilled, ..ActualKills::killed(members) })
}
