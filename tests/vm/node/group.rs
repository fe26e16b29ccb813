//! A pod as the kubelet starts it by default: an OOM kill ends the whole container, the runner included. The next session in the
//! same home must say so.

use std::time::Duration;

use krunner_tests::node_vm::ContainerOutcome;
use krunner_tests::oom_matrix::KernelLog;

use crate::engine::{Container, Engine, Launch};
use crate::session::Session;
use crate::{home, measured};

const RECIPE: &str = "recipes/kubernetes/session-capabilities.yaml";

pub(crate) const CONTAINER: &str = "memory.oom.group, post-mortem";

/// Kills a pod's container and starts it again.
pub(crate) fn run() -> ContainerOutcome {
    measured(Engine::Cri, CONTAINER, measure)
}

fn measure(outcome: &mut ContainerOutcome) -> Result<(), String> {
    "bpf".clone_into(&mut outcome.tracer);
    home::make()?;
    let first = Engine::Cri.start("session", Launch::GroupRecipe(RECIPE))?;
    let ended = kill(&first, outcome).and_then(|()| explain(&first, outcome));
    first.remove().and(ended)
}

/// Ends the container by a kill of its whole cgroup.
fn kill(container: &Container, outcome: &mut ContainerOutcome) -> Result<(), String> {
    let mut log = KernelLog::follow().ok_or("the kernel log is not readable")?;
    let session = Session::until_ready(container)?;
    session.begin("sleep 600 & exec victim eat 576 --after-ms 1500")?;
    container.until_ended(Duration::from_mins(1))?;
    let logged = log.pids()?;
    outcome.kills = logged.len() as u64;
    // Who else is logged is a race: the kernel kills all processes of a PID namespace with its first one.
    if logged.contains(&container.pid) { Ok(()) } else { Err(format!("the runner was not logged: {logged:?}")) }
}

/// The next session in this home.
fn explain(before: &Container, outcome: &mut ContainerOutcome) -> Result<(), String> {
    let next = before.restart(RECIPE)?;
    let (printed, end) = home::last_end(&next)?;
    end["cause"].as_str().unwrap_or_default().clone_into(&mut outcome.confidence);
    outcome.reported = u64::from(printed.contains("OOM kill of the whole cgroup"));
    outcome.correct = outcome.reported;
    let is_right = outcome.reported == 1 && outcome.confidence == "group_kill" && end["how"] == "unexpected";
    if is_right { Ok(()) } else { Err(format!("the next session said {printed:?}; last-end.json: {end}")) }
}
