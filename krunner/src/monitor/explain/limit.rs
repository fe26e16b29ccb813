//! Which limit was reached: that of the victim's memory cgroup, of an ancestor, or none, when the machine ran out of memory.
//!
//! With BPF the kernel's counters at the SIGKILL tell: the failed charge exceeded one of the limits. If no limit was close, the
//! machine ran out of memory. Without BPF the failed-charge counters of all visible cgroups tell. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::monitor::model::{LimitAtKill, LimitKind};

/// Which cgroup a limit belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LimitScope {
    /// This container's: the cgroup that krunner is in.
    Container,
    /// A cgroup below this container's.
    Inner,
    /// A cgroup above this container's, such as a pod or a slice.
    Above,
    /// A sibling of this container's cgroup, such as a sidecar.
    Beside,
    /// No cgroup: the machine ran out of memory.
    Machine,
    /// None that is visible: a cgroup above, or the machine.
    Outside,
    /// A cgroup whose place is not visible: this container's or another.
    Unknown,
}

/// The limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LimitHit {
    /// Which cgroup it belongs to.
    pub scope: LimitScope,
    /// What the limit applies to.
    pub kind: LimitKind,
    /// Path of the cgroup as `/proc/PID/cgroup` shows it here; `None` for the machine or if it is not visible.
    pub path: Option<String>,
    /// The limit, or the machine's total memory.
    pub limit_bytes: Option<u64>,
    /// Memory in use there when the kernel killed.
    pub usage_bytes: Option<u64>,
    /// Whether the allocating process is outside krunner's view.
    pub is_trigger_outside: Option<bool>,
    /// Whether it was read from the kernel at the kill, not derived from counters afterwards.
    pub is_exact: bool,
}

/// A limit with more free memory than this and than [`MAX_ROOM_SHARE`] was not reached. The failed charge is usually one page,
/// and other processes may free some memory while the kernel chooses a victim.
const MAX_ROOM_BYTES: u64 = 1 << 20;

/// The same as a share of the limit: 1 / this. Before it kills, the kernel takes back what each CPU has charged in advance
/// (`MEMCG_CHARGE_BATCH` pages per CPU, `drain_all_stock` in mm/memcontrol.c), and with a larger limit there are usually more CPUs
/// and more processes that free memory meanwhile.
const MAX_ROOM_SHARE: u64 = 64;

/// The largest room by that share. Without it, a machine that runs out of memory would be blamed on a container of 64 GiB with 1
/// GiB left. 64 pages of 4 KiB on each of 256 CPUs are 64 MiB. The failed request adds little: the OOM killer is not invoked for
/// more than eight pages (`PAGE_ALLOC_COSTLY_ORDER`, `mem_cgroup_oom` in mm/memcontrol.c); without
/// room for a huge page, it uses small ones.
const MAX_SHARED_ROOM_BYTES: u64 = 64 << 20;

/// The machine's memory at one moment (`/proc/meminfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct MachineMemory {
    /// `MemTotal` of `/proc/meminfo`.
    pub(in crate::monitor) total_bytes: u64,
    /// `MemAvailable` of `/proc/meminfo`.
    pub(in crate::monitor) available_bytes: u64,
}

/// A cgroup as seen from this container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct CgroupView {
    pub(in crate::monitor) scope: LimitScope,
    /// The path, if it is visible.
    pub(in crate::monitor) path: Option<String>,
}

/// A failed-charge counter that rose, in a cgroup that applies to the victim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct FailedCharges {
    pub(in crate::monitor) cgroup: CgroupView,
    pub(in crate::monitor) kind: LimitKind,
    pub(in crate::monitor) limit_bytes: Option<u64>,
    /// The free memory there at the last reading before the kill.
    pub(in crate::monitor) room_bytes: Option<u64>,
}

impl LimitHit {
    /// Whether this is the limit of the cgroup that krunner samples, so that the samples show the growth to it. Not by its size
    /// alone: the containers of a pod often have equal limits.
    #[must_use]
    pub(in crate::monitor) fn is_of_watched(&self, watched_limit_bytes: Option<u64>) -> bool {
        match self.scope {
            LimitScope::Container => self.limit_bytes.is_none() || self.limit_bytes == watched_limit_bytes,
            LimitScope::Inner | LimitScope::Above | LimitScope::Unknown => {
                self.limit_bytes.is_some() && self.limit_bytes == watched_limit_bytes
            }
            LimitScope::Beside | LimitScope::Machine | LimitScope::Outside => false,
        }
    }

    /// From the tracer's reading. `view` locates a cgroup by its kernel ID.
    #[must_use]
    pub(in crate::monitor) fn traced(
        limit: Option<LimitAtKill>,
        view: impl FnOnce(Option<u64>) -> CgroupView,
        machine: Option<MachineMemory>,
        is_trigger_outside: bool,
    ) -> Self {
        let is_trigger_outside = Some(is_trigger_outside);
        let Some(limit) = limit.filter(is_reached) else {
            return Self { is_trigger_outside, ..Self::of_machine(machine, true) };
        };
        let CgroupView { scope, path } = view(limit.cgroup_id);
        Self {
            scope,
            kind: limit.kind,
            path,
            limit_bytes: Some(limit.limit_bytes),
            usage_bytes: Some(limit.usage_bytes),
            is_trigger_outside,
            is_exact: true,
        }
    }

    /// From the counters that rose, innermost first. `is_machine_short`: the machine ran out of memory.
    #[must_use]
    pub(in crate::monitor) fn inferred(
        grown: &[FailedCharges],
        is_machine_short: bool,
        machine: Option<MachineMemory>,
    ) -> Self {
        // Page cache reaches limits without a kill, too. The one with the least free memory is the likeliest.
        let Some(hit) = grown.iter().min_by_key(|level| level.room_bytes.unwrap_or(0)) else {
            let of_machine = Self::of_machine(machine, false);
            let unknown =
                Self { scope: LimitScope::Outside, limit_bytes: None, usage_bytes: None, ..of_machine.clone() };
            return if is_machine_short { of_machine } else { unknown };
        };
        Self {
            scope: hit.cgroup.scope,
            kind: hit.kind,
            path: hit.cgroup.path.clone(),
            limit_bytes: hit.limit_bytes,
            usage_bytes: None,
            is_trigger_outside: None,
            is_exact: false,
        }
    }

    /// Memory in use when the limit was reached, without swap; the limit itself if the usage was not read. `None` if the limit
    /// includes swap and the amount of swap is unknown.
    #[must_use]
    pub(in crate::monitor) fn memory_at_kill(&self, swap_bytes: u64) -> Option<u64> {
        let in_use_bytes = self.usage_bytes.or(self.limit_bytes)?;
        Some(match self.kind {
            LimitKind::Memory => in_use_bytes,
            LimitKind::MemoryAndSwap if !self.is_exact => return None,
            LimitKind::MemoryAndSwap => in_use_bytes.saturating_sub(swap_bytes),
        })
    }

    fn of_machine(machine: Option<MachineMemory>, is_exact: bool) -> Self {
        Self {
            scope: LimitScope::Machine,
            kind: LimitKind::Memory,
            path: None,
            limit_bytes: machine.map(|machine| machine.total_bytes),
            usage_bytes: machine.map(|machine| machine.total_bytes.saturating_sub(machine.available_bytes)),
            is_trigger_outside: None,
            is_exact,
        }
    }
}

/// Whether a charge to that limit may have failed.
fn is_reached(limit: &LimitAtKill) -> bool {
    let room_bytes = limit.limit_bytes.saturating_sub(limit.usage_bytes);
    room_bytes <= MAX_ROOM_BYTES.max((limit.limit_bytes / MAX_ROOM_SHARE).min(MAX_SHARED_ROOM_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MACHINE: Option<MachineMemory> = Some(MachineMemory { total_bytes: 4096 * MIB, available_bytes: 10 * MIB });

    fn at_kill(limit_mib: u64, usage_bytes: u64) -> LimitAtKill {
        LimitAtKill { cgroup_id: Some(7), kind: LimitKind::Memory, limit_bytes: limit_mib * MIB, usage_bytes }
    }

    fn own(id: Option<u64>) -> CgroupView {
        assert_eq!(id, Some(7));
        CgroupView { scope: LimitScope::Container, path: Some("/box".into()) }
    }

    #[test]
    fn limit_without_room_was_reached() {
        let hit = LimitHit::traced(Some(at_kill(256, 256 * MIB)), own, MACHINE, false);
        assert_eq!((hit.scope, hit.path.as_deref()), (LimitScope::Container, Some("/box")));
        assert_eq!((hit.limit_bytes, hit.usage_bytes, hit.is_exact), (Some(256 * MIB), Some(256 * MIB), true));
        let over = LimitHit::traced(Some(at_kill(256, 300 * MIB)), own, MACHINE, false);
        assert_eq!(over.scope, LimitScope::Container, "the limit was lowered");
        let near = LimitHit::traced(Some(at_kill(4096, 4090 * MIB)), own, MACHINE, true);
        assert_eq!((near.scope, near.is_trigger_outside), (LimitScope::Container, Some(true)));
    }

    #[test]
    fn with_room_everywhere_it_was_the_machine() {
        for limit in [None, Some(at_kill(256, 100 * MIB))] {
            let hit = LimitHit::traced(limit, own, MACHINE, false);
            assert_eq!((hit.scope, hit.path, hit.limit_bytes), (LimitScope::Machine, None, Some(4096 * MIB)));
            assert_eq!(hit.usage_bytes, Some(4086 * MIB));
        }
    }

    #[test]
    fn large_limit_with_much_room_was_not_reached() {
        let scope = |room_mib: u64| {
            let limit = at_kill(64 << 10, ((64 << 10) - room_mib) * MIB);
            LimitHit::traced(Some(limit), own, MACHINE, false).scope
        };
        assert_eq!([1, 30, 64].map(scope), [LimitScope::Container; 3], "taken back from many CPUs");
        assert_eq!([100, 1000].map(scope), [LimitScope::Machine; 2]);
    }

    fn failed(scope: LimitScope, room_bytes: Option<u64>) -> FailedCharges {
        FailedCharges {
            cgroup: CgroupView { scope, path: None },
            kind: LimitKind::Memory,
            limit_bytes: Some(64 * MIB),
            room_bytes,
        }
    }

    #[test]
    fn swap_is_no_part_of_the_memory_in_use() {
        let hit = LimitHit::inferred(&[failed(LimitScope::Container, None)], false, MACHINE);
        assert_eq!(hit.memory_at_kill(MIB), Some(64 * MIB));
        let both = LimitHit { kind: LimitKind::MemoryAndSwap, usage_bytes: Some(60 * MIB), is_exact: true, ..hit };
        assert_eq!(both.memory_at_kill(20 * MIB), Some(40 * MIB));
        assert_eq!(LimitHit { is_exact: false, ..both }.memory_at_kill(0), None, "what was in swap is not known");
    }

    #[test]
    fn failed_charge_counter_identifies_the_limit() {
        let above = failed(LimitScope::Above, Some(0));
        let hit = LimitHit::inferred(std::slice::from_ref(&above), false, MACHINE);
        assert_eq!((hit.scope, hit.usage_bytes, hit.is_exact), (LimitScope::Above, None, false));
        let both = [failed(LimitScope::Container, Some(MIB)), above];
        assert_eq!(LimitHit::inferred(&both, false, MACHINE).scope, LimitScope::Above);
        let alike = [failed(LimitScope::Container, Some(0)), failed(LimitScope::Above, Some(0))];
        assert_eq!(LimitHit::inferred(&alike, false, MACHINE).scope, LimitScope::Container);
    }

    #[test]
    fn without_any_sign_nothing_is_claimed() {
        let unknown = LimitHit::inferred(&[], false, MACHINE);
        assert_eq!((unknown.scope, unknown.limit_bytes), (LimitScope::Outside, None));
        assert_eq!(LimitHit::inferred(&[], true, None).scope, LimitScope::Machine);
    }
}
