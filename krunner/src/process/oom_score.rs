//! `oom_score_adj` of the runner and its children, so that the OOM killer chooses a child first.
//!
//! At a memory limit the kernel kills the process with the highest *badness* (`oom_badness`, `mm/oom_kill.c`): its
//! resident memory, swap and page tables, plus `oom_score_adj` thousandths of the limit that was hit. By default all
//! processes of a container have the same `oom_score_adj`. Among small processes (forty shells of 2 MiB; a `dd` that
//! fills a tmpfs, whose pages belong to no process) the runner is the largest, so it is killed and the session with it.
//!
//! So children start with a value just high enough that even the smallest child scores above the runner:
//!
//! ```text
//! child = inherited + ceil(1000 * RUNNER_BYTES / limit)      64 MiB: +375    1 GiB: +24    24 GiB, no limit: +1
//! ```
//!
//! The smallest limit above us counts, because the same thousandths of a larger limit are more bytes. Without a limit
//! the machine's memory is used instead, which adds almost nothing, so that containers keep their order when the whole
//! node runs out of memory. The inherited value is the base, because orchestrators rank containers by it; -1000
//! ("never") is left unchanged. A program that sets its own value keeps it.
//!
//! With `CAP_SYS_RESOURCE` the runner exempts itself instead (-1000), and children start with the inherited value. That
//! also keeps the runner alive when `memory.oom.group` kills a whole container (`oom_kill_memcg_member`,
//! `mm/oom_kill.c`).

use std::fs;
use std::path::Path;

use crate::sys;

/// The assumed maximum size of the runner: twice its resident memory beside a Jupyter kernel (`cargo xtask bench --only
/// kernel-rss stall`).
const RUNNER_BYTES: u64 = 24 << 20;

/// `OOM_SCORE_ADJ_MIN` and `OOM_SCORE_ADJ_MAX` (include/uapi/linux/oom.h).
pub(crate) const NEVER: i16 = -1000;
pub(crate) const HIGHEST: i16 = 1000;

/// The `oom_score_adj` of children, for a runner that inherited `base`. `limit_bytes` is the smallest memory limit that
/// applies; without one, `machine_bytes` is used.
#[must_use]
pub(crate) fn child_adjustment(base: i16, limit_bytes: Option<u64>, machine_bytes: u64) -> i16 {
    if base <= NEVER {
        return NEVER;
    }
    let total_bytes = limit_bytes.unwrap_or(u64::MAX).min(machine_bytes).max(1);
    let thousandths = RUNNER_BYTES.saturating_mul(1000).div_ceil(total_bytes);
    base.saturating_add(i16::try_from(thousandths).unwrap_or(HIGHEST)).min(HIGHEST)
}

/// How `oom_score_adj` is set for the runner and its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OomScorePolicy {
    /// Unchanged, because `/proc/self/oom_score_adj` could not be read.
    Unchanged,
    /// Children start with this value, which is above the runner's.
    RaiseChildren(i16),
    /// The runner is exempt from the OOM killer; children start with this inherited value.
    ExemptRunner(i16),
}

impl OomScorePolicy {
    /// Sets the runner's own value and chooses the one for children. Call while the process has one thread, before the
    /// file capabilities are dropped. `limit_bytes` as for [`child_adjustment`].
    #[must_use]
    pub(crate) fn set_up(limit_bytes: Option<u64>) -> Self {
        let Ok(base) = sys::oom_score_adj() else { return Self::Unchanged };
        match sys::never_kill_this_process() {
            Ok(true) => Self::ExemptRunner(base),
            // Without the capability, or if the kernel refuses: raising children needs no privilege.
            Ok(false) | Err(_) => {
                let machine_bytes = machine_bytes(Path::new("/proc/meminfo")).unwrap_or(u64::MAX);
                Self::RaiseChildren(child_adjustment(base, limit_bytes, machine_bytes))
            }
        }
    }

    /// Makes a command start with the value for children.
    pub(super) fn apply(self, command: &mut std::process::Command) {
        match self {
            Self::Unchanged => {}
            Self::RaiseChildren(value) => sys::start_with_oom_score_adj(command, value, false),
            // A child must not run with the runner's exemption, so failing to reset it fails the spawn.
            Self::ExemptRunner(value) => sys::start_with_oom_score_adj(command, value, true),
        }
    }
}

/// Reads `MemTotal` from `/proc/meminfo` (proc(5)).
pub(crate) fn machine_bytes(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MACHINE: u64 = 24 << 30;

    #[test]
    fn smallest_child_outranks_the_runner_at_the_limit() {
        for limit_mib in [16, 64, 300, 1024, 16 << 10] {
            let limit = limit_mib * MIB;
            let child = child_adjustment(0, Some(limit), MACHINE);
            let bytes = u64::try_from(child).unwrap() * (limit / 1000);
            assert!(bytes + MIB >= RUNNER_BYTES || child == HIGHEST, "{limit_mib} MiB: {child}");
            assert!(bytes <= RUNNER_BYTES + limit / 1000 + MIB, "{limit_mib} MiB: {child} is more than it takes");
        }
        assert_eq!([64, 300, 1024].map(|mib| child_adjustment(0, Some(mib * MIB), MACHINE)), [375, 80, 24]);
    }

    #[test]
    fn without_a_limit_containers_keep_their_order() {
        assert_eq!(child_adjustment(0, None, MACHINE), 1);
        assert_eq!(child_adjustment(0, Some(u64::MAX), MACHINE), 1);
    }

    #[test]
    fn inherited_value_is_the_base() {
        assert_eq!(child_adjustment(995, Some(64 * MIB), MACHINE), HIGHEST);
        assert_eq!(child_adjustment(-500, Some(64 * MIB), MACHINE), -125);
        assert_eq!(child_adjustment(NEVER, Some(64 * MIB), MACHINE), NEVER);
        assert_eq!(child_adjustment(0, Some(1), MACHINE), HIGHEST);
    }
}
