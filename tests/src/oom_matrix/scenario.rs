//! The scenarios: each causes OOM kills and returns which processes the OOM killer killed, and what their reports must say.
//!
//! A scenario returns `Err` if the machine lacks something that it needs, and panics if it takes an unexpected course.

#![expect(clippy::unnecessary_wraps, reason = "all scenarios have one type, and some can run on any machine")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::facts::Fact;
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

/// On an emulated processor a kill takes half a second to a second, and a row of [`ROW`] the whole deadline of a wait.
const ROW_EMULATED: usize = 20;

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
    pub(super) fn kills_itself(&self, args: &[&str]) -> Result<ActualKills, String> {
        Ok(own_victim(&self.scenario(args).end()))
    }

    fn kills_itself_with_argument(&self, argument: &OsStr) -> ActualKills {
        let mut command = self.launch().command(self.victim);
        command.args(["eat", TOO_MUCH, "--"]).arg(argument);
        own_victim(&Scenario::start(command).end())
    }

    /// The command line of a scenario as a report shows it.
    fn command_line(&self, args: &[&str]) -> String {
        format!("{} {}", self.victim.display(), args.join(" "))
    }

    /// Runs a scenario whose only victim is a descendant, according to its wait status.
    pub(super) fn kills_child(&self, args: &[&str]) -> Result<ActualKills, String> {
        self.kills_role(args, "victim")
    }

    /// Runs a scenario whose only victim is the process with this role.
    pub(super) fn kills_role(&self, args: &[&str], role: &str) -> Result<ActualKills, String> {
        Ok(role_victim(&self.scenario(args).end(), role))
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

/// The process whose parent saw it killed is the only victim and has this role.
fn role_victim(output: &ScenarioOutput, role: &str) -> ActualKills {
    let killed = output.all("killed");
    assert_eq!(killed, [output.pid(role)], "{output:?}");
    ActualKills::killed(killed)
}

pub(super) fn lived_20_ms(fixture: &Fixture) -> Result<ActualKills, String> {
    let args = ["eat", TOO_MUCH];
    let output = fixture.scenario(&args).end();
    Ok(own_victim(&output).with_facts([
        Fact::is("/victim/name", "victim"),
        Fact::is("/victim/cmdline", fixture.command_line(&args)),
        Fact::is("/victim/cmdline_is_cut", false),
        Fact::is("/victim/uid", 0),
        Fact::is("/victim/oom_score_adj", 0),
        Fact::is("/trigger/pid", output.pid("victim")),
        Fact::is("/with_pid", Value::Null),
        Fact::that("/victim/running_s", "less than 5 s", |age| age.as_f64().is_some_and(|age| age < 5.0)),
    ]))
}

pub(super) fn lived_4_s(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_child(&["bystanders", "8", TOO_MUCH, "4000"])?;
    let is_age = |age: &Value| age.as_f64().is_some_and(|age| (4.0..60.0).contains(&age));
    Ok(actual.with_facts([Fact::that("/victim/running_s", "4 s or somewhat more", is_age)]))
}

pub(super) fn trigger_survives(fixture: &Fixture) -> Result<ActualKills, String> {
    let args = ["group", "big=20", "trigger=16"];
    let output = fixture.scenario(&args).end();
    Ok(role_victim(&output, "big").with_facts([
        Fact::is("/victim/name", "big"),
        Fact::is("/trigger/pid", output.pid("trigger")),
        Fact::is("/trigger/name", "trigger"),
        Fact::is("/ancestors/0/name", "victim"),
        Fact::is("/ancestors/0/cmdline", fixture.command_line(&args)),
        Fact::is("/ancestors/0/exited", false),
    ]))
}

pub(super) fn smallest_by_score(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_role(&["group", "small=8:1000", "other=9", "trigger=16"], "small")?;
    Ok(actual.with_facts([Fact::is("/victim/oom_score_adj", 1000)]))
}

pub(super) fn leader_gone(fixture: &Fixture) -> Result<ActualKills, String> {
    let args = ["leader-gone", TOO_MUCH];
    let output = fixture.scenario(&args).end();
    Ok(own_victim(&output).with_facts([Fact::is("/victim/cmdline", fixture.command_line(&args))]))
}

/// Both processes score the same, and the kernel may choose either. It kills the other one with it, but may come to it only
/// after the first has exited and was reported: then the other one has a report of its own.
pub(super) fn shared_memory(fixture: &Fixture) -> Result<ActualKills, String> {
    let output = fixture.scenario(&["clone-vm", TOO_MUCH]).end();
    assert!(was_killed(output.status), "{output:?}");
    let (victim, sharer) = (output.pid("victim"), output.pid("sharer"));
    wait::until_true("the sharer to exit", || fixture.limited.members().is_empty());
    Ok(ActualKills { chosen: 1, ..ActualKills::killed([victim, sharer]) }
        .with_facts([Fact::is("/trigger/pid", victim)]))
}

pub(super) fn parent_died_first(fixture: &Fixture) -> Result<ActualKills, String> {
    let output = fixture.scenario(&["orphan", TOO_MUCH]).end();
    Ok(role_victim(&output, "victim").with_facts([
        Fact::is("/ancestors/0/pid", output.pid("middle")),
        Fact::is("/ancestors/0/exited", true),
        Fact::that("/ancestors/0/cmdline", "that of the one that exited", |cmdline| {
            cmdline.as_str().is_some_and(|cmdline| cmdline.contains("middle"))
        }),
        Fact::is("/ancestors/1/pid", output.pid("first")),
        Fact::is("/ancestors/1/exited", false),
    ]))
}

pub(super) fn cmdline_100_kb(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_itself_with_argument(OsStr::new(&"x".repeat(100_000)));
    Ok(actual.with_facts([
        Fact::starts_with("/victim/cmdline", fixture.command_line(&["eat", TOO_MUCH, "-- xxx"])),
        Fact::that("/victim/cmdline", "at most 64 KiB", |cmdline| {
            cmdline.as_str().is_some_and(|cmdline| cmdline.len() <= 64 * 1024)
        }),
        Fact::is("/victim/cmdline_is_cut", true),
    ]))
}

pub(super) fn cmdline_not_utf8(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_itself_with_argument(OsStr::from_bytes(b"caf\xe9\n\x1b[31mred"));
    Ok(actual.with_facts([
        Fact::starts_with("/victim/cmdline", fixture.command_line(&["eat", TOO_MUCH, "-- caf\u{fffd}"])),
        Fact::that("/victim/cmdline", "without control characters", |cmdline| {
            cmdline.as_str().is_some_and(|cmdline| !cmdline.contains(char::is_control))
        }),
    ]))
}

pub(super) fn cmdline_empty(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_itself(&["bare", "empty", TOO_MUCH])?;
    Ok(actual.with_facts([Fact::that("/victim/cmdline", "empty", |cmdline| {
        cmdline.as_str().is_some_and(|cmdline| cmdline.trim().is_empty())
    })]))
}

/// The command line as it was at the exec, or as it was when a later scan saw it.
pub(super) fn cmdline_wiped(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_itself(&["bare", "wiped", TOO_MUCH])?;
    Ok(actual.with_facts([Fact::that("/victim/cmdline", "that of the exec, or empty", |cmdline| {
        let is_of_exec = |cmdline: &str| cmdline.ends_with(&format!("bare wiped {TOO_MUCH}"));
        cmdline.as_str().map(str::trim).is_some_and(|cmdline| cmdline.is_empty() || is_of_exec(cmdline))
    })]))
}

pub(super) fn odd_name(fixture: &Fixture) -> Result<ActualKills, String> {
    let actual = fixture.kills_itself(&["eat", TOO_MUCH, "--name", "a) R 1 (\nb"])?;
    Ok(actual.with_facts([Fact::starts_with("/victim/name", "a) R 1 (".to_owned())]))
}

/// The kernel also SIGKILLs the other processes in the namespace. They are not OOM victims.
pub(super) fn nested_init(fixture: &Fixture) -> Result<ActualKills, String> {
    let output = fixture.scenario(&["nested-init", TOO_MUCH]).end();
    assert_eq!(output.all("killed").len(), 4, "{output:?}");
    Ok(ActualKills::killed([output.pid("victim")]))
}

pub(super) fn kill_9(fixture: &Fixture) -> Result<ActualKills, String> {
    let hog = fixture.scenario(&["eat", "16", "--hold"]);
    proc::signal(hog.until("ready"), Signal::SIGKILL);
    assert!(was_killed(hog.end().status), "our SIGKILL ended it");
    Ok(ActualKills::none())
}

pub(super) fn kill_9_by_a_shell(fixture: &Fixture) -> Result<ActualKills, String> {
    let mut command = fixture.launch().command("sh");
    command.args(["-c", "sleep 600 & kill -9 $!; wait $!; echo code $?"]);
    assert_eq!(Scenario::start(command).end().pid("code"), 137);
    Ok(ActualKills::none())
}

pub(super) fn bystanders_alone(fixture: &Fixture) -> Result<ActualKills, String> {
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

pub(super) fn row(fixture: &Fixture) -> Result<ActualKills, String> {
    let kills = if fixture.machine == Machine::Dedicated { ROW_EMULATED } else { ROW };
    let killed = starter_outside(fixture, &["row", &kills.to_string(), TOO_MUCH]).end().all("killed");
    assert_eq!(killed.len(), kills);
    Ok(ActualKills::killed(killed))
}

pub(super) fn pid_reused(fixture: &Fixture) -> Result<ActualKills, String> {
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
    let is_age = |age: &Value| age.as_f64().is_some_and(|age| age < 10.0);
    Ok(ActualKills::of(victims).with_facts([Fact::that("/victim/running_s", "less than 10 s", is_age)]))
}

/// An OOM kill in another container.
pub(super) fn kill_elsewhere(fixture: &Fixture, sandbox: Option<&Sandbox>) -> Result<ActualKills, String> {
    let scratch = Cgroup::scratch()?;
    let other = scratch.limited("other", 32);
    let launch = sandbox.map_or_else(LaunchMethod::direct, |sandbox| LaunchMethod::direct().sandbox(sandbox));
    let mut command = launch.cgroup(&other).command(fixture.victim);
    command.args(["eat", TOO_MUCH]);
    assert!(was_killed(Scenario::start(command).end().status), "the other container has an OOM kill");
    assert_eq!(other.oom_kills(), 1);
    Ok(ActualKills::none())
}

pub(super) fn global_oom(fixture: &Fixture) -> Result<ActualKills, String> {
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
pub(super) fn oom_group(fixture: &Fixture) -> Result<ActualKills, String> {
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
pub(super) fn oom_group_init(fixture: &Fixture) -> Result<ActualKills, String> {
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
