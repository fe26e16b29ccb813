//! Probes whether this host allows the eBPF tracer.
//!
//! [`probe_host`] never fails: missing information is a finding as well. [`Findings`] are plain data; pure functions
//! in `checks` interpret them. A check that is [`CheckState::Missing`] rules eBPF out; the others are informational.
//!
//! Only loading the programs proves that they work, and that is not done here. Capabilities are per thread, so the
//! probe must run in the thread that would load the programs.

use std::path::PathBuf;
use std::{fs, io};

use super::btf::read_kernel_facts;
pub(crate) use super::findings::{CheckState, Findings, HostCheck};
use crate::monitor::sources::cgroup::{Cgroup, CgroupRoot};
use crate::monitor::sources::procfs::{ProcRoot, ProcView};
use crate::sys::Capabilities;

/// `PROC_PID_INIT_INO` and `PROC_USER_INIT_INO` (`include/linux/proc_ns.h`): the inode numbers of the host's own
/// namespaces, part of the kernel's interface.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// The root directory to probe, for tests.
#[derive(Debug, Clone)]
pub(crate) struct ProbeRoots {
    root: PathBuf,
}

impl Default for ProbeRoots {
    fn default() -> Self {
        Self::below("/")
    }
}

impl ProbeRoots {
    /// Uses this directory as `/`; it has a `proc` and a `sys`.
    #[must_use]
    pub(crate) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn text(&self, file: &str) -> Option<String> {
        let bytes = fs::read(self.root.join(file)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether our PID namespace is the host's; `None` if unknown.
    pub(crate) fn is_initial_pid_namespace(&self) -> Option<bool> {
        Some(self.namespace("pid")? == INITIAL_PID_NAMESPACE)
    }

    /// The inode number in a link like `pid:[4026531836]` (namespaces(7)).
    fn namespace(&self, kind: &str) -> Option<u64> {
        let link = fs::read_link(self.root.join("proc/thread-self/ns").join(kind)).ok()?;
        link.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    }
}

/// Probes the host. `bpf_answer` is [`sys::try_bpf`](crate::sys::try_bpf)'s, by the calling thread with its
/// capabilities [raised](crate::sys::raise_permitted).
#[must_use]
pub(crate) fn probe_host(roots: &ProbeRoots, bpf_answer: io::Result<()>) -> Findings {
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

/// The mode in brackets, as in `none [integrity] confidentiality`.
fn chosen(modes: &str) -> Option<String> {
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Mount point and options of the last mount of this type in `/proc/PID/mounts` (fstab(5)), which hides earlier ones.
fn mounted<'a>(mounts: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, found, options) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then_some((point, options))
    })
}

/// The option's value, a number or a word, unless it hides nothing.
fn hidepid(options: &str) -> Option<String> {
    let value = options.split(',').find_map(|option| option.strip_prefix("hidepid="))?;
    (!matches!(value, "0" | "off")).then(|| value.to_owned())
}

/// Parses the soft limit of locked memory.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}
