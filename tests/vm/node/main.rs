//! The tests in a virtual machine of `cargo xtask vm --node`: real container engines under systemd and cgroup v2.
//!
//! ```text
//!  tests.service ─▶ images (dist/Dockerfile) ─▶ a monitor of the node, from its recipe ───────────────┐ reports
//!                     └─▶ for each trial: engine ─▶ container ─▶ session ─▶ OOM kills ─▶ reports ──┐  │
//!                                                                kernel log (truth) ───────────────┴──┴─▶ /dev/ttyS1
//! ```
//!
//! `trial` is the table of containers, `engine` how each engine is called, `session` drives a session from outside. What differs from
//! it: `group` and `oomd`, which end whole containers (`home` outlives them), `monitor`, `served`, the sessions of `krunner node`,
//! `host_causes`, and `outside`, which uses the servers of a session.

#![forbid(unsafe_code)]

mod command;
mod engine;
mod group;
mod home;
mod host_causes;
mod images;
mod monitor;
mod older;
mod oomd;
mod outside;
mod served;
mod session;
mod trial;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use krunner_tests::node_vm::{ContainerOutcome, NodeEvent};

use engine::{Engine, ROOTLESS};
use host_causes::HostCause;
use monitor::{Monitor, Program};
use served::{NODES, Node};
use trial::{REMAPPED, SWAPPING, TRIALS, Trial};

const LINE: &str = "/dev/ttyS1";

/// Names of containers to try, one per line; empty for all.
const ONLY: &str = "only";

/// The monitor that runs beside the sessions.
const MONITOR: &str = "recipes/docker/node-capabilities.sh";

/// The others, one after the other.
const MONITORS: &[(Engine, &str)] = &[
    (Engine::Docker, "recipes/docker/node-privileged.sh"),
    (Engine::Cri, "recipes/kubernetes/node-capabilities.yaml"),
    (Engine::Cri, "recipes/kubernetes/node-privileged.yaml"),
];

fn main() -> ExitCode {
    if fs::metadata(LINE).is_err() || fs::metadata("recipes").is_err() {
        eprintln!("this program runs in a virtual machine of `cargo xtask vm --node`; it does nothing elsewhere");
        return ExitCode::from(2);
    }
    let last = match run() {
        Ok(()) => NodeEvent::Done,
        Err(reason) => NodeEvent::Failed { reason },
    };
    emit(&last);
    ExitCode::SUCCESS
}

fn run() -> Result<(), String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    emit(&NodeEvent::Booted { kernel: kernel.trim().to_owned() });
    let only = fs::read_to_string(ONLY).unwrap_or_default();
    let only: Vec<&str> = only.lines().collect();
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part));
    let wanted = |trials: &[Trial]| trials.iter().copied().filter(|trial| is_wanted(&trial.name())).collect::<Vec<_>>();
    // On an emulated processor, small pages are slow to allocate and slow to free.
    command::write("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;

    images::prepare()?;
    let mut node = Monitor::start(Program::Monitor, Engine::Docker, MONITOR)?;
    let (rootless, others): (Vec<Trial>, Vec<Trial>) =
        wanted(TRIALS).into_iter().partition(|trial| trial.engine == Engine::Rootless);
    for trial in others {
        if is_possible(&trial.name(), trial.impossible_because()) {
            try_container(&mut node, || trial.run())?;
        }
    }
    if is_wanted(&format!("{} {}", Engine::Cri.name(), group::CONTAINER)) {
        try_container(&mut node, group::run)?;
    }
    for cause in HostCause::ALONE.into_iter().filter(|cause| is_wanted(&cause.name())) {
        if is_possible(&cause.name(), cause.impossible_because()) {
            try_container(&mut node, || cause.run())?;
        }
    }
    if is_wanted(&format!("{} {}", Engine::Docker.name(), oomd::CONTAINER)) {
        try_container(&mut node, oomd::run)?;
    }
    let outside = format!("{} {}", Engine::Docker.name(), outside::CONTAINER);
    if is_wanted(&outside) && is_possible(&outside, older::refuses_bpf_to_a_user()) {
        try_container(&mut node, outside::run)?;
    }
    let swapping = wanted(SWAPPING);
    if !swapping.is_empty() {
        images::swap()?;
    }
    for trial in swapping {
        try_container(&mut node, || trial.run())?;
    }
    images::no_swap()?;
    let nodes: Vec<&Node> = NODES.iter().filter(|node| node.is_wanted(is_wanted)).collect();
    if !rootless.is_empty() || !nodes.is_empty() {
        images::prepare_rootless(ROOTLESS)?;
    }
    for trial in rootless {
        try_container(&mut node, || trial.run())?;
    }
    node.kill()?;
    report(node.end());
    for (engine, recipe) in MONITORS.iter().filter(|(engine, recipe)| is_wanted(&monitor::name(*engine, recipe))) {
        report(try_monitor(*engine, recipe));
    }
    for node in nodes {
        node.run()?;
    }
    let remapped = wanted(REMAPPED);
    if !remapped.is_empty() {
        images::remap()?;
    }
    for trial in remapped {
        report(trial.run());
    }
    Ok(())
}

/// Says so if this machine cannot try it.
fn is_possible(name: &str, reason: Option<&'static str>) -> bool {
    if let Some(reason) = reason {
        emit(&NodeEvent::NotTried { name: name.to_owned(), reason: reason.to_owned() });
    }
    reason.is_none()
}

fn try_container(node: &mut Monitor, trial: impl FnOnce() -> ContainerOutcome) -> Result<(), String> {
    report(trial());
    node.take_note()
}

fn try_monitor(engine: Engine, recipe: &'static str) -> ContainerOutcome {
    match Monitor::start(Program::Monitor, engine, recipe) {
        Ok(mut monitor) => {
            let killed = monitor.kill();
            let mut outcome = monitor.end();
            outcome.problems.extend(killed.err());
            outcome
        }
        Err(problem) => failed(engine, recipe, problem),
    }
}

/// What a measurement finds in a container, and how long it took.
fn measured(
    engine: Engine,
    container: &str,
    measure: impl FnOnce(&mut ContainerOutcome) -> Result<(), String>,
) -> ContainerOutcome {
    let began = Instant::now();
    let (engine, container) = (engine.name().to_owned(), container.to_owned());
    let mut outcome = ContainerOutcome { engine, container, ..Default::default() };
    if let Err(problem) = measure(&mut outcome) {
        outcome.problems.push(problem);
    }
    outcome.seconds = began.elapsed().as_secs_f64();
    outcome
}

/// The outcome of a recipe that could not be carried out.
fn failed(engine: Engine, recipe: &str, problem: String) -> ContainerOutcome {
    let (engine, container) = (engine.name().to_owned(), monitor::file_name(recipe).to_owned());
    ContainerOutcome { engine, container, problems: vec![problem], ..Default::default() }
}

fn report(outcome: ContainerOutcome) {
    emit(&NodeEvent::Outcome { outcome });
}

/// Writes a line with one `write`, so that lines do not interleave.
fn emit(event: &NodeEvent) {
    let line = serde_json::to_string(event).expect("events are plain values");
    let written =
        OpenOptions::new().write(true).open(LINE).and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("{LINE}: {error}; {line}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_recipe_is_carried_out() {
        let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../krunner/dist");
        let files = |folder: &str| {
            let entries = fs::read_dir(dist.join(folder)).expect("a folder of recipes");
            entries
                .map(|entry| format!("{folder}/{}", entry.expect("a recipe").file_name().display()))
                .collect::<Vec<_>>()
        };
        let shipped: BTreeSet<String> =
            ["recipes/docker", "recipes/kubernetes", "systemd"].into_iter().flat_map(files).collect();
        let trials = TRIALS.iter().filter_map(Trial::recipe);
        let monitors = MONITORS.iter().map(|(_, recipe)| *recipe).chain([MONITOR]);
        let tried: BTreeSet<String> =
            trials.chain(monitors).chain(NODES.iter().flat_map(served::Node::recipes)).map(str::to_owned).collect();
        assert_eq!(tried, shipped);
    }
}
