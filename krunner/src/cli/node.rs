//! `krunner node`: one tracer for a machine, and the question for its state.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::args::{NodeArgs, NodeCommand, NodeStatusArgs};
use super::async_runtime::in_runtime;
use super::stdout::print;
use crate::exit::Exit;
use crate::logging;
use crate::monitor::node::{NodeStatus, status};
use crate::monitor::{BpfPolicy, JournalPath, MonitorSetup, ProgramLog, ScopeRequest};
use crate::node::{NodeConfig, serve};
use crate::session::Signals;
use crate::sys;
use crate::tasks::TaskGroup;
use crate::writer::Writer;

/// What is in front of each line on stderr.
const LOG_PREFIX: &str = "krunner-node";

/// How long queued lines may take to be written at the end.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn node(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(NodeCommand::Status(args)) => show_status(args),
        None => run(args),
    }
}

fn run(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    if sys::was_elevated() {
        bail!("the node requires capabilities of your own: yours come from this program's file capabilities");
    }
    if !MonitorSetup::is_on_host() {
        bail!("the node must run in the host's PID namespace (Kubernetes: hostPID: true; Docker: --pid=host)");
    }
    enter_host_cgroup_namespace()?;
    raise_descriptor_limit();
    let setup = MonitorSetup::detect(ScopeRequest::AllForOthers, BpfPolicy::Auto, ProgramLog::Off);
    let place = |file| JournalPath::of_file(file).context("cannot write the journal (--log)");
    let config = NodeConfig {
        socket: args.socket.clone(),
        metrics: args.metrics,
        announces_in_pods: args.events,
        journal: args.log.as_deref().map(place).transpose()?,
        shows_command_lines: args.command_lines,
    };
    let stderr = Writer::to_standard(io::stderr(), "stderr").context("cannot use stderr")?;
    let stdout = Writer::to_log(io::stdout(), "stdout").context("cannot use stdout")?;
    logging::init(LOG_PREFIX, false, stderr.clone(), None);
    sys::memory::reserve_heap();
    in_runtime(async move {
        let ended = until_signal(setup, config, stdout.clone()).await;
        stdout.flush(FLUSH_PATIENCE).await;
        stderr.flush(FLUSH_PATIENCE).await;
        ended
    })
}

/// Cgroups of peers and victims are compared by their paths, which are relative to the reader's cgroup namespace. To enter the
/// host's takes `CAP_SYS_ADMIN` (`setns(2)`).
fn enter_host_cgroup_namespace() -> anyhow::Result<()> {
    if MonitorSetup::is_in_host_cgroup_namespace() {
        return Ok(());
    }
    // kthreadd is in the initial namespaces, and any process with CAP_SYS_PTRACE may read them.
    let entered = File::open("/proc/2/ns/cgroup").and_then(|host| Ok(setns(host, CloneFlags::CLONE_NEWCGROUP)?));
    entered.context(
        "the node must run in the host's cgroup namespace, and cannot enter it (Docker: --cgroupns=host; Kubernetes: \
         privileged: true, or the capability SYS_ADMIN)",
    )
}

/// A peer takes three descriptors, and the usual soft limit is 1,024 (`select(2)`, which nothing here uses).
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Up to the hard limit it is always allowed.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

async fn until_signal(setup: MonitorSetup, config: NodeConfig, stdout: Writer) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let tasks = TaskGroup::new();
    let stop = async { tracing::info!("stopping: {}", signals.next().await) };
    tokio::select! {
        biased;
        task = tasks.failed() => return Err(anyhow!("a bug: the task `{task}` panicked")),
        ended = serve(setup, config, stdout, &tasks, stop) => ended?,
    }
    Ok(Exit::Ok.into())
}

fn show_status(args: &NodeStatusArgs) -> anyhow::Result<ExitCode> {
    let status = status(&args.socket, MonitorSetup::is_on_host())
        .with_context(|| format!("no status from the node at {}", args.socket.display()))?;
    print(if args.json { serde_json::to_string(&status)? + "\n" } else { in_words(&status) })?;
    Ok(Exit::Ok.into())
}

fn in_words(status: &NodeStatus) -> String {
    let NodeStatus { version, protocol, pid, running_s, kills, lost_records, refused, peers, .. } = status;
    let mut text = format!(
        "krunner node {version} (pid {pid}, protocol {protocol}), running for {running_s} s\n\
         OOM kills: {kills}; tracer records lost: {lost_records}; connections refused: {refused}\n\
         peers: {}\n",
        peers.len()
    );
    for peer in peers {
        // Users name cgroups; a name may contain what a terminal acts on.
        let name = peer.name.as_deref().map(|name| format!(" {}", name.escape_debug())).unwrap_or_default();
        let (pid, scope) = (peer.pid, peer.scope.escape_debug());
        // Writing to a string does not fail.
        let _ = writeln!(text, "  pid {pid} {scope}{name}: {} kills sent, {} missed", peer.sent, peer.missed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::node::PeerStatus;

    #[test]
    fn status_in_words() {
        let peer = PeerStatus { pid: 7, scope: "pid:[9]".into(), name: Some("a/b/c".into()), sent: 3, missed: 1 };
        let hostile =
            PeerStatus { scope: "cgroup /\u{1b}]0;x\u{7}".into(), name: Some("\u{1b}[2J".into()), ..peer.clone() };
        let status = NodeStatus {
            version: "1.2.3".into(),
            protocol: 1,
            pid: 5,
            running_s: 60,
            is_tracing: true,
            kills: 4,
            lost_records: 0,
            refused: 2,
            peers: vec![peer, hostile],
        };
        insta::assert_snapshot!(in_words(&status), @r"
        krunner node 1.2.3 (pid 5, protocol 1), running for 60 s
        OOM kills: 4; tracer records lost: 0; connections refused: 2
        peers: 2
          pid 7 pid:[9] a/b/c: 3 kills sent, 1 missed
          pid 7 cgroup /\u{1b}]0;x\u{7} \u{1b}[2J: 3 kills sent, 1 missed
        ");
    }
}
