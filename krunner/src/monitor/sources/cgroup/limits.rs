//! Finds the limit that caused an OOM kill: ours or an ancestor's, by its counter of failed charges.
//!
//! | version | counter | counted charges |
//! |---|---|---|
//! | 1 | `memory.failcnt` | failed at this cgroup's limit, including those that succeeded after reclaim |
//! | 2 | `oom` in `memory.events.local` | failed at this cgroup's limit even after reclaim |
//!
//! Version 1 also limits memory and swap together, and charges that counter first. Newer kernels do not count its
//! failures (`track_failcnt` of `struct page_counter`), so its peak usage shows whether the limit was reached.
//!
//! (`page_counter_try_charge` in `mm/page_counter.c`, `mem_cgroup_oom` in `mm/memcontrol.c`.) The limit whose counter
//! has increased since the last poll is the one that was hit, so the counters are read periodically. Covers our own
//! cgroup and its visible ancestors; with BPF the kernel's own counters are used. Files stay open, see `usage`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use krunner_common::CHARGE_BATCH_PAGES;

use super::charge::{MACHINE_RESERVE_BYTES, RESERVE_BYTES};
use super::files::{available_bytes, max_levels, meminfo_bytes, number_in, open, text, value};
use super::usage::UsageFiles;
use super::{Cgroup, MemcgFiles, NO_LIMIT_BYTES};
use crate::monitor::explain::{CgroupView, FailedCharges, LimitHit, LimitScope, MachineMemory, MemoryUsage};
use crate::monitor::model::LimitKind;
use crate::monitor::sources::page_size::page_bytes;

/// Maximum time from the failed charge to the counted kill; the kernel reclaims in between.
const KILL_FOLLOWS: Duration = Duration::from_millis(500);

/// Buffer for `memory.events.local`, which has seven lines.
const EVENTS_BYTES: usize = 512;

/// Counters of failed charges of our cgroup and its ancestors.
#[derive(Debug)]
pub(in crate::monitor) struct LimitCounters {
    levels: Vec<LimitLevel>,
    meminfo: Option<File>,
    total_bytes: Option<u64>,
}

#[derive(Debug)]
struct LimitLevel {
    view: CgroupView,
    version: u8,
    files: Arc<UsageFiles>,
    limit: Option<File>,
    failures: Option<File>,
    /// For our own cgroup in v2: `oom` in `memory.events`, which includes descendants.
    below: Option<File>,
    here: Failures,
    in_and_below: Failures,
    with_swap: Option<SwapLimit>,
    /// Headroom at the last poll.
    room_bytes: Option<u64>,
}

/// v1's limit of memory and swap together.
#[derive(Debug)]
struct SwapLimit {
    limit: File,
    most: File,
}

/// A counter of failed charges.
#[derive(Debug, Default)]
struct Failures {
    last: Option<u64>,
    grown: Option<Instant>,
}

impl Failures {
    fn poll(&mut self, now: Option<u64>) {
        if now.zip(self.last).is_some_and(|(now, last)| now > last) {
            self.grown = Some(Instant::now());
        }
        self.last = now;
    }

    fn has_grown(&self, now: Option<u64>) -> bool {
        now.zip(self.last).is_some_and(|(now, last)| now > last)
            || self.grown.is_some_and(|at| at.elapsed() < KILL_FOLLOWS)
    }
}

impl LimitCounters {
    /// Opens all files; levels that cannot be opened are left out.
    #[must_use]
    pub(in crate::monitor) fn open(cgroup: Option<&Cgroup>) -> Self {
        let meminfo = cgroup.map_or_else(|| PathBuf::from("/proc/meminfo"), |cgroup| cgroup.root.proc("meminfo"));
        let meminfo = open(&meminfo);
        let total_bytes = meminfo.as_ref().and_then(|meminfo| meminfo_bytes(meminfo, "MemTotal:"));
        let levels = cgroup.map_or_else(Vec::new, |cgroup| {
            let dirs = cgroup.visible().into_iter().take(max_levels());
            dirs.filter_map(|dir| LimitLevel::open(cgroup, &dir)).collect()
        });
        let mut counters = Self { levels, meminfo, total_bytes };
        counters.poll();
        counters
    }

    /// Reads and stores the counters, 2 us per level.
    pub(in crate::monitor) fn poll(&mut self) {
        for level in &mut self.levels {
            level.here.poll(level.failures());
            level.in_and_below.poll(level.failures_below());
            level.room_bytes = level.room_now();
        }
    }

    /// The limit hit since the last poll, after an OOM kill of one of our processes. `inner` is the limit of a
    /// descendant, if the kill was counted there.
    #[must_use]
    pub(in crate::monitor) fn hit(&self, inner: Option<FailedCharges>) -> Option<LimitHit> {
        let grown: Vec<FailedCharges> =
            inner.into_iter().chain(self.levels.iter().filter_map(LimitLevel::grown)).collect();
        if grown.is_empty() && self.levels.first().is_none_or(|own| own.here.last.is_none()) {
            return None;
        }
        let machine = self.machine();
        let is_short = machine.is_some_and(|machine| machine.available_bytes < MACHINE_RESERVE_BYTES);
        Some(LimitHit::inferred(&grown, is_short, machine))
    }

    /// The files of the cgroup that this limit belongs to; `None` where that is not one of these.
    #[must_use]
    pub(in crate::monitor) fn usage_files(&self, hit: &LimitHit) -> Option<Arc<UsageFiles>> {
        let is_meant = |level: &&LimitLevel| level.view.scope == hit.scope && level.view.path == hit.path;
        self.levels.iter().find(is_meant).map(|level| Arc::clone(&level.files))
    }

    /// The memory of the cgroup with this id.
    #[must_use]
    pub(in crate::monitor) fn usage_by_id(&self, id: u64) -> Option<MemoryUsage> {
        self.levels.iter().find(|level| level.files.id() == id)?.files.read()
    }

    /// Whether the next page may be one too many, here or above.
    #[must_use]
    pub(in crate::monitor) fn is_short(&self) -> bool {
        self.levels.iter().filter_map(LimitLevel::room_now).any(|room_bytes| room_bytes < RESERVE_BYTES)
    }

    /// The machine's memory now.
    #[must_use]
    pub(in crate::monitor) fn machine(&self) -> Option<MachineMemory> {
        let available_bytes = available_bytes(self.meminfo.as_ref()?)?;
        Some(MachineMemory { total_bytes: self.total_bytes?, available_bytes })
    }
}

impl LimitLevel {
    fn open(cgroup: &Cgroup, dir: &Path) -> Option<Self> {
        let files = MemcgFiles::of(cgroup.version);
        let failures = if cgroup.version == 1 { "memory.failcnt" } else { "memory.events.local" };
        let open = |name: &str| open(&dir.join(name));
        Some(Self {
            view: CgroupView { scope: cgroup.scope_of(dir), path: cgroup.path_of(dir) },
            version: cgroup.version,
            files: Arc::new(UsageFiles::open(dir, cgroup.version)?),
            limit: open(files.limit),
            failures: open(failures),
            below: (cgroup.version == 2 && dir == cgroup.dir).then(|| open("memory.events")).flatten(),
            here: Failures::default(),
            in_and_below: Failures::default(),
            with_swap: (cgroup.version == 1).then(|| SwapLimit::open(dir)).flatten(),
            room_bytes: None,
        })
    }

    fn failures(&self) -> Option<u64> {
        let file = self.failures.as_ref()?;
        if self.version == 1 { number_in(file) } else { ooms(file) }
    }

    fn failures_below(&self) -> Option<u64> {
        ooms(self.below.as_ref()?)
    }

    fn limit_bytes(&self) -> Option<u64> {
        number_in(self.limit.as_ref()?).filter(|bytes| *bytes < NO_LIMIT_BYTES)
    }

    fn room_now(&self) -> Option<u64> {
        Some(self.limit_bytes()?.saturating_sub(self.files.usage_bytes()?))
    }

    fn grown(&self) -> Option<FailedCharges> {
        if self.here.has_grown(self.failures())
            && let Some(limit_bytes) = self.with_swap.as_ref().and_then(SwapLimit::reached_bytes)
            // If the limit allows no swap beyond memory, the memory limit was hit.
            && Some(limit_bytes) != self.limit_bytes()
        {
            let (cgroup, limit_bytes) = (self.view.clone(), Some(limit_bytes));
            return Some(FailedCharges { cgroup, kind: LimitKind::MemoryAndSwap, limit_bytes, room_bytes: Some(0) });
        }
        if self.here.has_grown(self.failures()) {
            let (cgroup, limit_bytes) = (self.view.clone(), self.limit_bytes());
            return Some(FailedCharges { cgroup, kind: LimitKind::Memory, limit_bytes, room_bytes: self.room_bytes });
        }
        let cgroup = CgroupView { scope: LimitScope::Inner, path: None };
        let is_below = self.in_and_below.has_grown(self.failures_below());
        is_below.then_some(FailedCharges { cgroup, kind: LimitKind::Memory, limit_bytes: None, room_bytes: None })
    }
}

impl SwapLimit {
    fn open(dir: &Path) -> Option<Self> {
        let open = |name: &str| open(&dir.join(name));
        Some(Self { limit: open("memory.memsw.limit_in_bytes")?, most: open("memory.memsw.max_usage_in_bytes")? })
    }

    /// The limit, if it was ever reached.
    fn reached_bytes(&self) -> Option<u64> {
        let most_bytes = number_in(&self.most)?;
        let is_reached =
            |bytes: &u64| *bytes < NO_LIMIT_BYTES && most_bytes + CHARGE_BATCH_PAGES * page_bytes() > *bytes;
        number_in(&self.limit).filter(is_reached)
    }
}

impl Cgroup {
    /// Position of a directory relative to this container. In its own cgroup namespace, the root of the namespace is the
    /// container's cgroup (`cgroup_namespaces(7)`), even if we are in a descendant.
    #[must_use]
    pub(in crate::monitor) fn scope_of(&self, dir: &Path) -> LimitScope {
        if dir == self.dir {
            return LimitScope::Container;
        }
        if dir.starts_with(&self.dir) {
            return LimitScope::Inner;
        }
        let is_top = self.has_own_namespace && self.path_of(dir).as_deref() == Some("/");
        match (self.dir.starts_with(dir), is_top) {
            (true, true) => LimitScope::Container,
            (true, false) => LimitScope::Above,
            (false, _) => LimitScope::Beside,
        }
    }
}

fn ooms(events: &File) -> Option<u64> {
    let mut buffer = [0; EVENTS_BYTES];
    value(text(events, &mut buffer).ok()?, "oom")
}
