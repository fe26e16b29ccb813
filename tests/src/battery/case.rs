//! The cases: each a scene, and who is killed in it.
//!
//! What a scene needs and does not find makes the case impossible; a scene that goes another way than it should panics,
//! and is told of as broken.

#![expect(clippy::unnecessary_wraps, reason = "all cases have one type, and some can be had anywhere")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

use super::judge::{Truth, Victim};
use super::kernel_log::KernelLog;
use super::run::Machine;
use super::stage::Place;
use crate::cgroup::{Cgroup, Version};
use crate::{Scene, Told, Way, World, proc, wait};

/// More than any limit here: whoever eats so much is killed.
pub(super) const TOO_MUCH: &str = "96";

/// More than any machine has.
const FAR_TOO_MUCH: &str = "1000000";

/// Group kills in a row: on the four kernels of `cargo xtask vm` together more than 50.
const GROUPS: u64 = 13;

/// Kills in a row.
const ROW: usize = 100;

/// One of the battery.
#[derive(Debug)]
pub(super) struct Case {
    /// As it is chosen and told of.
    pub(super) name: &'static str,
    /// Where it happens.
    pub(super) place: Place,
    /// Plays it and says who was killed, or why it cannot be had here.
    pub(super) play: fn(&Ground) -> Result<Truth, String>,
}

const fn case(name: &'static str, place: Place, play: fn(&Ground) -> Result<Truth, String>) -> Case {
    Case { name, place, play }
}

/// All, those that share a place together.
pub(super) const CASES: &[Case] = &[
    case("lived-20-ms", Place::Below, |ground| ground.alone(&["eat", TOO_MUCH])),
    case("hog-0-s-bystanders", Place::Below, |ground| ground.killed(&["bystanders", "8", TOO_MUCH])),
    case("hog-4-s-bystanders", Place::Below, |ground| ground.killed(&["bystanders", "8", TOO_MUCH, "4000"])),
    case("trigger-survives", Place::Below, |ground| ground.one_of(&["crowd", "big=20", "trigger=16"], "big")),
    case("biggest-not-newest", Place::Below, |ground| {
        ground.one_of(&["crowd", "big=18", "newer=4", "newest=14"], "big")
    }),
    case("smallest-by-score", Place::Below, |ground| {
        ground.one_of(&["crowd", "small=8:1000", "other=9", "trigger=16"], "small")
    }),
    case("thread-allocates", Place::Below, |ground| ground.alone(&["thread-eat", TOO_MUCH])),
    case("leader-gone", Place::Below, |ground| ground.alone(&["leader-gone", TOO_MUCH])),
    case("shared-memory", Place::Below, shared_memory),
    case("nested-pidns", Place::Below, |ground| ground.killed(&["nested-pidns", TOO_MUCH])),
    case("nested-init", Place::Below, nested_init),
    case("parent-died-first", Place::Below, |ground| ground.killed(&["orphan", TOO_MUCH])),
    case("cmdline-100-kb", Place::Below, |ground| ground.hog_with(OsStr::new(&"x".repeat(100_000)))),
    case("cmdline-not-utf8", Place::Below, |ground| ground.hog_with(OsStr::from_bytes(b"caf\xe9\n\x1b[31mred"))),
    case("cmdline-empty", Place::Below, |ground| ground.alone(&["bare", "empty", TOO_MUCH])),
    case("cmdline-wiped", Place::Below, |ground| ground.alone(&["bare", "wiped", TOO_MUCH])),
    case("odd-name", Place::Below, |ground| ground.alone(&["eat", TOO_MUCH, "--name", "a) R 1 (\nb"])),
    case("kill-9", Place::Below, kill_9),
    case("bystanders-alone", Place::Below, bystanders_alone),
    case("row-of-100", Place::Below, row),
    case("global-oom", Place::Below, global_oom),
    case("container", Place::Container, |ground| ground.alone(&["eat", TOO_MUCH])),
    case("container-nested", Place::Container, |ground| ground.killed(&["nested-pidns", TOO_MUCH])),
    case("container-kill-9", Place::Container, kill_9_by_a_shell),
    case("pid-reused", Place::Container, pid_reused),
    case("sibling-namespace", Place::Container, |ground| kill_elsewhere(ground, Some(&World::new()))),
    case("namespace-above", Place::Container, |ground| kill_elsewhere(ground, None)),
    case("no-tracefs", Place::NoTracefs, |ground| ground.alone(&["eat", TOO_MUCH])),
    case("oom-group", Place::Top, oom_group),
    case("oom-group-init", Place::Top, oom_group_init),
];

/// What a scene may use.
pub(super) struct Ground<'a> {
    pub(super) limited: &'a Cgroup,
    pub(super) scratch: &'a Cgroup,
    pub(super) inside: &'a Way,
    pub(super) victim: &'a Path,
    pub(super) machine: Machine,
}

impl Ground<'_> {
    /// How to start what has little memory.
    fn way(&self) -> Way {
        self.inside.clone().cgroup(self.limited)
    }

    /// Starts a scene where memory is short.
    pub(super) fn scene(&self, args: &[&str]) -> Scene {
        let mut command = self.way().command(self.victim);
        command.args(args);
        Scene::start(command)
    }

    /// The scene's own process is the victim.
    fn alone(&self, args: &[&str]) -> Result<Truth, String> {
        Ok(own_victim(&self.scene(args).end()))
    }

    fn hog_with(&self, argument: &OsStr) -> Result<Truth, String> {
        let mut command = self.way().command(self.victim);
        command.args(["eat", TOO_MUCH, "--"]).arg(argument);
        Ok(own_victim(&Scene::start(command).end()))
    }

    /// The victims are those whose wait status says so, of processes that nothing else kills.
    fn killed(&self, args: &[&str]) -> Result<Truth, String> {
        let told = self.scene(args).end();
        let killed = told.all("killed");
        assert_eq!(killed, [told.pid("victim")], "{told:?}");
        Ok(Truth::killed(killed))
    }

    /// It is the one with that role.
    fn one_of(&self, args: &[&str], role: &str) -> Result<Truth, String> {
        let told = self.scene(args).end();
        let killed = told.all("killed");
        assert_eq!(killed, [told.pid(role)], "{told:?}");
        Ok(Truth::killed(killed))
    }
}

/// Whether a process, or the one that a `nsenter` of busybox waited for, was ended by SIGKILL.
fn was_killed(status: ExitStatus) -> bool {
    const KILLED: i32 = Signal::SIGKILL as i32;
    status.signal() == Some(KILLED) || status.code() == Some(128 + KILLED)
}

fn own_victim(told: &Told) -> Truth {
    assert!(was_killed(told.status), "{told:?}");
    Truth::killed([told.pid("victim")])
}

fn shared_memory(ground: &Ground) -> Result<Truth, String> {
    let told = ground.scene(&["clone-vm", TOO_MUCH]).end();
    assert!(was_killed(told.status), "{told:?}");
    let sharer = told.pid("sharer");
    wait::until_true("the sharer's end", || !proc::is_alive(sharer));
    Ok(Truth { chosen: 1, ..Truth::killed([told.pid("victim"), sharer]) })
}

/// The others end with their namespace: by SIGKILL, but not for memory.
fn nested_init(ground: &Ground) -> Result<Truth, String> {
    let told = ground.scene(&["nested-init", TOO_MUCH]).end();
    assert_eq!(told.all("killed").len(), 4, "{told:?}");
    Ok(Truth::killed([told.pid("victim")]))
}

fn kill_9(ground: &Ground) -> Result<Truth, String> {
    let hog = ground.scene(&["eat", "16", "--hold"]);
    proc::signal(hog.until("ready"), Signal::SIGKILL);
    assert!(was_killed(hog.end().status), "by us");
    Ok(Truth::nobody())
}

fn kill_9_by_a_shell(ground: &Ground) -> Result<Truth, String> {
    let mut command = ground.way().command("sh");
    command.args(["-c", "sleep 600 & kill -9 $!; wait $!; echo code $?"]);
    assert_eq!(Scene::start(command).end().pid("code"), 137);
    Ok(Truth::nobody())
}

fn bystanders_alone(ground: &Ground) -> Result<Truth, String> {
    let told = ground.scene(&["bystanders", "20", "1"]).end();
    assert_eq!((told.all("exited").len(), told.all("killed").len()), (21, 0), "{told:?}");
    Ok(Truth::nobody())
}

/// Those who eat go where memory is short by themselves.
fn row(ground: &Ground) -> Result<Truth, String> {
    let inside = ground.inside.clone();
    // In version 2 the scratch cgroup has the limit: who only starts others is to be outside.
    let way = if ground.scratch.version() == Version::Two { inside } else { inside.cgroup(ground.scratch) };
    let mut command = way.command(ground.victim);
    command.args(["row", &ROW.to_string(), TOO_MUCH]).arg(ground.limited.procs_file());
    let killed = Scene::start(command).end().all("killed");
    assert_eq!(killed.len(), ROW);
    Ok(Truth::killed(killed))
}

fn pid_reused(ground: &Ground) -> Result<Truth, String> {
    let last = Path::new("/proc/sys/kernel/ns_last_pid");
    fs::metadata(last).map_err(|error| format!("{}: {error}", last.display()))?;
    let told = ground.scene(&["pid-reuse", TOO_MUCH]).end();
    let pid = told.pid("second");
    assert_eq!((told.all("killed"), told.pid("early"), told.pid("third")), (vec![pid; 2], pid, pid), "{told:?}");
    let victims = ["second", "third"].map(|mark| Victim { pid, mark: Some(mark) }).to_vec();
    Ok(Truth::of(victims))
}

/// Another container's kill.
fn kill_elsewhere(ground: &Ground, world: Option<&World>) -> Result<Truth, String> {
    let scratch = Cgroup::scratch()?;
    let other = scratch.limited("other", 32);
    let way = world.map_or_else(Way::here, |world| Way::here().world(world));
    let mut command = way.cgroup(&other).command(ground.victim);
    command.args(["eat", TOO_MUCH]);
    assert!(was_killed(Scene::start(command).end().status), "for want of memory");
    assert_eq!(other.oom_kills(), 1);
    Ok(Truth::nobody())
}

fn global_oom(ground: &Ground) -> Result<Truth, String> {
    if ground.machine == Machine::Shared {
        return Err("all memory of this machine would have to be eaten; `cargo xtask vm` does that".to_owned());
    }
    ground.limited.lift();
    // The kernel panics where somebody asks for memory before the victim's is back, and nobody is left to be killed.
    let others: Vec<Scene> = (0..3).map(|_| ground.scene(&["eat", "0", "--hold"])).collect();
    let pids: Vec<u32> = others.iter().map(|other| other.until("ready")).collect();
    let mut truth = ground.alone(&["eat", FAR_TOO_MUCH])?;
    let ends = others.into_iter().map(|other| was_killed(other.end().status));
    let killed = pids.into_iter().zip(ends).filter_map(|(pid, is_killed)| is_killed.then_some(pid));
    truth.victims.extend(killed.map(|pid| Victim { pid, mark: None }));
    truth.chosen = truth.victims.len() as u64;
    Ok(truth)
}

/// One is too much, all die: the one that started them as well.
fn oom_group(ground: &Ground) -> Result<Truth, String> {
    ground.limited.group(true)?;
    let told = ground.scene(&["crowd", "big=20", "trigger=16"]);
    let crowd = told.pid();
    let told = told.end();
    assert!(was_killed(told.status), "{told:?}");
    let members = [told.pid("big"), told.pid("trigger"), crowd];
    wait::until_true("the end of all", || !members.iter().any(|pid| proc::is_alive(*pid)));
    Ok(Truth { groups: 1, ..Truth::killed(members) })
}

/// As a container of Kubernetes dies: the first process of its pid namespace is a member, and ends the others as well. It may
/// also die with its parent before the kernel comes to it; the kernel's log says whom the OOM killer killed.
fn oom_group_init(ground: &Ground) -> Result<Truth, String> {
    let mut log = KernelLog::follow().ok_or("the kernel's log cannot be read")?;
    let (mut members, mut died_along) = (Vec::new(), Vec::new());
    ground.limited.group(true)?;
    for _ in 0..GROUPS {
        ground.limited.fit();
        let scene = ground.scene(&["nested-pidns", TOO_MUCH]);
        let own = scene.pid();
        let told = scene.end();
        assert!(was_killed(told.status), "{told:?}");
        let (victim, init) = (told.pid("victim"), told.pid("init"));
        wait::until_true("the end of all", || ![victim, init, own].iter().any(|pid| proc::is_alive(*pid)));
        let logged = log.take().ok_or("the kernel's log was overwritten")?;
        let is_logged = |pid: u32| logged.iter().any(|logged| logged.pid == pid);
        assert!(logged[0].pid == victim && is_logged(own), "the hog, and then the others: {logged:?} of {told:?}");
        members.extend([victim, own]);
        if is_logged(init) {
            members.push(init);
        } else {
            died_along.push(Victim { pid: init, mark: None });
        }
    }
    Ok(Truth { groups: GROUPS, died_along, ..Truth::killed(members) })
}
