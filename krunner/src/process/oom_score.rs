//! How much earlier than the runner the kernel is to choose its children.
//!
//! Pure. The kernel adds `oom_score_adj` thousandths of what the OOM kill is about (the limit of the cgroup, or the
//! machine's memory) to the memory of a process, and kills the largest (`oom_badness` in `mm/oom_kill.c`). So what makes
//! the smallest child outrank the runner depends on the limit.

/// More than the runner ever has resident, so that even a child of a few pages ranks above it.
const RUNNER_BYTES: u64 = 24 << 20;

/// The highest value (`OOM_SCORE_ADJ_MAX`, include/uapi/linux/oom.h).
pub(crate) const HIGHEST: i16 = 1000;

/// The `oom_score_adj` of children of a runner that has `base`: as little more as makes them outrank it.
#[must_use]
pub(crate) fn child_adjustment(base: i16, limit_bytes: Option<u64>, machine_bytes: u64) -> i16 {
    base.saturating_add(needed(limit_bytes.unwrap_or(machine_bytes).min(machine_bytes))).min(HIGHEST)
}

fn needed(of_bytes: u64) -> i16 {
    let thousandths = (1000 * RUNNER_BYTES).div_ceil(of_bytes.max(1));
    i16::try_from(thousandths).unwrap_or(HIGHEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn children_outrank_the_runner_by_as_little_as_the_limit_needs() {
        let of_limit = |mib: u64| child_adjustment(0, Some(mib * MIB), 4096 * MIB);
        assert_eq!([64, 300, 1024].map(of_limit), [375, 80, 24]);
        assert_eq!(child_adjustment(0, None, 4096 * MIB), 6);
        assert_eq!(child_adjustment(0, Some(u64::MAX), 4096 * MIB), 6, "a limit above the machine is none");
        assert_eq!(child_adjustment(-997, Some(64 * MIB), 4096 * MIB), -622);
    }

    #[test]
    fn the_highest_value_is_the_end() {
        assert_eq!(child_adjustment(995, Some(64 * MIB), 4096 * MIB), 1000);
        assert_eq!(child_adjustment(0, Some(MIB), 4096 * MIB), 1000);
        assert_eq!(child_adjustment(1000, Some(0), 0), 1000);
    }
}
