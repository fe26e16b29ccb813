//! The machine's tracer (`krunner node`) as a source of the task. It is used where the own tracer cannot be attached.
//!
//! The counter stays open meanwhile: it shows that a kill is due, so that the end of a step waits for the node's report, and
//! what the node does not deliver is inferred. See `attribution::infer` for the hand-over.

use std::path::Path;

use krunner_common::OomDaemon;

use super::MonitorTask;
use crate::error::chain;
use crate::monitor::attribution::correlate::{Confidence, Victim};
use crate::monitor::attribution::engine::{DeliveredKill, DeliveredProcess, DeliveredVictim};
use crate::monitor::explain::{LimitHit, MemoryFacts};
use crate::monitor::message::MonitorEvent;
use crate::monitor::model::clock;
use crate::monitor::model::detection::{MonitorStatus, TracerKind};
use crate::monitor::model::event::{Exec, Kill, KillSource};
use crate::monitor::model::process::ProcessKey;
use crate::monitor::setup::NodeSocket;
use crate::monitor::sources::cgroup::Cgroup;
use crate::monitor::sources::node::client::{NodeClient, NodeError, NodeEvent};
use crate::monitor::sources::node::protocol::{NodeKill, NodeProcess, NodeVictim};

/// The node while it is used.
pub(super) struct NodeSource {
    client: NodeClient,
    is_connected: bool,
    /// Offset of our time namespace from that of the node.
    boottime_offset_ns: i64,
    why_not_bpf: Option<String>,
    /// The last problem that was logged.
    last_problem: String,
}

impl NodeSource {
    pub(super) fn new(socket: NodeSocket, why_not_bpf: Option<String>) -> Self {
        Self {
            client: NodeClient::new(socket.path, socket.is_on_host),
            is_connected: false,
            boottime_offset_ns: clock::boottime_offset_ns(),
            why_not_bpf,
            last_problem: String::new(),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.is_connected
    }

    fn times(&self) -> NodeTimes {
        NodeTimes { offset_ns: self.boottime_offset_ns }
    }
}

/// Waits for the node; forever if it is not used.
pub(super) async fn next_from_node(node: Option<&mut NodeSource>) -> NodeEvent {
    match node {
        Some(node) => node.client.next().await,
        None => std::future::pending().await,
    }
}

impl MonitorTask {
    pub(super) async fn node_event(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Connected { version, missed } => {
                tracing::info!("the machine's OOM tracer (krunner node {version}) is connected");
                self.node_changed(true).await;
                self.node_missed(missed);
            }
            NodeEvent::Kill(kill) => self.delivered(&kill),
            NodeEvent::DaemonKill { daemon, kill } => self.delivered_of_daemon(&daemon, &kill),
            NodeEvent::Missed(kills) => self.node_missed(kills),
            // With a counter no kill is missing: those that are not delivered are inferred.
            NodeEvent::RecordsLost(_) if self.engine.is_counted() => self.engine.node_lost_kills(clock::boot_ns()),
            NodeEvent::RecordsLost(records) => self.engine.records_lost(records),
            NodeEvent::Lost(error) => {
                tracing::info!(
                    "the machine's OOM tracer (krunner node) is gone: {}; OOM kills are inferred meanwhile",
                    chain(&error)
                );
                self.node_changed(false).await;
            }
            NodeEvent::Unavailable(error) => self.node_unavailable(&error),
        }
    }

    /// Logs a problem once. That there is no node is none.
    fn node_unavailable(&mut self, error: &NodeError) {
        let Some(node) = &mut self.node else { return };
        let problem = chain(error);
        if matches!(error, NodeError::Connect(_)) {
            tracing::debug!("no krunner node: {problem}");
        } else if node.last_problem != problem {
            tracing::warn!("krunner node cannot be used: {problem}");
            node.last_problem = problem;
        }
    }

    async fn node_changed(&mut self, is_connected: bool) {
        let Some(node) = &mut self.node else { return };
        node.is_connected = is_connected;
        self.is_reserve_used = true;
        let why_not_bpf = node.why_not_bpf.clone();
        self.engine.node_delivers(is_connected, clock::boot_ns());
        if let Some(sampler) = &self.sampler {
            sampler.stand_by(is_connected);
        }
        let tracer = if is_connected { TracerKind::Node } else { TracerKind::Snapshot };
        // Fails if the receiver is closed.
        let _ = self.events.send(MonitorEvent::Status(MonitorStatus { tracer, why_not_bpf, scope: self.scope })).await;
    }

    /// With a counter these kills are counted, so they are inferred.
    fn node_missed(&mut self, kills: u64) {
        if kills > 0 && self.engine.is_counted() {
            self.engine.node_lost_kills(clock::boot_ns());
        } else {
            self.engine.report_missed(kills);
        }
    }

    fn delivered_of_daemon(&mut self, daemon: &str, kill: &NodeKill) {
        let Some(node) = &self.node else { return };
        let known = OomDaemon::ALL.iter().map(OomDaemon::name).find(|name| *name == daemon);
        self.engine.delivered_of_daemon(node.times().kill(kill, MemoryFacts::default()), known, clock::boot_ns());
    }

    fn delivered(&mut self, kill: &NodeKill) {
        let Some(node) = &self.node else { return };
        let now_ns = clock::boot_ns();
        let times = node.times();
        if self.held_until_ns.is_none()
            && let Some(patience) = self.charge.patience()
        {
            self.hold(patience, now_ns);
        }
        let facts = facts(kill, self.cgroup.as_ref(), self.held_until_ns.is_none());
        let look = self.engine.delivered(times.kill(kill, facts), now_ns);
        self.scan_if(look);
    }
}

/// The memory facts of a delivered kill. `may_open`: there is enough memory to open files.
fn facts(kill: &NodeKill, own: Option<&Cgroup>, may_open: bool) -> MemoryFacts {
    let cgroup = own.zip(kill.cgroup.as_deref()).and_then(|(own, below)| own.facts_below(Path::new(below), may_open));
    let path = |below: &str| own.and_then(|own| own.path_below(Path::new(below)));
    let limit = kill.limit.clone().map(|limit| LimitHit { path: limit.path.as_deref().and_then(path), ..limit });
    MemoryFacts { cgroup, limit, usage: kill.usage.clone(), ..MemoryFacts::default() }
}

/// Converts the node's times to those of our time namespace.
#[derive(Debug, Clone, Copy)]
struct NodeTimes {
    offset_ns: i64,
}

impl NodeTimes {
    fn boot_ns(self, node_ns: u64) -> u64 {
        node_ns.wrapping_add_signed(self.offset_ns)
    }

    fn key(self, process: &NodeProcess) -> ProcessKey {
        let node = ProcessKey { pid: process.pid, start_ticks: process.start_ticks };
        ProcessKey::from_boot_ns(process.pid, self.boot_ns(node.start_boot_ns()))
    }

    fn kill(self, kill: &NodeKill, facts: MemoryFacts) -> DeliveredKill {
        let first = kill.victims.first().map(|victim| self.key(&victim.process));
        let outermost_first = kill.ancestors.iter().rev();
        let mut above = None;
        let mut processes: Vec<DeliveredProcess> = Vec::with_capacity(kill.ancestors.len() + kill.victims.len());
        for ancestor in outermost_first {
            processes.push(self.process(&ancestor.process, above.replace(ancestor.process.pid), ancestor.exited));
        }
        let of_first = above;
        for (index, victim) in kill.victims.iter().enumerate() {
            processes.push(self.process(&victim.process, of_first.filter(|_| index == 0), true));
        }
        let delivered = |victim: &NodeVictim| DeliveredVictim {
            victim: self.victim(victim, kill, first),
            is_uncounted: victim.is_in_another_cgroup,
        };
        let victims = kill.victims.iter().map(delivered).collect();
        DeliveredKill { victims, left_out: kill.victims_left_out, processes, facts }
    }

    fn process(self, process: &NodeProcess, parent_pid: Option<u32>, is_gone: bool) -> DeliveredProcess {
        let exec = Exec {
            process: self.key(process),
            name: process.name.clone(),
            cmdline: process.cmdline.clone().into_bytes(),
            cmdline_is_cut: process.cmdline_is_cut,
        };
        DeliveredProcess { exec, parent_pid, is_gone }
    }

    fn victim(self, victim: &NodeVictim, kill: &NodeKill, first: Option<ProcessKey>) -> Victim {
        let key = self.key(&victim.process);
        Victim {
            tracer: TracerKind::Node,
            confidence: if victim.is_co_victim { Confidence::CoVictim } else { Confidence::Confirmed },
            co_victim_of: first.filter(|first| victim.is_co_victim && *first != key),
            is_group_kill: kill.is_group_kill,
            trigger: kill.trigger.clone(),
            killed_at_boot_ns: self.boot_ns(victim.killed_at_boot_ns),
            exited_at_boot_ns: victim.exited_at_boot_ns.map(|at_ns| self.boot_ns(at_ns)),
            kill: Kill {
                victim: key,
                name: victim.process.name.clone(),
                uid: victim.uid,
                oom_score_adj: victim.oom_score_adj,
                source: KillSource::Kernel,
                sender: kill.trigger.clone(),
                daemon: None,
                memory: victim.memory,
                memory_map: 0,
                cgroup_id: None,
                limit: None,
                already_pending: false,
                namespaces: Vec::new(),
            },
        }
    }
}
