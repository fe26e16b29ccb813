//! What a container may do to a runner, beside BPF: ended together with its children, killed in their place, left without
//! processes.
//!
//! [`HostFacts::find`] reads, and [`HostFacts::checks`] is pure. None of these checks rules BPF out.

use std::fs;
use std::path::Path;

use crate::monitor::tracer::probe::{CheckState, HostCheck, ProbeRoots};
use crate::monitor::{Cgroup, CgroupRoot};
use crate::process::{PidsLimit, oom_score};

const MIB: u64 = 1 << 20;

/// A step may be a shell and some programs with threads of their own.
const FEW_PROCESSES: u64 = 16;

const PROTECT: &str = "`setcap cap_bpf,cap_perfmon,cap_sys_resource+p` krunner's file, in a container started with --cap-add \
                       SYS_RESOURCE, which exempts the runner";

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct HostFacts {
    /// Version of the memory cgroup; none if there is none to be seen.
    cgroup_version: Option<u8>,
    /// The cgroup with `memory.oom.group`, ours or one above.
    oom_group: Option<String>,
    limit_bytes: Option<u64>,
    /// In use and `memory.high`, where that is reached.
    throttled: Option<(u64, u64)>,
    machine_bytes: Option<u64>,
    oom_score_adj: Option<i16>,
    /// `CAP_SYS_RESOURCE`, in the host's user namespace.
    may_protect_itself: bool,
    pids: Option<PidsLimit>,
    /// Memory cgroups of this container's processes that our counters do not count; none where all processes of a host are
    /// visible.
    uncounted: Vec<String>,
}

impl HostFacts {
    /// Looks below this folder, which stands for `/`.
    pub(super) fn find(root: &Path, may_protect_itself: bool) -> Self {
        let cgroup = Cgroup::find(&CgroupRoot::below(root)).ok();
        let levels = cgroup.as_ref().filter(|cgroup| cgroup.version == 2).map(Cgroup::visible).unwrap_or_default();
        let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let throttled = levels.iter().find_map(|level| {
            let (current, high) = (number(&level.join("memory.current"))?, number(&level.join("memory.high"))?);
            (current >= high).then_some((current, high))
        });
        let oom_group = levels.iter().find(|level| number(&level.join("memory.oom.group")) == Some(1));
        Self {
            cgroup_version: cgroup.as_ref().map(|cgroup| cgroup.version),
            oom_group: oom_group.map(|level| level.display().to_string()),
            limit_bytes: cgroup.as_ref().and_then(|cgroup| cgroup.facts().limit_bytes),
            throttled,
            machine_bytes: oom_score::machine_bytes(&root.join("proc/meminfo")),
            oom_score_adj: fs::read_to_string(root.join("proc/self/oom_score_adj"))
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            may_protect_itself,
            pids: PidsLimit::find(root),
            uncounted: uncounted(root, cgroup.as_ref()),
        }
    }

    /// Why everything here is slow, if it is.
    pub(super) fn throttling(&self) -> Option<String> {
        self.throttled.map(|(current, high)| {
            format!(
                "{} of {} MiB of memory.high in use: the kernel throttles this container",
                current / MIB,
                high / MIB
            )
        })
    }

    /// A line each.
    pub(super) fn checks(&self) -> Vec<HostCheck> {
        let mut checks = vec![self.oom_group(), self.oom_protection(), self.pids_limit()];
        checks.extend(self.kill_counter());
        checks.extend(self.throttling().map(|found| {
            note("memory-high", found, Some("stop processes or raise memory.high (Kubernetes: MemoryQoS)"))
        }));
        checks
    }

    fn oom_group(&self) -> HostCheck {
        const CHECK: &str = "oom-group";
        match (&self.oom_group, self.cgroup_version) {
            (None, Some(2)) => ok(CHECK, "memory.oom.group is 0: an OOM kill terminates one process"),
            (None, Some(_)) => ok(CHECK, "cgroup v1 has no group kill: an OOM kill terminates one process"),
            (None, None) => note(CHECK, "unknown: not visible here", None),
            (Some(at), _) if self.may_protect_itself => ok(
                CHECK,
                format!(
                    "memory.oom.group is 1 in {at}: an OOM kill terminates all processes except the runner, which is exempt"
                ),
            ),
            (Some(at), _) => {
                let found = format!(
                    "memory.oom.group is 1 in {at}: one OOM kill terminates the whole container, this runner included \
                     (Kubernetes 1.28 and later sets it)"
                );
                let remedy = format!(
                    "kubelet: `singleProcessOOMKill: true` (1.32 and later, cgroup v2); elsewhere write 0 to \
                     memory.oom.group of the container's cgroup; or {PROTECT}"
                );
                note(CHECK, found, Some(&remedy))
            }
        }
    }

    fn oom_protection(&self) -> HostCheck {
        const CHECK: &str = "oom-protection";
        if self.may_protect_itself {
            return ok(CHECK, "the runner is exempt (it has CAP_SYS_RESOURCE)");
        }
        let (Some(base), Some(machine_bytes)) = (self.oom_score_adj, self.machine_bytes) else {
            return note(CHECK, "unknown: /proc has no oom_score_adj or meminfo", None);
        };
        if base == oom_score::NEVER {
            return ok(CHECK, "the container is exempt from OOM kills (oom_score_adj -1000)");
        }
        let limit = self.limit_bytes.filter(|limit| *limit < machine_bytes);
        let children = oom_score::child_adjustment(base, limit, machine_bytes);
        // The most negative base leaves room for everything.
        let needed = oom_score::child_adjustment(0, limit, machine_bytes);
        let at = limit.map_or_else(|| "no limit".to_owned(), |bytes| format!("limit {} MiB", bytes / MIB));
        if children - base >= needed {
            return ok(
                CHECK,
                format!("children start at oom_score_adj {children:+} ({at}), so they are killed before the runner"),
            );
        }
        let found = format!(
            "the runner has oom_score_adj {base} of at most {}: children are ranked {} above it, and {needed} are needed \
             ({at}); a small child may survive the runner",
            oom_score::HIGHEST,
            children - base
        );
        let remedy = format!(
            "start the container with a lower oom_score_adj (Kubernetes: limits equal to requests make the pod \
             Guaranteed), or {PROTECT}"
        );
        note(CHECK, found, Some(&remedy))
    }

    fn kill_counter(&self) -> Option<HostCheck> {
        const SHOWN: usize = 3;
        let shown = self.uncounted.get(..SHOWN).unwrap_or(&self.uncounted).join(", ");
        let more = match self.uncounted.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let found = format!(
            "processes of this container are in other memory cgroups ({shown}{more}): OOM kills there are detected by eBPF only"
        );
        let remedy = "start krunner in the container's top memory cgroup, or grant it CAP_BPF and CAP_PERFMON";
        (!self.uncounted.is_empty()).then(|| note("kill-counter", found, Some(remedy)))
    }

    fn pids_limit(&self) -> HostCheck {
        const CHECK: &str = "pids-limit";
        match self.pids {
            None => ok(CHECK, "no visible limit"),
            Some(limit) => {
                let found = format!("{} of {} processes and threads in use", limit.current, limit.max);
                let is_low = limit.left() < FEW_PROCESSES.max(limit.max / 10);
                if is_low {
                    note(
                        CHECK,
                        format!("{found}: steps that exceed the limit end with -1"),
                        Some(
                            "stop some, or start the container with a higher limit (--pids-limit, kubelet's podPidsLimit)",
                        ),
                    )
                } else {
                    ok(CHECK, found)
                }
            }
        }
    }
}

/// Empty in the host's PID namespace, whose processes are not one container's.
fn uncounted(root: &Path, cgroup: Option<&Cgroup>) -> Vec<String> {
    let is_private = ProbeRoots::below(root).is_initial_pid_namespace() == Some(false);
    let cgroup = cgroup.filter(|_| is_private);
    cgroup.map(|cgroup| cgroup.uncounted(&CgroupRoot::below(root)).into_iter().collect()).unwrap_or_default()
}

fn ok(check: &'static str, found: impl Into<String>) -> HostCheck {
    HostCheck { check, state: CheckState::Ok, found: found.into(), remedy: None }
}

fn note(check: &'static str, found: impl Into<String>, remedy: Option<&str>) -> HostCheck {
    HostCheck { check, state: CheckState::Note, found: found.into(), remedy: remedy.map(str::to_owned) }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
