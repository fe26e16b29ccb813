//! Interprets the findings of [`probe`](super::probe): one check each, with a remedy. Pure.
//!
//! [`CheckState::Missing`] is for root causes only: if a missing capability explains a failed call, the call is a note,
//! so that the remedies are exactly what has to be done.

use std::io;

use krunner_common::{ABSENT, Offsets};

use super::btf::BtfError;
use super::findings::{CheckState, Findings, HostCheck, Obstacle, TracerChoice};
use crate::error::chain;
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::detection::{Scope, TracerKind};
use crate::monitor::sources::cgroup::{Cgroup, CgroupError};
use crate::monitor::sources::procfs::ProcView;
use crate::sys::{Capabilities, Capability};

/// The value of `SECCOMP_MODE_FILTER` (include/uapi/linux/seccomp.h).
const SECCOMP_FILTER: u8 = 2;

/// Memory limit for maps and ring buffers together, by contract.
const BPF_MEMORY_BYTES: u64 = 2 << 20;

/// Name of the check of the kernel's BTF.
pub(super) const KERNEL_BTF: &str = "kernel-btf";

const SETCAP: &str = "`setcap cap_bpf,cap_perfmon+p` krunner's file";

impl Findings {
    /// The best tracer that the findings allow.
    #[must_use]
    pub(crate) fn choose(&self) -> TracerChoice {
        let missing = self.checks().into_iter().filter(|check| check.state == CheckState::Missing);
        let why_not_better: Vec<Obstacle> =
            missing.map(|check| Obstacle { check: check.check, what: check.found, remedy: check.remedy }).collect();
        let tracer = if why_not_better.is_empty() { TracerKind::Bpf } else { TracerKind::Snapshot };
        TracerChoice { tracer, why_not_better }
    }

    /// Whose OOM kills would be reported. If the namespace is unknown, stay with our cgroup: other processes may belong
    /// to other tenants.
    #[must_use]
    pub(crate) fn scope(&self) -> Scope {
        if self.is_initial_pid_namespace == Some(false) { Scope::PidNamespace } else { Scope::Cgroup }
    }

    /// Whether OOM kills are counted where krunner can read it, so that they are detected without eBPF.
    #[must_use]
    pub(crate) fn counts_kills(&self) -> bool {
        self.cgroup.as_ref().is_ok_and(Cgroup::counts_kills)
    }

    /// All checks, in the order of `krunner doctor`.
    #[must_use]
    pub(crate) fn checks(&self) -> Vec<HostCheck> {
        checks(self)
    }
}

fn checks(findings: &Findings) -> Vec<HostCheck> {
    vec![
        user_namespace(findings),
        capabilities(findings),
        bpf_call(findings),
        seccomp(findings),
        lockdown(findings),
        kernel_btf(findings),
        memlock(findings),
        tracefs(findings),
        unprivileged_bpf(findings),
        pid_namespace(findings),
        cgroup(findings),
        proc(findings),
    ]
}

fn ok(check: &'static str, found: impl Into<String>) -> HostCheck {
    HostCheck { check, state: CheckState::Ok, found: found.into(), remedy: None }
}

fn note(check: &'static str, found: impl Into<String>) -> HostCheck {
    HostCheck { check, state: CheckState::Note, found: found.into(), remedy: None }
}

fn missing(check: &'static str, found: impl Into<String>) -> HostCheck {
    HostCheck { check, state: CheckState::Missing, found: found.into(), remedy: None }
}

impl HostCheck {
    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// The capabilities relevant to BPF; `CAP_SYS_ADMIN` includes the others.
fn for_bpf(held: Capabilities) -> Capabilities {
    use Capability::{CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN};
    held.common_with([CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN].into_iter().collect())
}

/// bpf(2) and `Documentation/admin-guide/perf-security.rst`: two since 5.8, one that holds everything before.
fn suffice(held: Capabilities) -> bool {
    held.contains(Capability::CAP_SYS_ADMIN)
        || held.contains(Capability::CAP_BPF) && held.contains(Capability::CAP_PERFMON)
}

/// Whether the thread has the capabilities, in the host's user namespace.
fn is_entitled(findings: &Findings) -> bool {
    suffice(findings.permitted) && findings.is_initial_user_namespace != Some(false)
}

fn capabilities(findings: &Findings) -> HostCheck {
    let held = for_bpf(findings.permitted);
    if suffice(held) {
        return ok("capabilities", held.to_string());
    }
    let told = missing("capabilities", format!("CAP_BPF and CAP_PERFMON are required; held: {held}"));
    let may = suffice(findings.bounding);
    told.remedy(match (may, findings.is_root, findings.no_new_privileges) {
        (true, true, _) => "start krunner with both capabilities raised (they are in its bounding set)".to_owned(),
        (true, false, false) => format!("{SETCAP}, or run it as root"),
        (true, false, true) => "run krunner as root: no_new_privs disables file capabilities".to_owned(),
        (false, true, _) => "start the container with --cap-add BPF --cap-add PERFMON".to_owned(),
        (false, false, _) => format!("start the container with --cap-add BPF --cap-add PERFMON, and {SETCAP}"),
    })
}

/// `bpf_capable` asks for capabilities in the initial user namespace (include/linux/capability.h).
fn user_namespace(findings: &Findings) -> HostCheck {
    match findings.is_initial_user_namespace {
        Some(true) => ok("user-namespace", "the host's"),
        Some(false) => missing(
            "user-namespace",
            "not the host's (as under rootless podman or docker); BPF requires capabilities in the host's user namespace",
        )
        .remedy(
            "start the container with a rootful engine and --userns=host; a rootless engine cannot grant \
             these capabilities",
        ),
        None => note("user-namespace", "unknown"),
    }
}

fn bpf_call(findings: &Findings) -> HostCheck {
    const CHECK: &str = "bpf-call";
    let Err(error) = &findings.bpf_answer else { return ok(CHECK, "answered") };
    let is_filtered = findings.seccomp == Some(SECCOMP_FILTER);
    let allow = "allow bpf in the container's seccomp profile";
    match (error.raw_os_error(), is_entitled(findings), is_filtered) {
        (Some(libc::ENOSYS), _, true) => {
            missing(CHECK, "ENOSYS: not implemented by the kernel, or blocked by seccomp").remedy(allow)
        }
        (Some(libc::ENOSYS), ..) => {
            missing(CHECK, "not implemented by the kernel").remedy("use a kernel with CONFIG_BPF_SYSCALL=y")
        }
        (Some(libc::EINVAL), ..) => {
            missing(CHECK, "the kernel has no BPF ring buffer").remedy("use Linux 5.8 or later")
        }
        (Some(libc::EPERM), false, _) => note(CHECK, "denied (capabilities are missing)"),
        (Some(libc::EPERM), true, true) => {
            missing(CHECK, "blocked by seccomp (capabilities are sufficient)").remedy(allow)
        }
        (Some(libc::EPERM), true, false) => missing(CHECK, "denied, although the capabilities are sufficient")
            .remedy("allow bpf in the host's LSM policy; before Linux 5.11, raise the memlock limit"),
        _ => missing(CHECK, error.to_string()),
    }
}

/// A filter that allows bpf(2) is fine; [`bpf_call`] shows whether it does.
fn seccomp(findings: &Findings) -> HostCheck {
    match (findings.seccomp, &findings.bpf_answer) {
        (Some(0), _) => ok("seccomp", "no filter"),
        (Some(SECCOMP_FILTER), Ok(())) => ok("seccomp", "a filter that allows bpf(2)"),
        (Some(_), _) => note("seccomp", "a filter that may block bpf(2)"),
        (None, _) => note("seccomp", "unknown"),
    }
}

/// `LOCKDOWN_BPF_READ_KERNEL` is above integrity (include/linux/security.h).
fn lockdown(findings: &Findings) -> HostCheck {
    match findings.lockdown.as_deref() {
        Some("confidentiality") => {
            missing("lockdown", "confidentiality mode, which forbids BPF reads of kernel memory")
                .remedy("boot the host with lockdown=integrity or none")
        }
        Some(mode) => ok("lockdown", mode),
        None => note("lockdown", "unknown: no lockdown support, or securityfs is not mounted"),
    }
}

fn kernel_btf(findings: &Findings) -> HostCheck {
    let error = match &findings.btf {
        Ok(facts) => {
            let lacks = lacks(&facts.offsets);
            return match lacks.as_slice() {
                [] => ok(KERNEL_BTF, "complete"),
                _ => note(KERNEL_BTF, format!("usable; not available for reports: {}", lacks.join(", "))),
            };
        }
        Err(error) => error,
    };
    let told = missing(KERNEL_BTF, chain(error));
    match error {
        BtfError::Read(_, cause) if cause.kind() == io::ErrorKind::NotFound => {
            told.remedy("use a kernel with CONFIG_DEBUG_INFO_BTF=y and mount /sys in the container")
        }
        BtfError::Empty => told.remedy("start the container without masking /sys/kernel/btf"),
        BtfError::Read(..) => told.remedy("make the file readable by krunner"),
        _ => told.remedy("use a different kernel, or a krunner release that supports this one"),
    }
}

/// Report fields that this kernel's BTF does not provide.
fn lacks(offsets: &Offsets) -> Vec<&'static str> {
    let figures = [
        ("group exit codes", offsets.signal_group_exit_code),
        ("oom_score_adj", offsets.signal_oom_score_adj),
        ("parents", offsets.task_real_parent),
        ("names", offsets.task_comm),
        ("users", offsets.task_real_cred.max(offsets.cred_uid)),
        ("memory", offsets.task_mm.max(offsets.mm_total_vm).max(offsets.mm_rss)),
        ("page tables", offsets.mm_pgtables_bytes),
        ("arguments", offsets.mm_arg_start.max(offsets.mm_arg_end)),
    ];
    figures.iter().filter(|(_, offset)| *offset == ABSENT).map(|(name, _)| *name).collect()
}

/// Kernels before 5.11 charge maps to the memlock limit (`bpf_map_charge_memlock`). There is no way to query which
/// behavior this kernel has.
fn memlock(findings: &Findings) -> HostCheck {
    match findings.memlock_bytes {
        None => ok("memlock", "no limit"),
        Some(bytes) if bytes >= BPF_MEMORY_BYTES => ok("memlock", format!("{} KiB", bytes >> 10)),
        Some(bytes) => note("memlock", format!("{} KiB; too low for kernels before 5.11", bytes >> 10))
            .remedy("on such kernels, start the container with --ulimit memlock=-1"),
    }
}

fn tracefs(findings: &Findings) -> HostCheck {
    let found = findings.tracefs.as_ref().map_or_else(|| "not mounted".to_owned(), |point| format!("at {point}"));
    note("tracefs", format!("{found} (not required)"))
}

fn unprivileged_bpf(findings: &Findings) -> HostCheck {
    let found = match findings.unprivileged_bpf_disabled {
        Some(0) => "kernel.unprivileged_bpf_disabled is 0 (tracing requires capabilities anyway)".to_owned(),
        Some(value) => format!("kernel.unprivileged_bpf_disabled is {value}"),
        None => "unknown".to_owned(),
    };
    note("unprivileged-bpf", found)
}

fn pid_namespace(findings: &Findings) -> HostCheck {
    match findings.is_initial_pid_namespace {
        Some(false) => ok("pid-namespace", "the container's own; OOM kills in it are reported"),
        Some(true) => note("pid-namespace", "the host's; OOM kills in krunner's own cgroup are reported"),
        None => note("pid-namespace", "unknown; OOM kills in krunner's own cgroup are reported"),
    }
}

const MOUNT_CGROUPS: &str = "mount cgroupfs in the container, readable by krunner";

fn cgroup(findings: &Findings) -> HostCheck {
    match (&findings.cgroup, &findings.cgroup_facts) {
        (Err(error), _) => note("cgroup", chain(error)).remedy(MOUNT_CGROUPS),
        (Ok(_), None) => note("cgroup", "cannot be read").remedy(MOUNT_CGROUPS),
        (Ok(_), Some(facts)) => found_cgroup(facts, &findings.cgroup_problems),
    }
}

fn found_cgroup(facts: &CgroupFacts, problems: &[CgroupError]) -> HostCheck {
    let is_root = problems.iter().any(|problem| matches!(problem, CgroupError::IsRoot(_)));
    let problems: Vec<String> = problems.iter().map(|problem| chain(problem)).collect();
    match (problems.is_empty(), is_root) {
        (true, _) => ok("cgroup", describe(facts)),
        (false, true) => note("cgroup", problems.join("; "))
            .remedy("start krunner in its own cgroup, as container engines and `systemd-run --scope` do"),
        (false, false) => note("cgroup", format!("{}; {}", describe(facts), problems.join("; "))).remedy(MOUNT_CGROUPS),
    }
}

fn describe(facts: &CgroupFacts) -> String {
    let limit = facts.limit_bytes.map_or_else(|| "no limit".to_owned(), |bytes| format!("limit {} MiB", bytes >> 20));
    let counter = facts.oom_kill_count.map_or_else(|| "no OOM kill counter".to_owned(), |n| format!("OOM kills: {n}"));
    format!("v{} {}, {limit}, {counter}", facts.version, facts.path)
}

/// `hidepid` hides other users' processes and, from unprivileged users, their own non-dumpable ones (proc(5)).
fn proc(findings: &Findings) -> HostCheck {
    match (&findings.proc_view, &findings.hidepid) {
        (ProcView::Foreign, _) => note(
            "proc",
            "shows a different PID namespace: no process names from /proc; without BPF, OOM kills cannot be attributed",
        )
        .remedy(ProcView::REMEDY),
        (ProcView::Missing, _) => note("proc", "not mounted; processes cannot be listed").remedy("mount /proc"),
        (_, None) => ok("proc", "shows all processes"),
        (ProcView::OthersHidden(_), Some(value)) => note(
            "proc",
            format!(
                "mounted with hidepid={value}: other users' processes are hidden; without BPF, their OOM kills cannot \
                 be attributed"
            ),
        )
        .remedy("mount /proc without hidepid, or with gid= set to one of krunner's groups"),
        (_, Some(value)) => note("proc", format!("mounted with hidepid={value}, which does not affect this user"))
            .remedy("to monitor other users, mount /proc without hidepid"),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
