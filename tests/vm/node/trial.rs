//! The containers that are tried, and how the reports of a session in one are scored.
//!
//! With BPF every process that the kernel logged is reported once, and no other. Without it there may be no more reports than kills,
//! and the host scores those of all containers together.

use std::collections::BTreeSet;
use std::time::Duration;

use krunner_tests::node_vm::ContainerOutcome;
use krunner_tests::oom_matrix::KernelLog;
use serde_json::Value;

use crate::command::write;
use crate::engine::{AGENT_MIB, Container, Engine, KRUNNER, Launch};
use crate::session::{PATIENCE, Session};
use crate::{measured, older};

/// The name of every session's container.
pub(crate) const NAME: &str = "session";

/// MiB; little, and enough to load the tracer.
const MEMORY_MIB: u64 = 96;

/// MiB; the limit of the recipes of sessions.
const RECIPE_MIB: u64 = 512;

/// MiB; a limit beyond the memory of the machine.
const MORE_THAN_ALL_MIB: u64 = 2048;

/// MiB beyond the limit that a process asks for.
const TOO_MUCH_MIB: u64 = 64;

/// A container and what its session promises.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    pub(crate) engine: Engine,
    pub(crate) container: &'static str,
    launch: Launch,
    /// `None`: as the recipe says.
    promise: Option<Promise>,
}

/// An inferred victim is named within 10 s or not at all, on a processor that is not emulated.
const INFERENCE: Duration = Duration::from_secs(20);

/// What krunner must be able to do in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Promise {
    tracer: &'static str,
    confidence: &'static str,
}

const BPF: Promise = Promise { tracer: "bpf", confidence: "confirmed" };
const INFERRED: Promise = Promise { tracer: "snapshot", confidence: "inferred" };
const SERVED: Promise = Promise { tracer: "node", confidence: "confirmed" };
const PROMISES: [Promise; 3] = [BPF, INFERRED, SERVED];

impl Promise {
    /// Whether every kill is reported, with its victim.
    fn is_exact(self) -> bool {
        self.confidence == BPF.confidence
    }

    /// How long a report may take.
    fn patience(self) -> Duration {
        if self.is_exact() { PATIENCE } else { INFERENCE }
    }
}

pub(crate) const fn recipe(engine: Engine, container: &'static str, file: &'static str) -> Trial {
    Trial { engine, container, launch: Launch::Recipe(file), promise: None }
}

/// A pod of a recipe, with another name.
pub(crate) const fn pod(container: &'static str, file: &'static str, name: &'static str) -> Trial {
    Trial { engine: Engine::Cri, container, launch: Launch::Pod { recipe: file, name }, promise: Some(SERVED) }
}

/// A session without privileges that `krunner node` serves.
pub(crate) const fn served(engine: Engine, container: &'static str, flags: &'static [&'static str]) -> Trial {
    session(engine, container, flags, SERVED)
}

const fn session(engine: Engine, container: &'static str, flags: &'static [&'static str], promise: Promise) -> Trial {
    session_of(MEMORY_MIB, engine, container, flags, promise)
}

const fn session_of(
    memory_mib: u64,
    engine: Engine,
    container: &'static str,
    flags: &'static [&'static str],
    promise: Promise,
) -> Trial {
    let launch = Launch::Session { memory_mib, flags, command: &[KRUNNER, "app"] };
    Trial { engine, container, launch, promise: Some(promise) }
}

/// Those that BPF needs, as Docker and podman take them.
pub(crate) const CAPABILITIES: &[&str] = &["--cap-add", "BPF", "--cap-add", "PERFMON"];
const AS_USER: &[&str] = &["--cap-add", "BPF", "--cap-add", "PERFMON", "--user", "1000:1000"];

/// A container of the agent, with the options of a recipe. Its entrypoint starts as root and becomes a user.
pub(crate) const fn agent(container: &'static str, request: &'static str) -> Trial {
    Trial { engine: Engine::Docker, container, launch: Launch::Agent(request), promise: None }
}

/// Every container with a session.
pub(crate) const TRIALS: &[Trial] = &[
    recipe(Engine::Docker, "session-plain.sh", "recipes/docker/session-plain.sh"),
    recipe(Engine::Docker, "session-capabilities.sh", "recipes/docker/session-capabilities.sh"),
    recipe(Engine::Docker, "session-privileged.sh", "recipes/docker/session-privileged.sh"),
    agent("agent-docker-container-opts.json", "agent/plain.json"),
    session(Engine::Docker, "root, plain", &[], INFERRED),
    session(Engine::Docker, "root, two capabilities", CAPABILITIES, BPF),
    recipe(Engine::Cri, "session-plain.yaml", "recipes/kubernetes/session-plain.yaml"),
    recipe(Engine::Cri, "session-capabilities.yaml", "recipes/kubernetes/session-capabilities.yaml"),
    recipe(Engine::Cri, "session-privileged.yaml", "recipes/kubernetes/session-privileged.yaml"),
    // Without cgroupfs, which it does not mount, a plain container has no kill counter.
    session(Engine::Ctr, "two capabilities", &["--cap-add", "CAP_BPF", "--cap-add", "CAP_PERFMON"], BPF),
    session(Engine::Podman, "plain", &[], INFERRED),
    session(Engine::Podman, "user, two capabilities", AS_USER, BPF),
    session(Engine::Podman, "privileged", &["--privileged"], BPF),
    session(Engine::Rootless, "plain", &[], INFERRED),
    session(Engine::Rootless, "two capabilities", CAPABILITIES, INFERRED),
    session(Engine::Runc, "plain", &[], INFERRED),
    session(Engine::Runc, "two capabilities", &["CAP_BPF", "CAP_PERFMON"], BPF),
    session_of(MORE_THAN_ALL_MIB, Engine::Docker, "machine out of memory, plain", &[], INFERRED),
    session_of(MORE_THAN_ALL_MIB, Engine::Docker, "machine out of memory, two capabilities", CAPABILITIES, BPF),
];

/// Containers that may swap, on a machine with swap.
pub(crate) const SWAPPING: &[Trial] = &[
    session(Engine::Docker, "swap, plain", &["--memory-swap", "128m"], INFERRED),
    session(
        Engine::Docker,
        "swap, two capabilities",
        &["--memory-swap", "128m", "--cap-add", "BPF", "--cap-add", "PERFMON"],
        BPF,
    ),
];

/// The containers of a Docker with `userns-remap`: BPF is not available in a user namespace.
pub(crate) const REMAPPED: &[Trial] = &[
    session(Engine::Docker, "userns-remap, plain", &[], INFERRED),
    session(Engine::Docker, "userns-remap, two capabilities", CAPABILITIES, INFERRED),
];

impl Trial {
    /// What selects it.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.engine.name(), self.container)
    }

    /// Why this machine's engine cannot make such a container; `None` if it can.
    pub(crate) fn impossible_because(&self) -> Option<&'static str> {
        match self.launch {
            Launch::Agent(request) => older::refuses_request(request),
            _ => None,
        }
    }

    /// The file that it carries out.
    #[cfg(test)]
    pub(crate) fn recipe(&self) -> Option<&'static str> {
        match self.launch {
            Launch::Recipe(file) | Launch::Pod { recipe: file, .. } => Some(file),
            _ => None,
        }
    }

    fn promise(&self) -> Result<Promise, String> {
        match (self.promise, self.launch) {
            (Some(promise), _) => Ok(promise),
            (None, Launch::Recipe(file) | Launch::Agent(file)) => promise_of(file),
            _ => Err("no promise".to_owned()),
        }
    }

    /// Whether its privileges are those of a recipe, or of options that one gives the agent. Only there users ask `krunner doctor`.
    fn is_recipe(&self) -> bool {
        !matches!(self.launch, Launch::Session { .. })
    }

    fn limit_mib(&self) -> u64 {
        match self.launch {
            Launch::Session { memory_mib, .. } => memory_mib,
            Launch::Agent(_) => AGENT_MIB,
            _ => RECIPE_MIB,
        }
    }

    /// The steps that end in kills. The last victim lives long enough for a scan to see it.
    fn steps(&self) -> Vec<String> {
        let limit = self.limit_mib();
        let too_much = limit + TOO_MUCH_MIB;
        // Bystanders that a scan has not seen either may be taken for the victim without BPF.
        let few = ["sleep 600 & kill -9 $!; wait $!".to_owned(), format!("victim bystanders 4 {too_much} 1500")];
        // Not `leader-gone`: the kernel's log has the number of the thread that is left, not of the process.
        let more = ["eat", "thread-eat", "orphan"].map(|kind| format!("victim {kind} {too_much}"));
        let last = [format!("victim eat {too_much} --after-ms 1500")];
        // Filling a recipe's limit takes seconds, and the whole memory half a minute.
        match limit {
            MORE_THAN_ALL_MIB => last.to_vec(),
            RECIPE_MIB => [&few[..], &last].concat(),
            _ => [&few[..], &more, &last].concat(),
        }
    }

    /// Runs the container and scores its reports.
    pub(crate) fn run(&self) -> ContainerOutcome {
        measured(self.engine, self.container, |outcome| {
            let promise = self.promise()?;
            self.engine.with(NAME, self.launch, |container| {
                let scored = self.score(container, promise, outcome);
                scored.map_err(|problem| format!("{problem}; {}", container.end_of_log()))
            })
        })
    }

    fn score(&self, container: &Container, promise: Promise, outcome: &mut ContainerOutcome) -> Result<(), String> {
        let mut log = KernelLog::follow().ok_or("the kernel log is not readable")?;
        let mut session = Session::until_ready(container)?;
        promise.tracer.clone_into(&mut outcome.tracer);
        if self.is_recipe() {
            check_doctor(container, promise)?;
        }
        let mut kill = || self.steps().iter().try_for_each(|step| session.kill(step, &mut log));
        if self.limit_mib() == MORE_THAN_ALL_MIB { without_thrashing(kill) } else { kill() }?;
        let reports = session.reports(promise.patience())?;
        compare(&session.victims, session.logged, &reports, promise, outcome);
        Ok(())
    }
}

/// Lets the kernel kill a process of the machine before it evicts what programs used within the last second (`multigen_lru.rst`). It
/// would first read the engines' programs from the disk again and again: two minutes on an emulated processor.
fn without_thrashing(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    const MIN_TTL: &str = "/sys/kernel/mm/lru_gen/min_ttl_ms";
    write(MIN_TTL, "1000")?;
    let result = work();
    write(MIN_TTL, "0").and(result)
}

/// `krunner doctor` with the privileges that the engine gives agrees with the promise.
fn check_doctor(container: &Container, promise: Promise) -> Result<(), String> {
    let printed = container.exec(&[KRUNNER, "doctor", "--json"])?;
    let report: Value = serde_json::from_str(&printed).map_err(|error| format!("doctor: {error}: {printed}"))?;
    if report["tracer"] == promise.tracer {
        return Ok(());
    }
    let checks = report["checks"].as_array().cloned().unwrap_or_default();
    let missing: Vec<&Value> = checks.iter().filter(|check| check["state"] == "missing").collect();
    Err(format!("doctor says {}, promised is {}: {missing:?}", report["tracer"], promise.tracer))
}

/// A kill that the scenario did not expect is logged by the kernel, under a PID of another namespace: as many reports may
/// name a process that it does not know.
fn compare(victims: &BTreeSet<u64>, logged: u64, reports: &[Value], promise: Promise, outcome: &mut ContainerOutcome) {
    let pids: Vec<u64> = reports.iter().filter_map(|report| report["victim"]["pid"].as_u64()).collect();
    let distinct: BTreeSet<u64> = pids.iter().copied().collect();
    let unknown = (pids.len() - distinct.intersection(victims).count()) as u64;
    let unexpected = logged - victims.len() as u64;
    outcome.kills = logged;
    outcome.reported = pids.len() as u64;
    outcome.wrong = unknown.saturating_sub(unexpected);
    outcome.correct = outcome.reported - outcome.wrong;
    outcome.confidence = confidences(reports);
    let is_inexact = outcome.wrong > 0 || outcome.reported < logged;
    if outcome.reported > logged || promise.is_exact() && is_inexact {
        outcome.problems.push(format!("killed: {victims:?} and {unexpected} more, reported: {pids:?}"));
    }
    outcome.problems.extend(reports.iter().filter_map(|report| broken_promise(report, promise)));
}

fn confidences(reports: &[Value]) -> String {
    let all: BTreeSet<&str> = reports.iter().filter_map(|report| report["confidence"].as_str()).collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

fn broken_promise(report: &Value, promise: Promise) -> Option<String> {
    let is_kept = report["tracer"] == promise.tracer && report["confidence"] == promise.confidence;
    (!is_kept).then(|| format!("promised {promise:?}: {report}"))
}

/// The labels or annotations of a recipe: shell, YAML or JSON.
fn promise_of(file: &str) -> Result<Promise, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let value = |name: &str| {
        let (_, rest) = text.split_once(name)?;
        let rest = rest.trim_start_matches(['=', ':', ' ', '"']);
        rest.split(|character: char| !character.is_ascii_lowercase()).next().map(str::to_owned)
    };
    let told = (value("krunner/tracer"), value("krunner/confidence"));
    let is_it = |promise: &&Promise| told == (Some(promise.tracer.to_owned()), Some(promise.confidence.to_owned()));
    PROMISES.iter().find(is_it).copied().ok_or_else(|| format!("{file} promises {told:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scored(promise: Promise, logged: u64, reported: &[u64]) -> ContainerOutcome {
        let victims = BTreeSet::from([7, 8]);
        let report = |pid: &u64| json!({ "victim": { "pid": pid }, "tracer": "bpf", "confidence": "confirmed" });
        let reports: Vec<Value> = reported.iter().map(report).collect();
        let mut outcome = ContainerOutcome::default();
        compare(&victims, logged, &reports, promise, &mut outcome);
        outcome
    }

    #[test]
    fn bpf_reports_each_kill_once() {
        let right = scored(BPF, 2, &[8, 7]);
        assert_eq!((right.correct, right.wrong, right.problems), (2, 0, vec![]));
        for (logged, reported) in [(2, &[7][..]), (2, &[7, 8, 9]), (2, &[7, 7]), (2, &[7, 9]), (3, &[7, 8])] {
            assert_eq!(scored(BPF, logged, reported).problems.len(), 1, "{logged} kills, reported: {reported:?}");
        }
    }

    #[test]
    fn a_kill_beyond_the_scenario_may_have_any_name() {
        assert_eq!(scored(BPF, 3, &[7, 8, 9]).problems, Vec::<String>::new());
        assert_eq!(scored(BPF, 3, &[7, 9, 10]).wrong, 1);
    }

    #[test]
    fn inferred_reports_are_scored_together_and_are_no_more_than_the_kills() {
        let inferred = |reported: &[u64]| {
            let outcome = scored(INFERRED, 2, reported);
            let is_too_many = outcome.problems.iter().any(|problem| problem.starts_with("killed"));
            (outcome.correct, outcome.wrong, is_too_many)
        };
        assert_eq!(inferred(&[7]), (1, 0, false));
        assert_eq!(inferred(&[7, 9]), (1, 1, false));
        assert_eq!(inferred(&[7, 8, 9]), (2, 1, true));
    }

    #[test]
    fn reports_keep_the_promise() {
        assert_eq!(scored(INFERRED, 2, &[7]).problems.len(), 1, "it is confirmed");
    }
}
