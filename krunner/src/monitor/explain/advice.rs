//! How much would have been enough, and what to change.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Growth, GrowthShape, LimitHit, LimitScope, MemoryUsage};
use crate::monitor::model::LimitKind;

/// A change that would help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Remedy {
    /// Raise the limit.
    RaiseLimit,
    /// Raise the limit of the pod or of the engine's scope, or give other containers below it less memory.
    RaiseLimitAbove,
    /// Raise the limit of the sibling cgroup that reached it.
    RaiseLimitBeside,
    /// Run fewer or smaller workers.
    FewerWorkers,
    /// Keep files out of memory.
    FilesOnDisk,
    /// Look for a memory leak.
    FindLeak,
    /// Set `memory.high`, which throttles the program instead of killing it.
    MemoryHigh,
    /// Add memory to the machine, or run fewer containers on it.
    RelieveMachine,
}

/// How much memory would have been enough, and remedies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Advice {
    /// A lower bound of the memory needed; `None` if it is unknown.
    pub at_least_bytes: Option<u64>,
    /// Why that much, or why it is unknown; a sentence fragment.
    pub reason: String,
    /// Applicable remedies, most useful first.
    pub remedies: Vec<Remedy>,
}

/// More remedies would not help to decide.
const MAX_REMEDIES: usize = 3;

/// Share of tmpfs and shared memory from which on they get a remedy, in percent.
const FILES_PERCENT: u64 = 25;

/// Number of descendants and share of the memory, in percent, from which on a tree of workers gets a remedy.
const MANY_WORKERS: usize = 3;
const WORKERS_PERCENT: u64 = 50;

impl Advice {
    /// The advice that follows from the limit, the usage and the growth; `None` if nothing is known.
    #[must_use]
    pub(in crate::monitor) fn of(
        limit: Option<&LimitHit>,
        usage: Option<&MemoryUsage>,
        growth: Option<&Growth>,
    ) -> Option<Self> {
        let (at_least_bytes, reason) = at_least(limit, usage, growth)?;
        Some(Self { at_least_bytes, reason, remedies: remedies(limit, usage, growth) })
    }
}

/// The lower bound and its reason. The kernel kills when one more page is too much, so the size of the whole request is unknown.
fn at_least(
    limit: Option<&LimitHit>,
    usage: Option<&MemoryUsage>,
    growth: Option<&Growth>,
) -> Option<(Option<u64>, String)> {
    if limit.is_some_and(|limit| limit.scope == LimitScope::Machine) {
        return Some((None, "the machine ran out of memory; no limit was reached".to_owned()));
    }
    // The last reading of a limit is that of the watched cgroup, not of the one that was reached.
    if limit.is_some_and(|limit| limit.scope == LimitScope::Outside) {
        return Some((None, "the limit that was reached is not visible".to_owned()));
    }
    let in_use_bytes = in_use_at_kill(limit, usage, growth);
    if limit.is_some() && in_use_bytes.is_none() {
        return Some((None, "the size of that limit is not visible".to_owned()));
    }
    let in_use_bytes = in_use_bytes?;
    if growth.is_some_and(|growth| growth.shape == Some(GrowthShape::Leak)) {
        return Some((None, "usage was growing steadily".to_owned()));
    }
    // A cgroup v1 limit may include swap.
    let is_swap_limited = limit.is_some_and(|limit| limit.kind == LimitKind::MemoryAndSwap);
    let swap_bytes = usage.and_then(|usage| usage.swap_bytes).filter(|bytes| *bytes > 0 && !is_swap_limited);
    let in_use = mib_up(in_use_bytes);
    Some(match (swap_bytes, growth.and_then(|growth| growth.shape)) {
        (Some(swap_bytes), _) => {
            let reason = format!("{in_use} in use, {} in swap, plus the failed request", mib_up(swap_bytes));
            (Some(in_use_bytes.saturating_add(swap_bytes)), reason)
        }
        (None, Some(GrowthShape::Burst)) => {
            (Some(in_use_bytes), format!("{in_use} in use plus the failed request; usage was still growing fast"))
        }
        (None, _) => (Some(in_use_bytes), format!("{in_use} in use plus the failed request")),
    })
}

/// Memory in use when the limit was reached: the kernel's value, else the limit, else the last reading.
fn in_use_at_kill(limit: Option<&LimitHit>, usage: Option<&MemoryUsage>, growth: Option<&Growth>) -> Option<u64> {
    let exact = limit.filter(|limit| limit.is_exact).and_then(|limit| limit.usage_bytes);
    let last = growth.and_then(|growth| growth.samples.last());
    let reached = match limit {
        Some(limit) if limit.limit_bytes.is_some() => limit.limit_bytes,
        Some(limit) if limit.scope != LimitScope::Container => None,
        _ => last.and_then(|last| last.limit_bytes),
    };
    let last = last.filter(|_| limit.is_none_or(|limit| limit.scope == LimitScope::Container));
    exact.or(reached).or_else(|| usage.map(|usage| usage.total_bytes)).or_else(|| Some(last?.usage_bytes))
}

fn remedies(limit: Option<&LimitHit>, usage: Option<&MemoryUsage>, growth: Option<&Growth>) -> Vec<Remedy> {
    let shape = growth.and_then(|growth| growth.shape);
    let scope = limit.map(|limit| limit.scope);
    let mut remedies = Vec::new();
    let mut add_if = |fits: bool, remedy: Remedy| remedies.extend(fits.then_some(remedy));
    // Outside is one of the two.
    add_if(matches!(scope, Some(LimitScope::Above | LimitScope::Outside)), Remedy::RaiseLimitAbove);
    add_if(matches!(scope, Some(LimitScope::Machine | LimitScope::Outside)), Remedy::RelieveMachine);
    add_if(scope == Some(LimitScope::Beside), Remedy::RaiseLimitBeside);
    add_if(usage.is_some_and(has_files_in_memory), Remedy::FilesOnDisk);
    add_if(usage.is_some_and(has_many_workers), Remedy::FewerWorkers);
    add_if(shape == Some(GrowthShape::Leak), Remedy::FindLeak);
    // One of unknown place is the container's own, most likely.
    let is_own_limit = matches!(scope, None | Some(LimitScope::Container | LimitScope::Inner | LimitScope::Unknown));
    add_if(is_own_limit && shape != Some(GrowthShape::Leak), Remedy::RaiseLimit);
    add_if(shape.is_some(), Remedy::MemoryHigh);
    add_if(is_own_limit && shape == Some(GrowthShape::Leak), Remedy::RaiseLimit);
    remedies.truncate(MAX_REMEDIES);
    remedies
}

fn has_files_in_memory(usage: &MemoryUsage) -> bool {
    usage.shmem_bytes.is_some_and(|bytes| is_share(bytes, usage.total_bytes, FILES_PERCENT))
}

fn has_many_workers(usage: &MemoryUsage) -> bool {
    let is_large = |tree: &super::TreeUsage| {
        tree.descendants >= MANY_WORKERS && is_share(tree.rss_bytes, usage.total_bytes, WORKERS_PERCENT)
    };
    usage.trees.iter().any(is_large)
}

fn is_share(part: u64, all: u64, percent: u64) -> bool {
    part > 0 && u128::from(part) * 100 >= u128::from(all) * u128::from(percent)
}

/// Mebibytes, rounded up, because less would not have been enough.
fn mib_up(bytes: u64) -> String {
    format!("{}m", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
#[path = "advice_tests.rs"]
mod tests;
