//! Runs cases in a cgroup with little memory, under one monitor per mode.
//!
//! A harness runs many cases because starting a tracer is expensive, above all on an emulated machine. A marker kill ends each
//! case: output up to the marker's report belongs to the case, later output to the next one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::case::{Case, Placement};
use super::details::{self, ExpectedDetails};
use super::facts;
use super::kernel_log::{KernelLog, Memory};
use super::kill_clock::KillClock;
use super::limit::{ExpectedLimit, ReportedLimit};
use super::outcome::{CaseResult, MonitorMode, Outcome, Score};
use super::run::{Machine, MatrixPlan};
use super::scenario::{Fixture, TOO_MUCH};
use super::scoring::{ActualKills, ReportedVictim, most_reports, score_reports};
use crate::cgroup::{Cgroup, Version};
use crate::flaky::Retry;
use crate::{LaunchMethod, Monitor, Sandbox};

/// Small because several such cgroups may exist on a machine.
const LIMIT_MIB: u64 = 32;

/// Longer than the 10 s after which the monitor reports a kill as unattributed.
const PATIENCE: Duration = Duration::from_secs(15);

/// A scenario that took an unexpected course is retried: a victim's memory is not free at once, and another process that
/// allocates meanwhile may be killed as well (`exit_mmap` in mm/mmap.c sets `MMF_OOM_SKIP` before the pages are free).
const ATTEMPTS: usize = 3;

/// The monitors and the limited cgroup.
pub(super) struct Harness {
    placement: Placement,
    observers: Vec<Observer>,
    limited: Cgroup,
    inside: LaunchMethod,
    _sandbox: Option<Sandbox>,
    scratch: Cgroup,
    victim: PathBuf,
    machine: Machine,
}

struct Observer {
    mode: MonitorMode,
    monitor: Monitor,
    /// The number of output lines that belong to earlier cases.
    consumed: usize,
    /// PIDs of the markers so far.
    markers: Vec<u32>,
}

/// The ground truth of a finished scenario.
struct ScenarioRun {
    actual: ActualKills,
    counted: u64,
    kills: Vec<Instant>,
    expected: ExpectedDetails,
}

impl Harness {
    /// Starts the monitors. `Err` is the result of every case with this placement.
    pub(super) fn start(placement: Placement, plan: &MatrixPlan) -> Result<Self, CaseResult> {
        match caught(|| Self::set_up(placement, plan)) {
            Ok(Ok(harness)) => Ok(harness),
            Ok(Err(reason)) => Err(CaseResult::Unavailable { reason }),
            Err(reason) => Err(CaseResult::Failed { reason }),
        }
    }

    fn set_up(placement: Placement, plan: &MatrixPlan) -> Result<Self, String> {
        let machine = plan.machine;
        if placement == Placement::Top && machine == Machine::Shared {
            return Err("a machine-wide monitor would report unrelated kills; `cargo xtask vm` runs it".into());
        }
        if matches!(placement, Placement::Container | Placement::NoTracefs) {
            Sandbox::available()?;
        }
        let scratch = Cgroup::scratch()?;
        let limited = scratch.limited("limited", LIMIT_MIB);
        limited.lift();
        let sandbox = (placement == Placement::Container).then(Sandbox::new);
        let inside =
            sandbox.as_ref().map_or_else(LaunchMethod::direct, |sandbox| LaunchMethod::direct().sandbox(sandbox));
        let launch = match placement {
            Placement::Below if machine == Machine::Dedicated => inside.clone(),
            Placement::Below | Placement::Container => inside.clone().cgroup(&scratch),
            Placement::NoTracefs => inside.clone().cgroup(&scratch).mounts(NO_TRACEFS),
            Placement::Top => inside.clone(),
        };
        let launch = if scratch.version() == Version::Two { launch.then(["sh", "-c", UNKILLABLE]) } else { launch };
        let watch = |mode: &MonitorMode| {
            let args: &[&str] = if *mode == MonitorMode::Fallback { &["--no-bpf"] } else { &[] };
            let monitor = Monitor::start_program(&launch, &plan.krunner, args);
            Observer { mode: *mode, consumed: monitor.lines().len(), markers: Vec::new(), monitor }
        };
        let observers = plan.modes.iter().map(watch).collect();
        Ok(Self {
            placement,
            observers,
            limited,
            inside,
            _sandbox: sandbox,
            scratch,
            victim: plan.victim.clone(),
            machine,
        })
    }

    /// Runs a case and scores each monitor.
    pub(super) fn run(&mut self, name: &str, case: &Case) -> Vec<Outcome> {
        let mut attempt = 1;
        let results = loop {
            let before = self.limited.oom_kills();
            let scenario_run = caught(|| self.run_scenario(case.run));
            if let Err(reason) = caught(|| self.limited.clear()) {
                eprintln!("{name}: {reason}");
            }
            let given_up = match scenario_run {
                Ok(Ok(scenario_run)) => break self.score(&scenario_run),
                Ok(Err(reason)) => Some(CaseResult::Unavailable { reason }),
                Err(reason) if attempt == ATTEMPTS => Some(CaseResult::Failed { reason }),
                Err(reason) => {
                    Retry::new(format!("oom-matrix::{name}"), &reason, attempt, ATTEMPTS).record();
                    None
                }
            };
            // Otherwise its reports would count for what runs next.
            let kills = self.limited.oom_kills() - before;
            self.observers.iter_mut().for_each(|observer| observer.skip(kills));
            if let Some(result) = given_up {
                break self.same_for_all(&result);
            }
            attempt += 1;
        };
        let named = self.observers.iter().zip(results);
        named.map(|(observer, result)| Outcome { case: name.to_owned(), mode: observer.mode, result }).collect()
    }

    fn same_for_all(&self, result: &CaseResult) -> Vec<CaseResult> {
        self.observers.iter().map(|_| result.clone()).collect()
    }

    /// Stops the monitors. Any further report is a failure.
    pub(super) fn end(mut self) -> Vec<Outcome> {
        let ended = self.observers.iter_mut().filter_map(|observer| {
            let result = caught(|| observer.end()).unwrap_or_else(|reason| Some(CaseResult::Failed { reason }))?;
            Some(Outcome { case: format!("end of {:?}", self.placement), mode: observer.mode, result })
        });
        ended.collect()
    }

    fn fixture(&self) -> Fixture<'_> {
        Fixture {
            limited: &self.limited,
            scratch: &self.scratch,
            inside: &self.inside,
            victim: &self.victim,
            machine: self.machine,
        }
    }

    fn run_scenario(&self, run: fn(&Fixture) -> Result<ActualKills, String>) -> Result<ScenarioRun, String> {
        self.limited.fit();
        let before = self.limited.oom_kills();
        let limit_before = self.limited.limit_in_force();
        // In a PID namespace of their own, monitors and scenarios see other PIDs than the kernel log has.
        let mut log = if self.placement == Placement::Container { None } else { KernelLog::follow() };
        let clock = KillClock::start(self.limited.counter());
        let actual = run(&self.fixture());
        let kills = clock.stop();
        let mut actual = actual?;
        match self.machine {
            Machine::Shared => actual.facts.extend_from_slice(facts::ALWAYS),
            // Slow: the process that launched the victim may be the one that allocates at the limit.
            Machine::Dedicated => actual.facts.clear(),
        }
        let counted = self.limited.oom_kills() - before;
        assert!(actual.agrees_with(counted), "the kernel counted {counted} kills: {actual:?}");
        let logged = log.as_mut().and_then(KernelLog::take);
        let cgroups = [self.limited.path_in_hierarchy(), self.limited.charged_in_hierarchy()];
        let limit = self.expected_limit(limit_before);
        let expected = ExpectedDetails { logged, cgroups: cgroups.map(|path| path.display().to_string()), limit };
        Ok(ScenarioRun { actual, counted, kills, expected })
    }

    /// The limit that the scenario hit. Call it after the scenario.
    fn expected_limit(&self, before: Option<u64>) -> ExpectedLimit {
        let after = self.limited.limit_in_force();
        // In cgroup v2 the scratch cgroup has the limit. `set_up` decides where the monitors run.
        let are_monitors_in_scratch = self.placement == Placement::Container || self.machine == Machine::Shared;
        let scope = match (after, self.limited.version()) {
            (None, _) => "machine",
            (Some(_), Version::Two) if are_monitors_in_scratch => "container",
            (Some(_), _) => "inner",
        };
        ExpectedLimit { scope, limit_bytes: after.filter(|_| after == before) }
    }

    fn score(&mut self, scenario_run: &ScenarioRun) -> Vec<CaseResult> {
        for observer in &mut self.observers {
            let most = most_reports(observer.mode, &scenario_run.actual, scenario_run.counted);
            // A timeout or a panic shows in the score below.
            let _ = caught(|| observer.read_until(|output| output.accounted() >= most));
        }
        let marker = caught(|| {
            self.limited.fit();
            self.fixture().scenario(&["eat", TOO_MUCH, "--name", "marker", "--role", "marker"]).end().pid("marker")
        });
        let machine = self.machine;
        let score = |observer: &mut Observer| {
            let marker = marker.as_ref().map_err(|reason| format!("the marker: {reason}"))?;
            match observer.monitor.needs_bpf() {
                Err(reason) if observer.mode == MonitorMode::Bpf && machine == Machine::Shared => {
                    Ok(CaseResult::Unavailable { reason })
                }
                Err(reason) if observer.mode == MonitorMode::Bpf => Err(reason),
                _ => caught(|| observer.score(scenario_run, *marker)),
            }
        };
        let results: Vec<_> = self.observers.iter_mut().map(score).collect();
        if scenario_run.actual.groups > 0 {
            // Only now: a monitor reads the setting after the kill.
            caught(|| self.limited.group(false)).ok();
        }
        results.into_iter().map(|result| result.unwrap_or_else(|reason| CaseResult::Failed { reason })).collect()
    }
}

/// What a monitor has printed during a case so far.
struct MonitorOutput {
    /// The reports, as they were printed.
    lines: Vec<Value>,
    /// The victims in them.
    reported: Vec<ReportedVictim>,
    /// Kills that the monitor reported without naming a process.
    unattributed: u64,
    /// Lines that are not expected in any case.
    others: Vec<String>,
}

impl MonitorOutput {
    /// Kills that were reported, with or without a name.
    fn accounted(&self) -> u64 {
        self.reported.len() as u64 + self.unattributed
    }
}

impl Observer {
    fn score(&mut self, scenario_run: &ScenarioRun, marker: u32) -> CaseResult {
        self.markers.push(marker);
        let most = most_reports(self.mode, &scenario_run.actual, scenario_run.counted);
        // Without BPF the monitor may name another process in place of the marker, or none.
        let may_be_wrong = self.mode == MonitorMode::Fallback;
        self.read_until(|output| {
            let is_marker_reported = output.reported.iter().any(|reported| reported.pid == marker);
            is_marker_reported || may_be_wrong && output.accounted() > most
        });
        let mut output = self.output();
        self.consumed = self.monitor.lines().len();
        let count = output.reported.len();
        output.reported.retain(|reported| reported.pid != marker);
        let is_marker_reported = count > output.reported.len();
        let mut score = score_reports(
            self.mode,
            &scenario_run.actual,
            scenario_run.counted,
            &output.reported,
            &scenario_run.kills,
            is_marker_reported,
        );
        if self.mode == MonitorMode::Bpf {
            score.problems.extend(details::problems(&output.reported, &scenario_run.expected));
            let of_case = output.lines.iter().filter(|line| line["victim"]["pid"] != marker);
            score.problems.extend(of_case.flat_map(|line| facts::problems(&scenario_run.actual.facts, line)));
        }
        score.problems.extend(output.others);
        CaseResult::Scored(Box::new(score))
    }

    /// Discards the reports of the next `kills` kills.
    fn skip(&mut self, kills: u64) {
        let _ = caught(|| self.read_until(|output| output.accounted() >= kills));
        self.consumed = self.monitor.lines().len();
    }

    /// Reads output until `is_enough` holds, for at most [`PATIENCE`].
    fn read_until(&mut self, is_enough: impl Fn(&MonitorOutput) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.output();
            let left = deadline.saturating_duration_since(Instant::now());
            if is_enough(&output) || left.is_zero() {
                return;
            }
            self.monitor.within(left, "a report", |_| true);
        }
    }

    fn output(&self) -> MonitorOutput {
        let mut output = MonitorOutput { lines: Vec::new(), reported: Vec::new(), unattributed: 0, others: Vec::new() };
        let lines = self.monitor.lines().iter().zip(self.monitor.received_at()).skip(self.consumed);
        for (line, received_at) in lines {
            if line["event"] == "oom_kill" {
                output.reported.extend(reported(line, *received_at));
                output.lines.push(line.clone());
                continue;
            }
            // A warning that usage is near the limit is not about a kill.
            if line["event"] == "memory_warning" {
                continue;
            }
            if line["event"] == "oom_kills_unattributed" {
                output.unattributed += line["count"].as_u64().unwrap_or(0);
            } else {
                output.others.push(line.to_string());
            }
        }
        output
    }

    /// Stops the monitor. Returns `None` unless it failed or reported another process.
    fn end(&mut self) -> Option<CaseResult> {
        let status = self.monitor.end();
        let rest = self.output();
        if !status.success() {
            let reason = format!("the monitor exited with {status}: {}", self.monitor.stderr());
            return Some(CaseResult::Failed { reason });
        }
        // Without BPF a marker may be counted first and named later.
        let unexpected = rest.reported.iter().filter(|reported| !self.markers.contains(&reported.pid));
        let more: Vec<_> = unexpected.map(|reported| format!("{} ({})", reported.pid, reported.text)).collect();
        if more.is_empty() {
            return None;
        }
        let reason = format!("reported after the last case: {}", more.join(", "));
        if self.mode == MonitorMode::Bpf {
            return Some(CaseResult::Failed { reason });
        }
        // Without BPF the monitor may name another process for a kill. As in a case, that counts as a wrong report.
        eprintln!("{reason}");
        let wrong = more.len() as u64;
        Some(CaseResult::Scored(Box::new(Score { reported: wrong, wrong, ..Score::default() })))
    }
}

/// The victim of a report and the members of its group kill.
fn reported(line: &Value, received_at: Instant) -> Vec<ReportedVictim> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reported = |process: &Value, confidence: String| ReportedVictim {
        pid: process["pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or(0),
        text: format!("{} {}", text(&process["name"]), text(&process["cmdline"])),
        confidence,
        received_at,
        memory: memory(process),
        cgroup: line["cgroup"]["path"].as_str().map(ToOwned::to_owned),
        limit: ReportedLimit::read(line),
    };
    let victim = reported(&line["victim"], text(&line["confidence"]));
    let members = line["members"].as_array().into_iter().flatten().map(|member| reported(member, "co-victim".into()));
    std::iter::once(victim).chain(members).collect()
}

fn memory(victim: &Value) -> Option<Memory> {
    let kib = |name: &str| Some(victim[name].as_u64()? / 1024);
    Some(Memory { anon_kib: kib("anon_bytes")?, file_kib: kib("file_bytes")?, shmem_kib: kib("shmem_bytes")? })
}

/// In cgroup v2 the monitor is charged to the limit of its victims. If it allocates before a victim's memory is free, it is the
/// only candidate left. The matrix does not measure whether a monitor survives.
const UNKILLABLE: &str = "echo -1000 > /proc/self/oom_score_adj; exec \"$0\" \"$@\"";

/// Runs in the monitor's own mount namespace.
const NO_TRACEFS: &str = "for at in /sys/kernel/tracing /sys/kernel/debug/tracing /sys/kernel/debug; do
    while grep -q \" $at \" /proc/self/mounts; do umount -l $at; done
done";

/// Turns a panic into an error, so that a failed case does not end the run.
fn caught<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "panic without a message".into())
    })
}
