//! `krunner node` from its recipes, and plain sessions that it serves: each gets confirmed reports of its own kills, and the node's
//! log and metrics have the names of their containers and pods.

use std::collections::BTreeMap;

use krunner_tests::http;
use krunner_tests::node_vm::NodeEvent;

use crate::engine::{Engine, KRUNNER};
use crate::host_causes::HostCause;
use crate::monitor::{self, Monitor, Program};
use crate::trial::{Trial, agent, pod, recipe, served};
use crate::{emit, failed, is_possible, report};

/// The folder of the node's socket, as the recipes mount it.
pub(crate) const NODE_SOCKET: &[&str] = &["--volume", "/run/krunner:/run/krunner:ro"];

/// The port of the metrics in the recipes.
const METRICS: u16 = 9464;

const POD: &str = "recipes/kubernetes/session-with-node.yaml";

/// A node, and the sessions that are tried while it runs.
pub(crate) struct Node {
    engine: Engine,
    recipe: &'static str,
    /// Each with the owner of its kills in the node's log.
    sessions: &'static [(Trial, Owner)],
    /// What else happens to plain containers meanwhile.
    causes: &'static [HostCause],
    /// Pods that its metrics must name; `None` if it serves no metrics.
    pods: Option<&'static [&'static str]>,
}

/// What the node's log has to say about a kill: the engine, the namespace and the name of the pod, the name of the container.
type Owner = [Option<&'static str>; 4];

const fn named(runtime: &'static str, container: Option<&'static str>) -> Owner {
    [Some(runtime), None, None, container]
}

const fn of_pod(pod: &'static str) -> Owner {
    [Some("containerd"), Some("default"), Some(pod), Some("session")]
}

/// Every recipe of a node.
pub(crate) const NODES: &[Node] = &[
    Node {
        engine: Engine::Docker,
        recipe: "recipes/docker/krunner-node.sh",
        sessions: &[
            (
                recipe(Engine::Docker, "session-with-node.sh", "recipes/docker/session-with-node.sh"),
                named("docker", Some("session")),
            ),
            (
                agent("agent-docker-container-opts.json, with a node", "agent/with-node.json"),
                named("docker", Some("session")),
            ),
            // The recipe mounts the files of Docker, and not those of the kubelet and of podman.
            (recipe(Engine::Cri, "session-with-node.yaml, the node in Docker", POD), named("containerd", None)),
            (served(Engine::Podman, "plain, with a node", NODE_SOCKET), named("podman", None)),
            (served(Engine::Rootless, "plain, with a node", NODE_SOCKET), named("podman", None)),
        ],
        causes: &[],
        pods: Some(&[]),
    },
    Node {
        engine: Engine::Cri,
        recipe: "recipes/kubernetes/krunner-node.yaml",
        sessions: &[
            (recipe(Engine::Cri, "session-with-node.yaml", POD), of_pod("session")),
            (pod("session-with-node.yaml, a second pod", POD, "another"), of_pod("another")),
        ],
        causes: &[],
        pods: Some(&["session", "another"]),
    },
    Node {
        engine: Engine::Systemd,
        recipe: "systemd/krunner-node.service",
        sessions: &[
            (served(Engine::Docker, "plain, the node in a unit", NODE_SOCKET), named("docker", Some("session"))),
            (served(Engine::Podman, "plain, the node in a unit", NODE_SOCKET), named("podman", Some("session"))),
        ],
        causes: &[HostCause::EarlyoomBesideNode],
        pods: None,
    },
];

impl Node {
    /// The files that it carries out.
    #[cfg(test)]
    pub(crate) fn recipes(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.recipe).chain(self.sessions.iter().filter_map(|(trial, _)| trial.recipe()))
    }

    /// Whether it or one of its sessions is selected. A session needs its node, and the node's log is checked as a whole.
    pub(crate) fn is_wanted(&self, is_wanted: impl Fn(&str) -> bool) -> bool {
        is_wanted(&monitor::name(self.engine, self.recipe))
            || self.sessions.iter().any(|(trial, _)| is_wanted(&trial.name()))
            || self.causes.iter().any(|cause| is_wanted(&cause.name()))
    }

    /// Carries out the recipe and tries the sessions.
    pub(crate) fn run(&self) -> Result<(), String> {
        let mut node = match Monitor::start(Program::Node, self.engine, self.recipe) {
            Ok(node) => node,
            Err(problem) => {
                report(failed(self.engine, self.recipe, problem));
                return Ok(());
            }
        };
        let mut expected = BTreeMap::<_, u64>::new();
        for (trial, owner) in self.sessions {
            let outcome = trial.run();
            if outcome.kills > 0 {
                *expected.entry(*owner).or_default() += outcome.kills;
            }
            report(outcome);
            node.take_note()?;
        }
        for cause in self.causes.iter().filter(|cause| is_possible(&cause.name(), cause.impossible_because())) {
            report(cause.run());
            node.take_note()?;
        }
        let problems = [Self::compare_owners(&mut node, &expected), self.show(&node)];
        node.blame(problems.into_iter().filter_map(Result::err));
        node.kill()?;
        report(node.end());
        Ok(())
    }

    fn compare_owners(node: &mut Monitor, expected: &BTreeMap<Owner, u64>) -> Result<(), String> {
        let kills = node.kills()?;
        let mut seen = BTreeMap::<[Option<&str>; 4], u64>::new();
        for kill in &kills {
            let owner = ["runtime", "namespace", "pod", "container"].map(|field| kill["owner"][field].as_str());
            let members = kill["members"].as_array().map_or(0, Vec::len) as u64;
            *seen.entry(owner).or_default() += 1 + members;
        }
        if seen == *expected { Ok(()) } else { Err(format!("kills by owner: {seen:?}, expected: {expected:?}")) }
    }

    /// Prints the node's state and metrics, whose sum is the number of kills.
    fn show(&self, node: &Monitor) -> Result<(), String> {
        let state = node.container.exec(&[KRUNNER, "node", "status"])?;
        emit(&NodeEvent::Printed { title: "krunner node status".to_owned(), text: state });
        let Some(pods) = self.pods else { return Ok(()) };
        let address = node.container.address.as_str();
        // As a Prometheus server asks, the second time: the first scrape begins new series at 0.
        let scrapes = [(); 2].map(|()| http::get_from(address, METRICS, "/metrics", &[]));
        let [_, Some(metrics)] = scrapes else { return Err(format!("no metrics at {address}:{METRICS}")) };
        let series: Vec<&str> = metrics.lines().filter(|line| line.starts_with("krunner_oom_kills_total{")).collect();
        emit(&NodeEvent::Printed { title: "/metrics, its counters of kills".to_owned(), text: series.join("\n") });
        let is_there = |pod: &&str| series.iter().any(|line| line.contains(&format!("pod=\"{pod}\"")));
        if pods.iter().all(is_there) { Ok(()) } else { Err(format!("the metrics lack a pod: {series:?}")) }
    }
}
