//! What a peer may know of a kill. Pure: identities are passed in.
//!
//! | the peer's PID namespace | it sees kills in | PIDs are |
//! |---|---|---|
//! | its own | that namespace and those below | those of that namespace |
//! | the host's | its memory cgroup and those below | those of the host |
//!
//! Ancestors, trigger and co-victims are named only if they are within the same scope. A chain of ancestors ends at the first
//! one outside.

use std::cell::OnceCell;

use super::identity::{HostIdentity, PeerIdentity};
use super::names::accountable;
use crate::monitor::node::{MAX_CMDLINE_BYTES, MAX_VICTIMS, NodeAncestor, NodeKill, NodeProcess, NodeVictim};
use crate::monitor::{Actor, KillEvidence, LimitHit, LimitScope, OomReport, ProcessInfo, ProcessKey, TracedVictim};

/// Inode number of the initial PID namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
const INIT_PID_NAMESPACE: u32 = 0xEFFF_FFFC;

/// PID namespaces below the initial one that a kill record holds (`NamespaceIds` of `krunner-common`).
const MAX_LEVEL: usize = 4;

/// The kills that a peer may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerScope {
    /// The peer's PID namespace, unless it is the host's.
    namespace: Option<u32>,
    /// The peer's memory cgroup.
    cgroup: String,
}

/// Why a peer has no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeerScopeError {
    /// A kill record does not hold the peer's namespace.
    #[error("the peer is more than {MAX_LEVEL} PID namespaces below the host's")]
    TooDeep,
    /// The scope would be the whole machine.
    #[error("in the host's PID namespace and the root memory cgroup, only root may see OOM kills")]
    WholeMachine,
}

/// A kill with what is known on the host. Identities are looked up at most once, and only if a peer may see the kill.
pub(super) struct HostKill<'a> {
    report: &'a OomReport,
    evidence: &'a KillEvidence,
    find: &'a dyn Fn(Named) -> Option<HostIdentity>,
    identities: OnceCell<Identities>,
}

/// A process to identify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// With its start time.
    Process(ProcessKey),
    /// By its PID at that time, in nanoseconds since boot.
    At(u32, u64),
}

struct Identities {
    trigger: Option<HostIdentity>,
    ancestors: Vec<HostIdentity>,
}

impl<'a> HostKill<'a> {
    pub(super) fn new(
        report: &'a OomReport,
        evidence: &'a KillEvidence,
        find: &'a dyn Fn(Named) -> Option<HostIdentity>,
    ) -> Self {
        Self { report, evidence, find, identities: OnceCell::new() }
    }

    /// The report of the kill.
    pub(super) fn report(&self) -> &OomReport {
        self.report
    }

    /// Number of processes that died.
    pub(super) fn victims(&self) -> u64 {
        (self.evidence.victims.len() + self.report.members_left_out) as u64
    }

    /// Victims that the report does not name, if this many others are inside a scope. Nothing is known of them, so they are where
    /// all others are.
    fn unnamed_beside(&self, inside: usize) -> usize {
        if inside == self.evidence.victims.len() { self.report.members_left_out } else { 0 }
    }

    /// The victims, each with its memory cgroup.
    fn victims_in_cgroups(&self) -> impl Iterator<Item = (&TracedVictim, Option<&str>)> {
        let cgroups = self.evidence.cgroups.iter().map(Option::as_deref);
        self.evidence.victims.iter().zip(cgroups.chain(std::iter::repeat(None)))
    }

    fn cgroup(&self) -> Option<&str> {
        self.report.cgroup.as_ref().map(|cgroup| cgroup.path.as_str())
    }

    fn identities(&self) -> &Identities {
        self.identities.get_or_init(|| {
            let at_ns = self.report.killed_at_boot_ns;
            let trigger = self.report.trigger.as_ref();
            let ancestors = self.report.ancestors.iter();
            Identities {
                trigger: trigger.and_then(|trigger| (self.find)(Named::At(trigger.pid, at_ns))),
                // A chain with a gap would name the wrong parent.
                ancestors: ancestors.map_while(|process| (self.find)(Named::Process(process.key()))).collect(),
            }
        })
    }

    fn info(&self, key: ProcessKey) -> Option<&ProcessInfo> {
        let members = self.report.members.iter().map(|member| &member.process);
        std::iter::once(&self.report.victim.process).chain(members).find(|process| process.key() == key)
    }
}

impl PeerScope {
    /// The scope of a peer.
    pub(super) fn of(peer: &PeerIdentity) -> Result<Self, PeerScopeError> {
        Self::new(&peer.identity, peer.uid)
    }

    /// The container in which the victim died, with the host's PIDs; `None` if its cgroup is not known.
    pub(super) fn of_container_of(report: &OomReport) -> Option<Self> {
        let cgroup = accountable(&report.cgroup.as_ref()?.path);
        Some(Self { namespace: None, cgroup: cgroup.to_owned() })
    }

    fn new(peer: &HostIdentity, uid: u32) -> Result<Self, PeerScopeError> {
        let namespace = peer.namespace().filter(|inode| *inode != INIT_PID_NAMESPACE);
        if peer.pids.len() > 1 + MAX_LEVEL {
            return Err(PeerScopeError::TooDeep);
        }
        if namespace.is_none() && peer.cgroup == "/" && uid != 0 {
            return Err(PeerScopeError::WholeMachine);
        }
        Ok(Self { namespace, cgroup: peer.cgroup.clone() })
    }

    /// Whether the peer runs on the host, in no PID namespace of its own.
    pub(super) fn is_on_host(&self) -> bool {
        self.namespace.is_none()
    }

    /// The peer's memory cgroup.
    pub(super) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// What the peer may see, for operators. Equal for peers with equal scopes.
    pub(super) fn describe(&self) -> String {
        self.namespace.map_or_else(|| format!("cgroup {}", self.cgroup), |inode| format!("pid:[{inode}]"))
    }

    /// Number of processes within the scope that died.
    #[must_use]
    pub(super) fn victims(&self, kill: &HostKill<'_>) -> u64 {
        let inside = kill.victims_in_cgroups().filter(|(victim, at)| self.victim_pid(victim, *at).is_some()).count();
        (inside + kill.unnamed_beside(inside)) as u64
    }

    /// What the peer may know of this kill; `None` if no victim is within the scope.
    #[must_use]
    pub(super) fn view(&self, kill: &HostKill<'_>) -> Option<NodeKill> {
        let cgroup = kill.cgroup();
        let mut victims: Vec<NodeVictim> = kill
            .victims_in_cgroups()
            .filter_map(|(victim, at)| {
                let pid = self.victim_pid(victim, at)?;
                let is_in_another_cgroup = at.is_some_and(|at| below(&self.cgroup, at).is_none());
                Some(NodeVictim { is_in_another_cgroup, ..node_victim(victim, pid, kill.info(victim.kill.victim)?) })
            })
            .collect();
        let unnamed = kill.unnamed_beside(victims.len());
        let victims_left_out = (victims.len().saturating_sub(MAX_VICTIMS) + unnamed) as u64;
        victims.truncate(MAX_VICTIMS);
        let first = kill.evidence.victims.first()?;
        let is_first_inside = self.victim_pid(first, cgroup).is_some();
        if victims.is_empty() {
            return None;
        }
        let (trigger, is_trigger_outside) = self.trigger(kill);
        let below = |path: &str| below(&self.cgroup, path).map(str::to_owned);
        let limit = kill.evidence.facts.limit.as_ref().map(|limit| self.limit(limit, is_trigger_outside));
        let is_ours = |limit: &LimitHit| matches!(limit.scope, LimitScope::Container | LimitScope::Inner);
        Some(NodeKill {
            victims,
            victims_left_out,
            is_group_kill: first.is_group_kill,
            trigger,
            ancestors: if is_first_inside { self.ancestors(kill) } else { Vec::new() },
            cgroup: cgroup.and_then(below),
            usage: kill.evidence.facts.usage.clone().filter(|_| limit.as_ref().is_some_and(is_ours)),
            limit,
        })
    }

    /// The victim's PID as the peer sees it; `None` if it is outside.
    fn victim_pid(&self, victim: &TracedVictim, cgroup: Option<&str>) -> Option<u32> {
        match self.namespace {
            Some(inode) => victim.kill.namespaces.iter().find(|id| id.inode == inode).map(|id| id.pid),
            None => below(&self.cgroup, cgroup?).map(|_| victim.kill.victim.pid),
        }
    }

    /// The PID of another process of a kill as the peer sees it; `None` if it is outside.
    fn pid_of(&self, process: &HostIdentity) -> Option<u32> {
        let Some(inode) = self.namespace else {
            return below(&self.cgroup, &process.cgroup).and_then(|_| process.pids.first().copied());
        };
        let level = process.namespaces.iter().position(|namespace| *namespace == inode)?;
        process.pids.get(level).copied()
    }

    /// The process whose allocation failed, if it is inside, and whether it is outside; `None` if that is not known, since the
    /// process is gone.
    fn trigger(&self, kill: &HostKill<'_>) -> (Option<Actor>, Option<bool>) {
        let Some(trigger) = &kill.report.trigger else { return (None, None) };
        let victim = kill.victims_in_cgroups().find(|(victim, _)| victim.kill.victim.pid == trigger.pid);
        let pid = match (victim, &kill.identities().trigger) {
            (Some((victim, at)), _) => self.victim_pid(victim, at),
            (None, Some(identity)) if self.has_known_place(identity) => self.pid_of(identity),
            (None, _) => return (None, None),
        };
        (pid.map(|pid| Actor { pid, name: trigger.name.clone() }), Some(pid.is_none()))
    }

    /// Whether the reading shows if a process is inside. One that exits is shown in the root cgroup (`proc_cgroup_show`, `kernel/cgroup/cgroup.c`).
    fn has_known_place(&self, process: &HostIdentity) -> bool {
        self.namespace.is_some() || process.cgroup != "/"
    }

    fn ancestors(&self, kill: &HostKill<'_>) -> Vec<NodeAncestor> {
        let known = kill.report.ancestors.iter().zip(&kill.identities().ancestors);
        let inside = known.map_while(|(process, identity)| {
            let pid = self.pid_of(identity)?;
            Some(NodeAncestor { process: node_process(process, pid), exited: process.exited })
        });
        inside.collect()
    }

    fn limit(&self, limit: &LimitHit, is_trigger_outside: Option<bool>) -> LimitHit {
        limit_seen_from(&self.cgroup, &LimitHit { is_trigger_outside, ..limit.clone() })
    }
}

/// The limit as seen from this cgroup, with a path relative to it.
#[must_use]
pub(super) fn limit_seen_from(cgroup: &str, limit: &LimitHit) -> LimitHit {
    let Some(path) = limit.path.as_deref().filter(|_| limit.scope != LimitScope::Machine) else {
        return LimitHit { path: None, ..limit.clone() };
    };
    let (scope, path) = match below(cgroup, path) {
        Some("") => (LimitScope::Container, Some(String::new())),
        Some(inner) => (LimitScope::Inner, Some(inner.to_owned())),
        None if below(path, cgroup).is_some() => (LimitScope::Above, None),
        None => (LimitScope::Beside, None),
    };
    LimitHit { scope, path, ..limit.clone() }
}

/// What follows `base` in `path`, without a slash at its start; empty if both are the same cgroup.
fn below<'path>(base: &str, path: &'path str) -> Option<&'path str> {
    let rest = path.strip_prefix(base.trim_end_matches('/'))?;
    match rest.strip_prefix('/') {
        Some(rest) => Some(rest),
        None => rest.is_empty().then_some(rest),
    }
}

fn node_victim(victim: &TracedVictim, pid: u32, info: &ProcessInfo) -> NodeVictim {
    let kill = &victim.kill;
    NodeVictim {
        process: NodeProcess { name: kill.name.clone(), ..node_process(info, pid) },
        uid: kill.uid,
        oom_score_adj: kill.oom_score_adj,
        memory: kill.memory,
        killed_at_boot_ns: victim.killed_at_boot_ns,
        exited_at_boot_ns: victim.exited_at_boot_ns,
        is_co_victim: victim.co_victim_of.is_some(),
        is_in_another_cgroup: false,
    }
}

fn node_process(process: &ProcessInfo, pid: u32) -> NodeProcess {
    let bytes = &process.cmdline.bytes;
    let kept = &bytes[..bytes.len().min(MAX_CMDLINE_BYTES)];
    NodeProcess {
        pid,
        start_ticks: process.start_ticks,
        name: process.name.to_string(),
        cmdline: String::from_utf8_lossy(kept).into_owned(),
        cmdline_is_cut: process.cmdline_is_cut || kept.len() < bytes.len(),
    }
}

#[cfg(test)]
#[path = "scope_tests.rs"]
pub(super) mod tests;
