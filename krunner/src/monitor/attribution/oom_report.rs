//! The facts of a report: one OOM kill, as an object for programs. Pure. `report` formats it.
//!
//! A report describes one moment, that of the kill: which processes were alive then, and for how long. An unknown size is `?` in
//! text and null in JSON; 0 is always a size that was read.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::correlate::{Confidence, Victim};
use super::history::{Candidate, History, ProcessRecord};
use crate::monitor::explain::{Explanation, MemoryFacts};
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::detection::TracerKind;
use crate::monitor::model::event::{Actor, MemoryAtKill};
use crate::monitor::model::json;
use crate::monitor::model::process::{Cmdline, ProcessKey, SizeSplit};

/// The value of `event` in a report.
pub(in crate::monitor) const EVENT: &str = "oom_kill";

fn event() -> &'static str {
    EVENT
}

/// Number of surviving processes in a report.
pub(in crate::monitor) const LARGEST: usize = 5;

/// Number of co-victims in a report. A container may have many more processes.
pub(in crate::monitor) const MAX_MEMBERS: usize = 64;

/// An OOM kill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Report")]
pub(crate) struct OomReport {
    #[serde(skip_deserializing, default = "event")]
    event: &'static str,
    /// How certain the attribution is.
    pub confidence: Confidence,
    /// The tracer that saw the kill.
    pub tracer: TracerKind,
    /// Wall-clock time of the SIGKILL.
    #[serde(serialize_with = "json::rfc3339", deserialize_with = "json::read_rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub time: SystemTime,
    /// Time of the SIGKILL, in nanoseconds since boot.
    #[serde(default)]
    pub killed_at_boot_ns: u64,
    /// When the victim exited, in nanoseconds since boot, if known.
    pub exited_at_boot_ns: Option<u64>,
    /// The process that was killed.
    pub victim: VictimInfo,
    /// For a co-victim: PID of the first victim of the same kill.
    pub with_pid: Option<u32>,
    /// Processes killed with the victim, because they shared its memory or by `memory.oom.group`; at most 64.
    #[serde(default)]
    pub members: Vec<VictimInfo>,
    /// Number of further processes killed with it.
    #[serde(default)]
    pub members_left_out: usize,
    /// The process whose allocation failed.
    pub trigger: Option<Actor>,
    /// The victim's ancestors, parent first.
    #[serde(default)]
    pub ancestors: Vec<ProcessInfo>,
    /// The largest surviving processes.
    #[serde(default)]
    pub largest: Vec<LargeProcess>,
    /// The victim's memory cgroup.
    pub cgroup: Option<CgroupFacts>,
    /// Why it was killed: the limit, the use of memory, its growth.
    #[serde(default)]
    pub explanation: Explanation,
    /// Records that the tracer has dropped so far.
    #[serde(default)]
    pub lost_records: u64,
    /// Only in the reports of an engine that traces for others.
    #[serde(skip)]
    pub evidence: Option<Box<KillEvidence>>,
}

/// What a report was made of, for the runner that the kill belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KillEvidence {
    /// The victim and its co-victims, as the tracer saw them.
    pub victims: Vec<Victim>,
    /// Their memory cgroups, in the same order; `None` if unknown. A kill may have victims in several.
    pub cgroups: Vec<Option<String>>,
    /// The memory readings right after the kill.
    pub facts: MemoryFacts,
}

/// A process in a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Seen")]
pub(crate) struct ProcessInfo {
    /// Process ID in the PID namespace of the monitor.
    pub pid: u32,
    /// Start time since boot, in ticks of 10 ms. Together with the PID it is unique.
    #[serde(default)]
    pub start_ticks: u64,
    /// The process's comm.
    pub name: Arc<str>,
    /// The arguments, or the title that the process wrote over them.
    #[serde(default, serialize_with = "json::joined", deserialize_with = "json::read_cmdline")]
    #[schemars(with = "String")]
    pub cmdline: Arc<Cmdline>,
    /// The original arguments, if the process wrote a title over them.
    #[serde(default, serialize_with = "json::joined_if_any", deserialize_with = "json::read_cmdline_if_any")]
    #[schemars(with = "Option<String>")]
    pub first_cmdline: Option<Arc<Cmdline>>,
    /// Whether the arguments were truncated.
    #[serde(default)]
    pub cmdline_is_cut: bool,
    /// Seconds since its start.
    #[serde(default)]
    pub running_s: f64,
    /// Size of the address space at the last reading; null if it was not read since the last exec.
    pub vm_bytes: Option<u64>,
    /// Resident memory at that reading.
    pub rss_bytes: Option<u64>,
    /// Whether it was gone when the victim was killed; for the victim, whether its exit was observed.
    #[serde(default)]
    pub exited: bool,
}

/// One of the largest surviving processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Large")]
pub(crate) struct LargeProcess {
    /// The fields of every process.
    #[serde(flatten)]
    pub process: ProcessInfo,
    /// Resident anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Resident file pages.
    pub file_bytes: Option<u64>,
    /// Resident shared memory.
    pub shmem_bytes: Option<u64>,
    /// Memory in swap.
    pub swap_bytes: Option<u64>,
}

/// A victim, with the details that the kernel provides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Dead")]
pub(crate) struct VictimInfo {
    /// The fields of every process.
    #[serde(flatten)]
    pub process: ProcessInfo,
    /// User ID in the host's user namespace.
    pub uid: Option<u32>,
    /// As in `/proc/PID/oom_score_adj`.
    pub oom_score_adj: Option<i16>,
    /// Resident anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Resident file pages.
    pub file_bytes: Option<u64>,
    /// Resident shared memory.
    pub shmem_bytes: Option<u64>,
    /// Memory in swap.
    pub swap_bytes: Option<u64>,
    /// Size of its page tables.
    pub pgtables_bytes: Option<u64>,
}

/// What a report contains besides the victim.
#[derive(Debug, Clone)]
pub(in crate::monitor) struct KillContext {
    /// Wall-clock time of the kill.
    pub(in crate::monitor) time: SystemTime,
    /// The victim's memory cgroup.
    pub(in crate::monitor) cgroup: Option<CgroupFacts>,
    pub(in crate::monitor) explanation: Explanation,
    /// Records that the tracer has dropped so far.
    pub(in crate::monitor) lost_records: u64,
    /// The largest surviving processes, at most [`LARGEST`].
    pub(in crate::monitor) largest: Vec<(ProcessRecord, Option<SizeSplit>)>,
}

impl OomReport {
    /// Reports a victim that the tracer saw, with its co-victims.
    #[must_use]
    pub(in crate::monitor) fn of_victim(
        victim: &Victim,
        members: &[Victim],
        history: &History,
        context: KillContext,
    ) -> Self {
        let (key, at_ns) = (victim.kill.victim, victim.killed_at_boot_ns);
        let victim_info = VictimInfo::of(victim, history);
        let report = Self::new(victim.confidence, victim.tracer, victim_info, key, at_ns, history, context);
        Self {
            exited_at_boot_ns: victim.exited_at_boot_ns,
            with_pid: victim.co_victim_of.map(|with| with.pid),
            members: members.iter().take(MAX_MEMBERS).map(|member| VictimInfo::of(member, history)).collect(),
            members_left_out: members.len().saturating_sub(MAX_MEMBERS),
            trigger: victim.trigger.clone(),
            ..report
        }
    }

    #[must_use]
    pub(in crate::monitor) fn with_evidence(self, evidence: Option<Box<KillEvidence>>) -> Self {
        Self { evidence, ..self }
    }

    /// Reports a process that was inferred to be a victim.
    #[must_use]
    pub(in crate::monitor) fn of_candidate(
        confidence: Confidence,
        candidate: &Candidate,
        at_ns: u64,
        history: &History,
        context: KillContext,
    ) -> Self {
        let victim_info = VictimInfo {
            process: ProcessInfo {
                exited: candidate.process.gone_at_boot_ns.is_some(),
                ..ProcessInfo::of(&candidate.process, at_ns)
            },
            uid: None,
            oom_score_adj: Some(candidate.process.oom_score_adj),
            anon_bytes: None,
            file_bytes: None,
            shmem_bytes: None,
            swap_bytes: None,
            pgtables_bytes: None,
        };
        Self::new(confidence, TracerKind::Snapshot, victim_info, candidate.process.key, at_ns, history, context)
    }

    fn new(
        confidence: Confidence,
        tracer: TracerKind,
        victim: VictimInfo,
        key: ProcessKey,
        at_ns: u64,
        history: &History,
        context: KillContext,
    ) -> Self {
        let infos =
            |processes: Vec<ProcessRecord>| processes.iter().map(|process| ProcessInfo::of(process, at_ns)).collect();
        Self {
            event: EVENT,
            confidence,
            tracer,
            time: context.time,
            killed_at_boot_ns: at_ns,
            exited_at_boot_ns: None,
            victim,
            with_pid: None,
            members: Vec::new(),
            members_left_out: 0,
            trigger: None,
            ancestors: infos(history.chain(key, at_ns)),
            largest: context.largest.iter().map(|(process, split)| LargeProcess::of(process, *split, at_ns)).collect(),
            cgroup: context.cgroup,
            explanation: context.explanation,
            lost_records: context.lost_records,
            evidence: None,
        }
    }
}

impl KillEvidence {
    pub(in crate::monitor) fn of(
        victim: &Victim,
        members: &[Victim],
        member_cgroups: Vec<Option<String>>,
        facts: &MemoryFacts,
    ) -> Self {
        let victims = std::iter::once(victim).chain(members).take(1 + MAX_MEMBERS).cloned().collect();
        let first = facts.cgroup.as_ref().map(|cgroup| cgroup.path.clone());
        let cgroups = std::iter::once(first).chain(member_cgroups).take(1 + MAX_MEMBERS).collect();
        Self { victims, cgroups, facts: facts.clone() }
    }
}

impl VictimInfo {
    /// A victim that the tracer saw.
    fn of(victim: &Victim, history: &History) -> Self {
        let (kill, at_ns) = (&victim.kill, victim.killed_at_boot_ns);
        let known = history.find(kill.victim);
        let cmdline = known.as_ref().map(|process| Arc::clone(&process.cmdline)).unwrap_or_default();
        let first_cmdline = known.as_ref().and_then(|process| process.first_cmdline.clone());
        let memory = KilledMemory::of(&kill.memory);
        let process = ProcessInfo {
            pid: kill.victim.pid,
            start_ticks: kill.victim.start_ticks,
            name: Arc::from(kill.name.as_str()),
            cmdline_is_cut: cmdline.is_cut,
            cmdline,
            first_cmdline,
            running_s: running_s(kill.victim, at_ns),
            vm_bytes: memory.vm_bytes.or_else(|| known.as_ref()?.vm_bytes()),
            rss_bytes: victim_rss(&kill.memory, known.as_ref()),
            exited: victim.exited_at_boot_ns.is_some(),
        };
        Self {
            process,
            uid: Some(kill.uid),
            oom_score_adj: Some(kill.oom_score_adj),
            anon_bytes: memory.if_counted(kill.memory.anon_bytes),
            file_bytes: memory.if_counted(kill.memory.file_bytes),
            shmem_bytes: memory.if_counted(kill.memory.shmem_bytes),
            swap_bytes: memory.if_counted(kill.memory.swap_bytes),
            pgtables_bytes: Some(kill.memory.pgtables_bytes).filter(|bytes| *bytes > 0),
        }
    }
}

impl LargeProcess {
    fn of(process: &ProcessRecord, split: Option<SizeSplit>, at_ns: u64) -> Self {
        Self {
            process: ProcessInfo::of(process, at_ns),
            anon_bytes: split.map(|split| split.anon_bytes),
            file_bytes: split.map(|split| split.file_bytes),
            shmem_bytes: split.map(|split| split.shmem_bytes),
            swap_bytes: split.map(|split| split.swap_bytes),
        }
    }
}

impl ProcessInfo {
    /// Identity of the process.
    #[must_use]
    pub(crate) fn key(&self) -> ProcessKey {
        ProcessKey { pid: self.pid, start_ticks: self.start_ticks }
    }

    fn of(process: &ProcessRecord, at_ns: u64) -> Self {
        Self {
            pid: process.key.pid,
            start_ticks: process.key.start_ticks,
            name: Arc::clone(&process.name),
            cmdline: Arc::clone(&process.cmdline),
            first_cmdline: process.first_cmdline.clone(),
            cmdline_is_cut: process.cmdline.is_cut,
            running_s: running_s(process.key, at_ns),
            vm_bytes: process.vm_bytes(),
            rss_bytes: process.rss_bytes(),
            exited: process.is_gone_at(at_ns),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds are more than is shown")]
fn running_s(process: ProcessKey, at_ns: u64) -> f64 {
    Duration::from_nanos(at_ns.saturating_sub(process.start_boot_ns())).as_millis() as f64 / 1000.0
}

/// The victim's sizes as far as the kernel provided them.
///
/// The tracer reports 0 for what it could not read: the kernel's types lack the field, or the victim had freed its memory. A
/// living process that is killed for its memory has some.
#[derive(Debug, Clone, Copy)]
struct KilledMemory {
    vm_bytes: Option<u64>,
    rss_bytes: Option<u64>,
}

impl KilledMemory {
    fn of(memory: &MemoryAtKill) -> Self {
        let resident_bytes = memory.anon_bytes + memory.file_bytes + memory.shmem_bytes;
        let is_counted = resident_bytes + memory.swap_bytes > 0;
        let vm_bytes = Some(memory.vm_bytes).filter(|bytes| *bytes > 0);
        Self { vm_bytes, rss_bytes: is_counted.then_some(resident_bytes) }
    }

    /// A part of the resident memory, if known.
    fn if_counted(self, bytes: u64) -> Option<u64> {
        self.rss_bytes.map(|_| bytes)
    }
}

/// A victim's resident memory: the kernel's value, else the last reading.
pub(in crate::monitor) fn victim_rss(memory: &MemoryAtKill, known: Option<&ProcessRecord>) -> Option<u64> {
    KilledMemory::of(memory).rss_bytes.or_else(|| known?.rss_bytes())
}
