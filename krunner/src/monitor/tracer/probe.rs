//! What this host allows: BPF, or snapshots of `/proc` only, and what would have to change.
//!
//! [`of_this_host`] looks and never fails: what cannot be seen is a finding too. [`Findings`] are plain data;
//! what they mean is decided by pure functions of them, in `checks`. A check that is [`State::Missing`] rules BPF out,
//! the others inform.
//!
//! The proof is in loading the programs, which is not done here: a host may refuse for a reason of its own. And
//! capabilities belong to threads, so the look is that of the thread that would load them.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::btf::{BtfError, KernelFacts, read_kernel_facts};
use super::checks::checks;
use super::kind::{Scope, TracerKind};
use crate::monitor::cgroup::{Cgroup, CgroupError, CgroupFacts, CgroupRoot};
use crate::monitor::procfs::{ProcRoot, ProcView};
use crate::sys::Capabilities;

/// `PROC_PID_INIT_INO` and `PROC_USER_INIT_INO` (`include/linux/proc_ns.h`): the inode numbers of the host's own
/// namespaces, part of the kernel's interface.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Where the findings come from.
#[derive(Debug, Clone)]
pub struct ProbeRoots {
    root: PathBuf,
}

impl Default for ProbeRoots {
    fn default() -> Self {
        Self::below("/")
    }
}

impl ProbeRoots {
    /// This folder stands for `/`, with a `proc` and a `sys`.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn text(&self, file: &str) -> Option<String> {
        let bytes = fs::read(self.root.join(file)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether ours is the host's PID namespace; `None` where that cannot be seen.
    pub(crate) fn is_initial_pid_namespace(&self) -> Option<bool> {
        Some(self.namespace("pid")? == INITIAL_PID_NAMESPACE)
    }

    /// The inode number in a link like `pid:[4026531836]` (namespaces(7)).
    fn namespace(&self, kind: &str) -> Option<u64> {
        let link = fs::read_link(self.root.join("proc/thread-self/ns").join(kind)).ok()?;
        link.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    }
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As BPF needs it.
    Ok,
    /// Rules BPF out.
    Missing,
    /// Worth knowing.
    Note,
}

/// One look at the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; stable.
    pub check: &'static str,
    /// What it comes to.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What would help.
    pub remedy: Option<String>,
}

/// Why the better tracer is not to be had. Both are fragments of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What is in the way.
    pub what: String,
    /// What would help.
    pub remedy: Option<String>,
}

impl fmt::Display for Reason {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(to, "{} (remedy: {remedy})", self.what),
            None => to.write_str(&self.what),
        }
    }
}

/// The best tracer that the findings allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub tracer: TracerKind,
    /// Empty when there is no better one.
    pub why_not_better: Vec<Reason>,
}

/// What was found.
#[derive(Debug)]
pub struct Findings {
    /// What the thread may make effective.
    pub permitted: Capabilities,
    /// What an exec can give at most.
    pub bounding: Capabilities,
    /// The thread is root's.
    pub is_root: bool,
    /// Execs give nothing new: capabilities of files count for nothing.
    pub no_new_privileges: bool,
    /// `Seccomp:` of the thread's status: 0 is none, 2 a filter.
    pub seccomp: Option<u8>,
    /// Our user namespace is the host's; none if that cannot be seen.
    pub is_initial_user_namespace: Option<bool>,
    /// Our pid namespace is the host's; none if that cannot be seen.
    pub is_initial_pid_namespace: Option<bool>,
    /// How the kernel answers a bpf call.
    pub bpf_answer: io::Result<()>,
    /// What the kernel says of its structs.
    pub btf: Result<KernelFacts, BtfError>,
    /// The lockdown mode; none without securityfs or lockdown.
    pub lockdown: Option<String>,
    /// Where tracefs is mounted.
    pub tracefs: Option<String>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<u8>,
    /// Whose processes `/proc` shows.
    pub proc_view: ProcView,
    /// Of `/proc`'s mount options; none if it hides nothing.
    pub hidepid: Option<String>,
    /// The limit of locked memory; none if there is none.
    pub memlock_bytes: Option<u64>,
    /// Our memory cgroup.
    pub cgroup: Result<Cgroup, CgroupError>,
    /// What is known of it.
    pub cgroup_facts: Option<CgroupFacts>,
    /// Why not more is known of it.
    pub cgroup_problems: Vec<CgroupError>,
}

/// Looks. `bpf_answer` is [`sys::try_bpf`](crate::sys::try_bpf)'s, by the calling thread with its capabilities
/// [raised](crate::sys::raise_permitted).
#[must_use]
pub fn of_this_host(roots: &ProbeRoots, bpf_answer: io::Result<()>) -> Findings {
    let status = roots.text("proc/thread-self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    let bits = |name| field(name).and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let mounts = roots.text("proc/thread-self/mounts").unwrap_or_default();
    let cgroup = Cgroup::find(&CgroupRoot::below(&roots.root));
    let reading = cgroup.as_ref().ok().map(Cgroup::read);
    Findings {
        permitted: Capabilities::from_bits(bits("CapPrm")),
        bounding: Capabilities::from_bits(bits("CapBnd")),
        is_root: field("Uid").and_then(|ids| ids.split('\t').nth(1)) == Some("0"),
        no_new_privileges: field("NoNewPrivs") == Some("1"),
        seccomp: field("Seccomp").and_then(|mode| mode.parse().ok()),
        is_initial_user_namespace: roots.namespace("user").map(|inode| inode == INITIAL_USER_NAMESPACE),
        is_initial_pid_namespace: roots.is_initial_pid_namespace(),
        bpf_answer,
        btf: read_kernel_facts(&roots.root.join("sys/kernel/btf/vmlinux")),
        lockdown: roots.text("sys/kernel/security/lockdown").and_then(|modes| chosen(&modes)),
        tracefs: mounted(&mounts, "tracefs").map(|(point, _)| point.to_owned()),
        unprivileged_bpf_disabled: roots
            .text("proc/sys/kernel/unprivileged_bpf_disabled")
            .and_then(|text| text.parse().ok()),
        proc_view: ProcView::find(&ProcRoot::new(roots.root.join("proc")), std::process::id()),
        hidepid: mounted(&mounts, "proc").and_then(|(_, options)| hidepid(options)),
        memlock_bytes: memlock(&roots.text("proc/thread-self/limits").unwrap_or_default()),
        cgroup_facts: reading.as_ref().map(|reading| reading.facts.clone()),
        cgroup_problems: reading.map(|reading| reading.problems).unwrap_or_default(),
        cgroup,
    }
}

impl Findings {
    /// The best tracer that they allow.
    #[must_use]
    pub fn choose(&self) -> Choice {
        let missing = self.checks().into_iter().filter(|check| check.state == State::Missing);
        let why_not_better: Vec<Reason> =
            missing.map(|check| Reason { what: check.found, remedy: check.remedy }).collect();
        let tracer = if why_not_better.is_empty() { TracerKind::Bpf } else { TracerKind::Snapshot };
        Choice { tracer, why_not_better }
    }

    /// Whose kills would be reported. Not to know means not to name what may be others' processes.
    #[must_use]
    pub fn scope(&self) -> Scope {
        if self.is_initial_pid_namespace == Some(false) { Scope::PidNamespace } else { Scope::Cgroup }
    }

    /// All of them, one by one.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        checks(self)
    }
}

/// `none [integrity] confidentiality`: the one in brackets.
fn chosen(modes: &str) -> Option<String> {
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Mount point and options of the last mount of that kind in `/proc/PID/mounts` (fstab(5)): it covers others at
/// the same place.
fn mounted<'a>(mounts: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, found, options) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then_some((point, options))
    })
}

/// The option as it is written, number or word, unless it hides nothing.
fn hidepid(options: &str) -> Option<String> {
    let value = options.split(',').find_map(|option| option.strip_prefix("hidepid="))?;
    (!matches!(value, "0" | "off")).then(|| value.to_owned())
}

/// The soft limit of locked memory.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}
