//! Where cases happen: a cgroup with little memory, and the monitors that look on, one for each means.
//!
//! A stage outlives its cases, since starting a tracer is the dearest part, above all on an emulated machine. After
//! each case the sentinel draws the line: what is heard up to it belongs to the case, whatever comes later to the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::case::{Case, Ground, TOO_MUCH};
use super::clock::KillClock;
use super::facts::{self, Facts};
use super::judge::{Told, Truth, due, judge};
use super::kernel_log::{KernelLog, Memory};
use super::outcome::{Finding, Means, Outcome};
use super::run::{Machine, Plan};
use crate::cgroup::{Cgroup, Version};
use crate::{Monitor, Way, World};

/// Several such cgroups may be on a machine.
const LIMIT_MIB: u64 = 32;

/// A kill without a name is given up after 10 s by the monitor itself.
const PATIENCE: Duration = Duration::from_secs(15);

/// A dead one's memory is not back at once, and who asks for memory meanwhile may be killed as well (`MMF_OOM_SKIP` is set
/// before the pages are free, `exit_mmap` in mm/mmap.c). A scene that went another way than planned is played again.
const ATTEMPTS: u32 = 3;

/// Where the monitors are, in relation to the kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a cgroup; kills are below it. On a machine of our own that is the topmost one.
    Below,
    /// The same, and in pid and mount namespaces of their own.
    Container,
    /// Where no tracefs is mounted.
    NoTracefs,
    /// In the topmost cgroup. What kills a whole cgroup does not kill them.
    Top,
}

/// Monitors and a cgroup with little memory.
pub(super) struct Stage {
    place: Place,
    watchers: Vec<Watcher>,
    limited: Cgroup,
    inside: Way,
    _world: Option<World>,
    scratch: Cgroup,
    victim: PathBuf,
    machine: Machine,
}

struct Watcher {
    means: Means,
    monitor: Monitor,
    /// What it said up to here belongs to cases before.
    judged: usize,
}

/// A scene that has been played.
struct Played {
    truth: Truth,
    counted: u64,
    kills: Vec<Instant>,
    facts: Facts,
}

impl Stage {
    /// Sets it up; `Err` with what this means for its cases.
    pub(super) fn start(place: Place, plan: &Plan) -> Result<Self, Finding> {
        match caught(|| Self::set_up(place, plan)) {
            Ok(Ok(stage)) => Ok(stage),
            Ok(Err(reason)) => Err(Finding::Impossible { reason }),
            Err(reason) => Err(Finding::Broken { reason }),
        }
    }

    fn set_up(place: Place, plan: &Plan) -> Result<Self, String> {
        let machine = plan.machine;
        if place == Place::Top && machine == Machine::Shared {
            return Err(
                "a monitor of the whole machine would tell of other people's kills; `cargo xtask vm` has it".into()
            );
        }
        if matches!(place, Place::Container | Place::NoTracefs) {
            World::available()?;
        }
        let scratch = Cgroup::scratch()?;
        let limited = scratch.limited("limited", LIMIT_MIB);
        limited.lift();
        let world = (place == Place::Container).then(World::new);
        let inside = world.as_ref().map_or_else(Way::here, |world| Way::here().world(world));
        let way = match place {
            Place::Below if machine == Machine::Own => inside.clone(),
            Place::Below | Place::Container => inside.clone().cgroup(&scratch),
            Place::NoTracefs => inside.clone().cgroup(&scratch).mounts(NO_TRACEFS),
            Place::Top => inside.clone(),
        };
        let way = if scratch.version() == Version::Two { way.then(["sh", "-c", SPARED]) } else { way };
        let watch = |means: &Means| {
            let args: &[&str] = if *means == Means::Fallback { &["--no-bpf"] } else { &[] };
            let monitor = Monitor::start_program(&way, &plan.krunner, args);
            Watcher { means: *means, judged: monitor.said().len(), monitor }
        };
        let watchers = plan.means.iter().map(watch).collect();
        Ok(Self { place, watchers, limited, inside, _world: world, scratch, victim: plan.victim.clone(), machine })
    }

    /// Plays a case and scores each monitor.
    pub(super) fn run(&mut self, case: &Case) -> Vec<Outcome> {
        let mut attempt = 1;
        let findings = loop {
            let before = self.limited.oom_kills();
            let played = caught(|| self.play(case.play));
            if let Err(reason) = caught(|| self.limited.clear()) {
                eprintln!("{}: {reason}", case.name);
            }
            match played {
                Ok(Ok(played)) => break self.judge(&played),
                Ok(Err(reason)) => break self.all(&Finding::Impossible { reason }),
                Err(reason) if attempt == ATTEMPTS => break self.all(&Finding::Broken { reason }),
                Err(reason) => eprintln!("{}, attempt {attempt} of {ATTEMPTS}: {reason}", case.name),
            }
            attempt += 1;
            let kills = self.limited.oom_kills() - before;
            self.watchers.iter_mut().for_each(|watcher| watcher.forget(kills));
        };
        let named = self.watchers.iter().zip(findings);
        named.map(|(watcher, finding)| Outcome { case: case.name.to_owned(), means: watcher.means, finding }).collect()
    }

    fn all(&self, finding: &Finding) -> Vec<Finding> {
        self.watchers.iter().map(|_| finding.clone()).collect()
    }

    /// Ends the monitors. They have nothing left to say.
    pub(super) fn end(mut self) -> Vec<Outcome> {
        let ended = self.watchers.iter_mut().filter_map(|watcher| {
            let reason = caught(|| watcher.end()).unwrap_or_else(Some)?;
            let case = format!("end of {:?}", self.place);
            Some(Outcome { case, means: watcher.means, finding: Finding::Broken { reason } })
        });
        ended.collect()
    }

    fn ground(&self) -> Ground<'_> {
        Ground {
            limited: &self.limited,
            scratch: &self.scratch,
            inside: &self.inside,
            victim: &self.victim,
            machine: self.machine,
        }
    }

    fn play(&self, play: fn(&Ground) -> Result<Truth, String>) -> Result<Played, String> {
        self.limited.fit();
        let before = self.limited.oom_kills();
        // In a pid namespace of their own monitors and scenes number processes otherwise than the log.
        let mut log = if self.place == Place::Container { None } else { KernelLog::follow() };
        let clock = KillClock::start(self.limited.counter());
        let truth = play(&self.ground());
        let kills = clock.stop();
        let truth = truth?;
        let counted = self.limited.oom_kills() - before;
        assert!(truth.agrees_with(counted), "the kernel counts {counted} kills: {truth:?}");
        let logged = log.as_mut().and_then(KernelLog::take);
        let cgroups = [self.limited.path_in_hierarchy(), self.limited.charged_in_hierarchy()];
        let facts = Facts { logged, cgroups: cgroups.map(|path| path.display().to_string()) };
        Ok(Played { truth, counted, kills, facts })
    }

    fn judge(&mut self, played: &Played) -> Vec<Finding> {
        for watcher in &mut self.watchers {
            let due = due(watcher.means, &played.truth, played.counted);
            // What is missed or broken shows below.
            let _ = caught(|| watcher.listen(|heard| heard.accounted() >= due));
        }
        let sentinel = caught(|| {
            self.limited.fit();
            self.ground().scene(&["eat", TOO_MUCH, "--name", "sentinel", "--role", "sentinel"]).end().pid("sentinel")
        });
        let machine = self.machine;
        let judge = |watcher: &mut Watcher| {
            let sentinel = sentinel.as_ref().map_err(|reason| format!("the sentinel: {reason}"))?;
            match watcher.monitor.needs_bpf() {
                Err(reason) if watcher.means == Means::Bpf && machine == Machine::Shared => {
                    Ok(Finding::Impossible { reason })
                }
                Err(reason) if watcher.means == Means::Bpf => Err(reason),
                _ => caught(|| watcher.judge(played, *sentinel)),
            }
        };
        let findings: Vec<_> = self.watchers.iter_mut().map(judge).collect();
        if played.truth.groups > 0 {
            // Not before: a monitor looks at the setting after the kill.
            caught(|| self.limited.group(false)).ok();
        }
        findings.into_iter().map(|judged| judged.unwrap_or_else(|reason| Finding::Broken { reason })).collect()
    }
}

/// What a monitor has said of a case so far.
struct Heard {
    told: Vec<Told>,
    /// Kills that the monitor has no name for.
    unnamed: u64,
    /// What else it said.
    others: Vec<String>,
}

impl Heard {
    /// Kills that the monitor is done with.
    fn accounted(&self) -> u64 {
        self.told.len() as u64 + self.unnamed
    }
}

impl Watcher {
    fn judge(&mut self, played: &Played, sentinel: u32) -> Finding {
        let due = due(self.means, &played.truth, played.counted);
        // Without BPF somebody else may be named in its place, or nobody.
        let may_err = self.means == Means::Fallback;
        self.listen(|heard| {
            let is_told = heard.told.iter().any(|told| told.pid == sentinel);
            is_told || may_err && heard.accounted() > due
        });
        let mut heard = self.heard();
        self.judged = self.monitor.said().len();
        let count = heard.told.len();
        heard.told.retain(|told| told.pid != sentinel);
        let is_sentinel_told = count > heard.told.len();
        let mut score = judge(self.means, &played.truth, played.counted, &heard.told, &played.kills, is_sentinel_told);
        if self.means == Means::Bpf {
            score.problems.extend(facts::problems(&heard.told, &played.facts));
        }
        score.problems.extend(heard.others);
        Finding::Judged(Box::new(score))
    }

    /// What it tells of so many kills belongs to no case.
    fn forget(&mut self, kills: u64) {
        let _ = caught(|| self.listen(|heard| heard.accounted() >= kills));
        self.judged = self.monitor.said().len();
    }

    /// Until it is enough, or much time has passed.
    fn listen(&mut self, enough: impl Fn(&Heard) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.heard();
            let left = deadline.saturating_duration_since(Instant::now());
            if enough(&heard) || left.is_zero() {
                return;
            }
            self.monitor.within(left, "a report", |_| true);
        }
    }

    fn heard(&self) -> Heard {
        let mut heard = Heard { told: Vec::new(), unnamed: 0, others: Vec::new() };
        let lines = self.monitor.said().iter().zip(self.monitor.heard()).skip(self.judged);
        for (line, at) in lines {
            if line["event"] == "oom_kill" {
                heard.told.extend(reported(line, *at));
                continue;
            }
            if line["event"] == "oom_kills_unattributed" {
                heard.unnamed += line["count"].as_u64().unwrap_or(0);
            } else {
                heard.others.push(line.to_string());
            }
        }
        heard
    }

    /// `None` when it ended as it should.
    fn end(&mut self) -> Option<String> {
        let status = self.monitor.end();
        let left = self.heard();
        if !status.success() {
            return Some(format!("the monitor ended with {status}: {}", self.monitor.stderr()));
        }
        let more: Vec<_> = left.told.iter().map(|told| format!("{} ({})", told.pid, told.text)).collect();
        (!more.is_empty()).then(|| format!("told of after the last case: {}", more.join(", ")))
    }
}

/// The victim of a report, and those killed along with it.
fn reported(line: &Value, heard: Instant) -> Vec<Told> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = |dead: &Value, confidence: String| Told {
        pid: dead["pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or(0),
        text: format!("{} {}", text(&dead["name"]), text(&dead["cmdline"])),
        confidence,
        heard,
        memory: memory(dead),
        cgroup: line["cgroup"]["path"].as_str().map(ToOwned::to_owned),
    };
    let victim = told(&line["victim"], text(&line["confidence"]));
    let members = line["members"].as_array().into_iter().flatten().map(|member| told(member, "co-victim".into()));
    std::iter::once(victim).chain(members).collect()
}

fn memory(victim: &Value) -> Option<Memory> {
    let kib = |name: &str| Some(victim[name].as_u64()? / 1024);
    Some(Memory { anon_kib: kib("anon_bytes")?, file_kib: kib("file_bytes")?, shmem_kib: kib("shmem_bytes")? })
}

/// In version 2 the monitor is charged to the limit of its victims. When it asks for memory while a dead victim has not given
/// back its own, it is the only one left to choose. Whether a monitor survives is not what is measured here.
const SPARED: &str = "echo -1000 > /proc/self/oom_score_adj; exec \"$0\" \"$@\"";

/// Unmounts it in the monitor's own mount namespace.
const NO_TRACEFS: &str = "for at in /sys/kernel/tracing /sys/kernel/debug/tracing /sys/kernel/debug; do
    while grep -q \" $at \" /proc/self/mounts; do umount -l $at; done
done";

/// The harness panics where it cannot go on; a case that cannot does not end the battery.
fn caught<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".into())
    })
}
