//! What the findings of [`probe`](super::probe) mean, one line each, and what would help.
//!
//! Pure. [`State::Missing`] is for what rules BPF out by itself: where a missing capability explains a refused
//! call, the call is only a note, so that the remedies add up to what has to be done and no more.

use std::io;

use krunner_common::{ABSENT, Offsets};

use super::btf::BtfError;
use super::probe::{Check, Findings, State};
use crate::error::chain;
use crate::monitor::cgroup::{CgroupError, CgroupFacts};
use crate::monitor::procfs::ProcView;
use crate::sys::{Capabilities, Capability};

/// `SECCOMP_MODE_FILTER` (include/uapi/linux/seccomp.h).
const SECCOMP_FILTER: u8 = 2;

/// What maps and ring may take together, by contract.
const BPF_MEMORY_BYTES: u64 = 2 << 20;

const SETCAP: &str = "`setcap cap_bpf,cap_perfmon+p` krunner's file";

pub(super) fn checks(findings: &Findings) -> Vec<Check> {
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

fn ok(check: &'static str, found: impl Into<String>) -> Check {
    Check { check, state: State::Ok, found: found.into(), remedy: None }
}

fn note(check: &'static str, found: impl Into<String>) -> Check {
    Check { check, state: State::Note, found: found.into(), remedy: None }
}

fn missing(check: &'static str, found: impl Into<String>) -> Check {
    Check { check, state: State::Missing, found: found.into(), remedy: None }
}

impl Check {
    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// Those that have to do with BPF; `CAP_SYS_ADMIN` includes the others.
fn for_bpf(held: Capabilities) -> Capabilities {
    use Capability::{CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN};
    held.common_with([CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN].into_iter().collect())
}

/// bpf(2) and `Documentation/admin-guide/perf-security.rst`: two since 5.8, one that holds everything before.
fn suffice(held: Capabilities) -> bool {
    held.contains(Capability::CAP_SYS_ADMIN)
        || held.contains(Capability::CAP_BPF) && held.contains(Capability::CAP_PERFMON)
}

/// The capabilities are there and count.
fn is_entitled(findings: &Findings) -> bool {
    suffice(findings.permitted) && findings.is_initial_user_namespace != Some(false)
}

fn capabilities(findings: &Findings) -> Check {
    let held = for_bpf(findings.permitted);
    if suffice(held) {
        return ok("capabilities", held.to_string());
    }
    let told = missing("capabilities", format!("CAP_BPF and CAP_PERFMON are needed, held: {held}"));
    let may = suffice(findings.bounding);
    told.remedy(match (may, findings.is_root, findings.no_new_privileges) {
        (true, true, _) => "start krunner with the capabilities of its bounding set".to_owned(),
        (true, false, false) => format!("{SETCAP}, or run it as root"),
        (true, false, true) => "run krunner as root: under no_new_privs a file's capabilities do not count".to_owned(),
        (false, true, _) => "start the container with --cap-add BPF --cap-add PERFMON".to_owned(),
        (false, false, _) => format!("start the container with --cap-add BPF --cap-add PERFMON, and {SETCAP}"),
    })
}

/// `bpf_capable` asks for capabilities in the initial user namespace (include/linux/capability.h).
fn user_namespace(findings: &Findings) -> Check {
    match findings.is_initial_user_namespace {
        Some(true) => ok("user-namespace", "the host's"),
        Some(false) => missing(
            "user-namespace",
            "one of its own (as in rootless podman and docker), whose capabilities do not count for BPF",
        )
        .remedy(
            "start the container by a rootful engine and without user namespace mapping (--userns=host); under a \
                 rootless one no option or capability helps",
        ),
        None => note("user-namespace", "cannot be seen"),
    }
}

fn bpf_call(findings: &Findings) -> Check {
    const CHECK: &str = "bpf-call";
    let Err(error) = &findings.bpf_answer else { return ok(CHECK, "answered") };
    let is_filtered = findings.seccomp == Some(SECCOMP_FILTER);
    let allow = "allow bpf in the container's seccomp profile";
    match (error.raw_os_error(), is_entitled(findings), is_filtered) {
        (Some(libc::ENOSYS), _, true) => {
            missing(CHECK, "the kernel has none, or a seccomp filter says so").remedy(allow)
        }
        (Some(libc::ENOSYS), ..) => missing(CHECK, "the kernel has none").remedy("a kernel with CONFIG_BPF_SYSCALL=y"),
        (Some(libc::EINVAL), ..) => missing(CHECK, "the kernel has no ring buffers").remedy("Linux 5.8 or later"),
        (Some(libc::EPERM), false, _) => note(CHECK, "refused, for want of the capabilities"),
        (Some(libc::EPERM), true, true) => {
            missing(CHECK, "refused by the seccomp filter, for the capabilities are there").remedy(allow)
        }
        (Some(libc::EPERM), true, false) => missing(CHECK, "refused, though the capabilities are there")
            .remedy("allow bpf in the host's security module; before Linux 5.11, lift the memlock limit"),
        _ => missing(CHECK, error.to_string()),
    }
}

/// A filter that lets bpf through is nobody's business; whether it does shows in [`bpf_call`].
fn seccomp(findings: &Findings) -> Check {
    match (findings.seccomp, &findings.bpf_answer) {
        (Some(0), _) => ok("seccomp", "no filter"),
        (Some(SECCOMP_FILTER), Ok(())) => ok("seccomp", "a filter that allows bpf"),
        (Some(_), _) => note("seccomp", "a filter, which may refuse bpf"),
        (None, _) => note("seccomp", "cannot be seen"),
    }
}

/// `LOCKDOWN_BPF_READ_KERNEL` is above integrity (include/linux/security.h).
fn lockdown(findings: &Findings) -> Check {
    match findings.lockdown.as_deref() {
        Some("confidentiality") => {
            missing("lockdown", "confidentiality, under which BPF cannot read the kernel's memory")
                .remedy("boot the host with lockdown=integrity or none")
        }
        Some(mode) => ok("lockdown", mode),
        None => note("lockdown", "cannot be seen: the kernel has none, or securityfs is not mounted here"),
    }
}

fn kernel_btf(findings: &Findings) -> Check {
    let error = match &findings.btf {
        Ok(facts) => {
            let lacks = lacks(&facts.offsets);
            return match lacks.as_slice() {
                [] => ok("kernel-btf", "has all that the programs read"),
                _ => note("kernel-btf", format!("has what the programs need, but not {}", lacks.join(", "))),
            };
        }
        Err(error) => error,
    };
    let told = missing("kernel-btf", chain(error));
    match error {
        BtfError::Read(_, cause) if cause.kind() == io::ErrorKind::NotFound => {
            told.remedy("a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted in the container")
        }
        BtfError::Empty => told.remedy("start the container without a mask over /sys/kernel/btf"),
        BtfError::Read(..) => told.remedy("make the file readable to krunner"),
        _ => told.remedy("another kernel, or a krunner that knows this one"),
    }
}

/// What reports go without on this kernel.
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

/// `bpf_map_charge_memlock` is gone since 5.11; which side of it this kernel is on cannot be asked.
fn memlock(findings: &Findings) -> Check {
    match findings.memlock_bytes {
        None => ok("memlock", "no limit"),
        Some(bytes) if bytes >= BPF_MEMORY_BYTES => ok("memlock", format!("{} KiB", bytes >> 10)),
        Some(bytes) => note("memlock", format!("{} KiB, too little where it counts: before Linux 5.11", bytes >> 10))
            .remedy("there, start the container with --ulimit memlock=-1"),
    }
}

fn tracefs(findings: &Findings) -> Check {
    let found = findings.tracefs.as_ref().map_or_else(|| "not mounted".to_owned(), |point| format!("at {point}"));
    note("tracefs", format!("{found}; it is not needed"))
}

fn unprivileged_bpf(findings: &Findings) -> Check {
    let found = match findings.unprivileged_bpf_disabled {
        Some(0) => "kernel.unprivileged_bpf_disabled is 0; tracing takes the capabilities all the same".to_owned(),
        Some(value) => format!("kernel.unprivileged_bpf_disabled is {value}, as it should be"),
        None => "cannot be seen".to_owned(),
    };
    note("unprivileged-bpf", found)
}

fn pid_namespace(findings: &Findings) -> Check {
    match findings.is_initial_pid_namespace {
        Some(false) => ok("pid-namespace", "its own; the kills in there are reported"),
        Some(true) => note("pid-namespace", "the host's; the kills in krunner's own cgroup are reported"),
        None => note("pid-namespace", "cannot be seen; the kills in krunner's own cgroup are reported"),
    }
}

const MOUNT_CGROUPS: &str = "mount the cgroup file system in the container, readable to krunner";

fn cgroup(findings: &Findings) -> Check {
    match (&findings.cgroup, &findings.cgroup_facts) {
        (Err(error), _) => note("cgroup", chain(error)).remedy(MOUNT_CGROUPS),
        (Ok(_), None) => note("cgroup", "cannot be read").remedy(MOUNT_CGROUPS),
        (Ok(_), Some(facts)) => found_cgroup(facts, &findings.cgroup_problems),
    }
}

fn found_cgroup(facts: &CgroupFacts, problems: &[CgroupError]) -> Check {
    let is_root = problems.iter().any(|problem| matches!(problem, CgroupError::IsRoot(_)));
    let problems: Vec<String> = problems.iter().map(|problem| chain(problem)).collect();
    match (problems.is_empty(), is_root) {
        (true, _) => ok("cgroup", describe(facts)),
        (false, true) => note("cgroup", problems.join("; "))
            .remedy("start krunner in a cgroup of its own, as container engines and `systemd-run --scope` do"),
        (false, false) => note("cgroup", format!("{}; {}", describe(facts), problems.join("; "))).remedy(MOUNT_CGROUPS),
    }
}

fn describe(facts: &CgroupFacts) -> String {
    let limit = facts.limit_bytes.map_or_else(|| "no limit".to_owned(), |bytes| format!("limit {} MiB", bytes >> 20));
    let counter = facts.oom_kill_count.map_or_else(|| "no counter of kills".to_owned(), |n| format!("OOM kills: {n}"));
    format!("v{} {}, {limit}, {counter}", facts.version, facts.path)
}

/// hidepid hides other users' processes, and from an unprivileged user also his own that are not dumpable
/// (proc(5)).
fn proc(findings: &Findings) -> Check {
    match (&findings.proc_view, &findings.hidepid) {
        (ProcView::Foreign, _) => note(
            "proc",
            "shows another PID namespace: no process is named from it; without BPF no OOM kill is attributed",
        )
        .remedy(ProcView::REMEDY),
        (ProcView::Missing, _) => note("proc", "not mounted: processes cannot be seen").remedy("mount /proc"),
        (_, None) => ok("proc", "shows all processes"),
        (ProcView::OthersHidden(_), Some(value)) => note(
            "proc",
            format!(
                "mounted with hidepid={value}: other users' processes are not seen; without BPF their OOM kills are not \
                 attributed"
            ),
        )
        .remedy("mount /proc without hidepid, or with gid= of a group that krunner runs in"),
        (_, Some(value)) => note("proc", format!("mounted with hidepid={value}, which hides nothing from this user"))
            .remedy("for other users mount /proc without hidepid"),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
