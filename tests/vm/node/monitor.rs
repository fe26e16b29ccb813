//! The recipes for a whole node: the monitor must report every OOM kill of the machine, and no other process.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use krunner_tests::node_vm::ContainerOutcome;
use krunner_tests::oom_matrix::KernelLog;
use krunner_tests::wait;
use serde_json::Value;

use crate::command::{command, outcome};
use crate::engine::{Container, Engine, Launch};

/// What a recipe starts to trace the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Monitor,
    Node,
}

impl Program {
    /// The container's name in the recipes.
    fn container(self) -> &'static str {
        match self {
            Self::Monitor => "krunner-monitor",
            Self::Node => "krunner-node",
        }
    }

    /// The first event that it prints once it traces.
    fn started(self) -> &'static str {
        match self {
            Self::Monitor => "watching",
            Self::Node => "node_started",
        }
    }
}

/// Includes the start of the tracer.
const PATIENCE: Duration = Duration::from_mins(1);

/// A process in a unit of systemd that is killed.
const HOG: &[&str] = &["systemd-run", "--quiet", "--scope", "--property=MemoryMax=64M", "./victim", "eat", "96"];

/// A running monitor of the machine and the kills since its start.
pub(crate) struct Monitor {
    program: Program,
    pub(crate) container: Container,
    began: Instant,
    outcome: ContainerOutcome,
    log: KernelLog,
    logged: BTreeSet<u32>,
}

impl Monitor {
    /// Carries out a recipe and waits until the monitor watches.
    pub(crate) fn start(program: Program, engine: Engine, recipe: &'static str) -> Result<Self, String> {
        let began = Instant::now();
        let started = engine.start(program.container(), Launch::Recipe(recipe));
        let container = started.inspect_err(|_| engine.forget(program.container()))?;
        let (name, container_name) = (engine.name().to_owned(), file_name(recipe).to_owned());
        let outcome = ContainerOutcome { engine: name, container: container_name, ..Default::default() };
        let log = KernelLog::follow().ok_or("the kernel log is not readable")?;
        let mut monitor = Self { program, container, began, outcome, log, logged: BTreeSet::new() };
        let started = monitor.until(|line| line["event"] == program.started());
        match started {
            // A node has no other tracer.
            Ok(line) => line["tracer"].as_str().unwrap_or("bpf").clone_into(&mut monitor.outcome.tracer),
            Err(problem) => return monitor.container.remove().and(Err(problem)),
        }
        Ok(monitor)
    }

    /// Reads the kernel's log before it is overwritten.
    pub(crate) fn take_note(&mut self) -> Result<(), String> {
        self.logged.extend(self.log.pids()?);
        Ok(())
    }

    /// Causes one kill outside of any container.
    pub(crate) fn kill(&mut self) -> Result<(), String> {
        outcome(&mut command(HOG))?;
        self.take_note()
    }

    /// Compares what it reported with what the kernel logged, and removes the container.
    pub(crate) fn end(mut self) -> ContainerOutcome {
        let scored = self.score();
        let removed = self.container.remove();
        self.outcome.problems.extend([scored, removed].into_iter().filter_map(Result::err));
        self.outcome.seconds = self.began.elapsed().as_secs_f64();
        self.outcome
    }

    /// Adds problems to the outcome.
    pub(crate) fn blame(&mut self, problems: impl IntoIterator<Item = String>) {
        self.outcome.problems.extend(problems);
    }

    /// The kills that it printed so far, after all that the kernel logged have been printed or were waited for.
    pub(crate) fn kills(&mut self) -> Result<Vec<Value>, String> {
        self.take_note()?;
        let logged = self.logged.clone();
        let is_complete = |lines: &Vec<Value>| logged.is_subset(&victims(lines));
        let complete = wait::within(PATIENCE, || self.lines().ok().filter(is_complete));
        let lines = complete.map_or_else(|| self.lines(), Ok)?;
        Ok(lines.into_iter().filter(|line| line["event"] == "oom_kill").collect())
    }

    fn score(&mut self) -> Result<(), String> {
        let lines = self.kills()?;
        let logged = self.logged.clone();
        let reported = victims(&lines);
        let confidences: BTreeSet<&str> = lines.iter().filter_map(|line| line["confidence"].as_str()).collect();
        self.outcome.kills = logged.len() as u64;
        self.outcome.reported = reported.len() as u64;
        self.outcome.correct = reported.intersection(&logged).count() as u64;
        self.outcome.wrong = self.outcome.reported - self.outcome.correct;
        self.outcome.confidence = confidences.into_iter().collect::<Vec<_>>().join(", ");
        if self.outcome.tracer != "bpf" || self.outcome.confidence != "confirmed" {
            return Err("a recipe for a node promises BPF and `confirmed`".to_owned());
        }
        if reported == logged {
            return Ok(());
        }
        let missed: Vec<_> = logged.difference(&reported).collect();
        Err(format!("missed: {missed:?}, wrong: {:?}", reported.difference(&logged).collect::<Vec<_>>()))
    }

    fn until(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value, String> {
        let found = wait::within(PATIENCE, || self.lines().ok()?.into_iter().find(&wanted));
        found.ok_or_else(|| format!("the monitor printed {:?}", self.lines()))
    }

    fn lines(&self) -> Result<Vec<Value>, String> {
        let text = self.container.logs(self.program.container())?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

/// What selects the recipe.
pub(crate) fn name(engine: Engine, recipe: &str) -> String {
    format!("{} {}", engine.name(), file_name(recipe))
}

/// What the table calls the recipe.
pub(crate) fn file_name(recipe: &str) -> &str {
    recipe.rsplit('/').next().unwrap_or(recipe)
}

/// The processes in all reports: the victims, and who was killed with them.
fn victims(lines: &[Value]) -> BTreeSet<u32> {
    let reports = lines.iter().filter(|line| line["event"] == "oom_kill");
    let pid = |process: &Value| process["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let of = |report: &Value| -> Vec<u32> {
        let members = report["members"].as_array().cloned().unwrap_or_default();
        [&report["victim"]].into_iter().chain(&members).filter_map(pid).collect()
    };
    reports.flat_map(of).collect()
}
