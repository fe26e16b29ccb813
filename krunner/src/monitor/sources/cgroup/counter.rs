//! Counts OOM kills from cgroup counters, and reads the headroom until the next one.
//!
//! Reading the counters requires no capability. What `oom_kill` counts depends on the hierarchy (`memcg_memory_event`,
//! include/linux/memcontrol.h):
//!
//! | hierarchy | counts |
//! |---|---|
//! | v2 | the cgroup and its descendants: only ours is read, otherwise kills would be counted at every level |
//! | v2 mounted with `memory_localevents`, v1 | only the cgroup's own processes: descendants are read as well and summed |
//! | v2's root | has no counter; `/proc/vmstat` counts the whole machine |
//!
//! Files stay open: reading one again costs 1 to 2 us. Reading the file of a removed cgroup fails with ENODEV. New and
//! removed cgroups are detected by listing the parent directory: its link count does not change if one cgroup is
//! removed and another added, and its modification time never changes (seen on 6.18, v1 and v2; `kernfs_add_one` in
//! fs/kernfs/dir.c only updates times that were set from user space). In v2, inotify reports changes of the events file
//! ([`KillCounter::changes`]). In v1, an eventfd registered with each cgroup is signalled when memory runs out, just
//! before the kill, and when the cgroup is removed (cgroup-v1/memory.rst, section 10; one descriptor serves all
//! cgroups).

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::files::{available_bytes, folders, inode, max_counted_cgroups, open, text};
use super::limits::LimitCounters;
use super::monotonic_count::MonotonicCount;
use super::swap::SwapInUse;
use super::usage::UsageSource;
use super::{Cgroup, MemcgFiles, V2, number};
use crate::monitor::explain::{CgroupView, Count, FailedCharges, Kills, LimitScope};
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::{LimitKind, clock};
use crate::monitor::sources::schedule::TickMode;

/// Buffer size: enough for `memory.events`, `memory.oom_control` and the first half of `vmstat`.
const TEXT_BYTES: usize = 8 * 1024;

/// Result of [`KillCounter::poll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct CounterReading {
    /// Whether there are counted OOM kills that have not been taken.
    pub(in crate::monitor) has_kills: bool,
    /// Memory that can be used before an OOM kill; `None` if our limit cannot be read.
    pub(in crate::monitor) headroom_bytes: Option<u64>,
}

/// Reads the counters of a cgroup and, where necessary, its descendants.
#[derive(Debug)]
pub(in crate::monitor) struct KillCounter {
    cgroup: Option<Cgroup>,
    is_summed: bool,
    levels: Vec<CounterLevel>,
    vmstat: Option<MonotonicCount>,
    meminfo: Option<File>,
    refreshed: Option<Instant>,
    /// Whether it was logged that some cgroups are not counted.
    has_left_out: bool,
    /// When the last reading began: what is counted next happened later.
    since_boot_ns: u64,
    /// When the last reading ended.
    read_boot_ns: u64,
    /// Counted but not yet taken.
    unclaimed: Vec<Kills>,
    unclaimed_since_ns: Option<u64>,
    limits: LimitCounters,
    swap: SwapInUse,
    /// At the last reading.
    swap_bytes: u64,
    buffer: Vec<u8>,
    /// v1: signalled when a cgroup runs out of memory.
    alarm: Option<EventFd>,
}

/// The files and last values of one cgroup.
#[derive(Debug)]
struct CounterLevel {
    dir: PathBuf,
    id: u64,
    events: Option<MonotonicCount>,
    usage: Option<File>,
    limit_bytes: Option<u64>,
    /// Headroom at the last poll.
    room_bytes: Option<u64>,
    /// Memory charged to the same limit by other cgroups.
    beside_bytes: u64,
}

impl KillCounter {
    /// Starts counting from the current values.
    pub(in crate::monitor) fn start(cgroup: Option<Cgroup>) -> Self {
        let is_summed = cgroup.as_ref().is_some_and(|cgroup| cgroup.version == 1 || cgroup.has_local_events());
        let mut counter = Self {
            is_summed,
            levels: Vec::new(),
            vmstat: None,
            meminfo: open(&cgroup.as_ref().map_or_else(|| "/proc/meminfo".into(), |it| it.root.proc("meminfo"))),
            limits: LimitCounters::open(cgroup.as_ref()),
            refreshed: None,
            has_left_out: false,
            since_boot_ns: clock::boot_ns(),
            read_boot_ns: clock::boot_ns(),
            unclaimed: Vec::new(),
            unclaimed_since_ns: None,
            swap: SwapInUse::open(cgroup.as_ref()),
            swap_bytes: 0,
            cgroup,
            buffer: vec![0; TEXT_BYTES],
            alarm: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).ok(),
        };
        if let Some(cgroup) = &counter.cgroup {
            if cgroup.is_root_of_v2() {
                counter.vmstat = open(&cgroup.root.proc("vmstat")).map(|file| MonotonicCount::new(file, true));
            }
            let own = CounterLevel::open(&cgroup.charged_dir(), cgroup.version);
            counter.levels.extend(own.inspect(|level| level.arm(counter.alarm.as_ref())));
        }
        counter.refresh_cgroups();
        counter.swap_bytes = counter.swap.read(&mut counter.buffer);
        // Existing cgroups start from their current count, later ones from 0.
        counter.grown();
        counter
    }

    /// An inotify descriptor that reports changes of the counters (v2).
    pub(in crate::monitor) fn changes(cgroup: &Cgroup) -> nix::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(&cgroup.charged_dir().join(V2.events), AddWatchFlags::IN_MODIFY)?;
        Ok(inotify)
    }

    /// A descriptor that becomes readable when one of the cgroups runs out of memory (v1).
    pub(in crate::monitor) fn alarm(&self) -> Option<OwnedFd> {
        self.alarm.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// Reads all counters and the headroom. Counted kills stay here until [`Self::take`], so that two threads cannot
    /// miss any.
    pub(in crate::monitor) fn poll(&mut self, mode: TickMode) -> CounterReading {
        self.collect();
        // Right after an OOM kill no file is opened, unless kills continue for long.
        let patience = mode.refresh_interval() * if self.unclaimed.is_empty() { 1 } else { 4 };
        if self.refreshed.is_none_or(|at| at.elapsed() >= patience) {
            self.refresh_cgroups();
            self.collect();
        }
        let is_limit_known = self.vmstat.is_some() || self.levels.first().is_some_and(|own| own.usage.is_some());
        for level in &mut self.levels {
            level.room_bytes = level.headroom_bytes(&mut self.buffer);
        }
        let left = self.levels.iter().filter_map(|level| level.room_bytes);
        let headroom_bytes = left.chain(self.meminfo.as_ref().and_then(available_bytes)).min();
        CounterReading {
            has_kills: !self.unclaimed.is_empty(),
            headroom_bytes: headroom_bytes.filter(|_| is_limit_known),
        }
    }

    /// Reads the open counters and returns the counted kills. Opens no file; [`Self::usage_source`] provides the memory
    /// usage.
    pub(in crate::monitor) fn take(&mut self) -> Count {
        self.collect();
        Count {
            kills: std::mem::take(&mut self.unclaimed),
            is_counted: self.vmstat.is_some() || self.levels.first().is_some_and(CounterLevel::is_counted),
            since_boot_ns: self.unclaimed_since_ns.take().unwrap_or(self.since_boot_ns),
            at_boot_ns: self.read_boot_ns,
        }
    }

    fn collect(&mut self) {
        let began_ns = clock::boot_ns();
        let mut kills = self.grown();
        self.read_boot_ns = clock::boot_ns();
        let swap_bytes = self.swap.read(&mut self.buffer);
        // The victim's own may be free by now.
        let before_bytes = std::mem::replace(&mut self.swap_bytes, swap_bytes);
        for kills in &mut kills {
            self.find_limit(kills);
            kills.facts.swap_bytes = swap_bytes.max(before_bytes);
        }
        self.limits.poll();
        let since_ns = std::mem::replace(&mut self.since_boot_ns, began_ns);
        if !kills.is_empty() {
            self.unclaimed.extend(kills);
            self.unclaimed_since_ns.get_or_insert(since_ns);
        }
    }

    fn find_limit(&self, kills: &mut Kills) {
        let facts = &mut kills.facts;
        facts.limit = self.limits.hit(facts.cgroup.as_ref().and_then(|cgroup| self.inner_limit(cgroup)));
    }

    /// Where to read the memory usage for these kills. Unopened files are returned only for a descendant, and only if
    /// our own cgroup has headroom.
    #[must_use]
    pub(in crate::monitor) fn usage_source(&self, kills: &Kills) -> Option<UsageSource> {
        let hit = kills.facts.limit.as_ref()?;
        if let Some(files) = self.limits.usage_files(hit) {
            return Some(UsageSource::Open(files));
        }
        let own = self.cgroup.as_ref().filter(|_| hit.scope == LimitScope::Inner && !self.limits.is_short())?;
        let level = self.levels.iter().find(|level| Some(level.path(own)) == hit.path)?;
        Some(UsageSource::Closed { dir: level.dir.clone(), version: own.version })
    }

    /// The limit of a descendant, which may be the one that was hit.
    fn inner_limit(&self, cgroup: &CgroupFacts) -> Option<FailedCharges> {
        let own = self.cgroup.as_ref()?;
        let level = self.levels.iter().skip(1).find(|level| level.path(own) == cgroup.path)?;
        let limit_bytes = level.limit_bytes.filter(|bytes| *bytes < super::NO_LIMIT_BYTES)?;
        let view = CgroupView { scope: LimitScope::Inner, path: Some(cgroup.path.clone()) };
        Some(FailedCharges {
            cgroup: view,
            kind: LimitKind::Memory,
            limit_bytes: Some(limit_bytes),
            room_bytes: level.room_bytes,
        })
    }

    fn grown(&mut self) -> Vec<Kills> {
        let mut kills = Vec::new();
        let buffer = &mut self.buffer;
        if let Some((number, group)) = self.vmstat.as_mut().and_then(|total| total.increase(buffer)) {
            let cgroup = self.cgroup.as_ref().map(Cgroup::facts);
            kills.push(Kills::new(number, group, cgroup));
        }
        let mut own = None;
        for level in &mut self.levels {
            let of_level = (level.limit_bytes, level.usage_bytes(buffer).map(|bytes| bytes + level.beside_bytes));
            let above = *own.get_or_insert(of_level);
            if let Some((number, group)) = level.events.as_mut().and_then(|total| total.increase(buffer)) {
                let smallest = if of_level.0.is_some_and(|limit| above.0.is_none_or(|above| limit < above)) {
                    of_level
                } else {
                    above
                };
                let cgroup = self.cgroup.as_ref().map(|cgroup| level.facts(cgroup, smallest));
                kills.push(Kills::new(number, group, cgroup));
            }
        }
        kills
    }

    /// Adds new cgroups, drops removed ones and reads limits.
    fn refresh_cgroups(&mut self) {
        let before = self.refreshed.replace(Instant::now());
        let is_first = before.is_none();
        let Some(cgroup) = &self.cgroup else { return };
        // The path may have been reused.
        self.levels.retain(|level| inode(&level.dir) == level.id);
        let known = self.levels.len();
        let max_cgroups = max_counted_cgroups();
        let mut left_out = 0;
        let mut index = 0;
        while index < self.levels.len() {
            let level = &mut self.levels[index];
            level.measure(cgroup, index == 0);
            let below = if self.is_summed { folders(&level.dir) } else { Vec::new() };
            for (dir, id) in below {
                let is_known = self.levels.iter().any(|level| level.id == id);
                if !is_known && self.levels.len() >= max_cgroups {
                    left_out += 1;
                } else if !is_known {
                    let level =
                        CounterLevel::open(&dir, cgroup.version).inspect(|level| level.arm(self.alarm.as_ref()));
                    self.levels.extend(level.map(|level| if is_first { level } else { level.counted_from_0() }));
                }
            }
            index += 1;
        }
        if left_out > 0 && !std::mem::replace(&mut self.has_left_out, true) {
            tracing::warn!(
                "OOM kills are counted in {max_cgroups} cgroups, and not in {left_out} more (fewer than 256 where RLIMIT_NOFILE is low)"
            );
        }
        if let Some(before) = before.filter(|_| self.levels.len() > known) {
            // Their kills may be as old as they are.
            let age_ns = u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.since_boot_ns = self.since_boot_ns.min(clock::boot_ns().saturating_sub(age_ns));
        }
    }
}

impl CounterLevel {
    fn open(dir: &Path, version: u8) -> Option<Self> {
        let files = MemcgFiles::of(version);
        let open = |name: &str| open(&dir.join(name));
        let level = Self {
            dir: dir.to_owned(),
            id: inode(dir),
            events: open(files.events).map(|file| MonotonicCount::new(file, version == 2)),
            usage: open(files.usage),
            limit_bytes: None,
            room_bytes: None,
            beside_bytes: 0,
        };
        dir.is_dir().then_some(level)
    }

    /// v1: registers for a signal when memory runs out. Requires a writable cgroup; otherwise the counter is polled.
    fn arm(&self, alarm: Option<&EventFd>) {
        let (Some(alarm), Some(events)) = (alarm, &self.events) else { return };
        let Ok(mut control) = OpenOptions::new().write(true).open(self.dir.join("cgroup.event_control")) else {
            return;
        };
        // Fails if the file is not a cgroup counter, which polling detects as well.
        let _ = write!(control, "{} {}", alarm.as_fd().as_raw_fd(), events.file.as_raw_fd());
    }

    fn counted_from_0(mut self) -> Self {
        if let Some(events) = &mut self.events {
            events.start_from_0();
        }
        self
    }

    /// For our own cgroup, reads the smallest limit of all ancestors; for descendants, their own.
    fn measure(&mut self, cgroup: &Cgroup, is_own: bool) {
        let files = MemcgFiles::of(cgroup.version);
        if !is_own {
            self.limit_bytes = number(&self.dir.join(files.limit), "limit").ok();
            return;
        }
        let facts = cgroup.facts();
        let own = number(&self.dir.join(files.usage), "number").unwrap_or(0);
        self.limit_bytes = facts.limit_bytes;
        self.beside_bytes = facts.usage_bytes.unwrap_or(0).saturating_sub(own);
    }

    /// Whether the counter is readable: container engines mask some files with an empty one.
    fn is_counted(&self) -> bool {
        self.events.as_ref().is_some_and(|total| total.last().is_some())
    }

    fn headroom_bytes(&self, buffer: &mut [u8]) -> Option<u64> {
        let limit_bytes = self.limit_bytes.filter(|bytes| *bytes < super::NO_LIMIT_BYTES)?;
        let usage_bytes = self.usage_bytes(buffer)?;
        Some(limit_bytes.saturating_sub(usage_bytes).saturating_sub(self.beside_bytes))
    }

    fn usage_bytes(&self, buffer: &mut [u8]) -> Option<u64> {
        text(self.usage.as_ref()?, buffer).ok()?.trim().parse().ok()
    }

    fn path(&self, cgroup: &Cgroup) -> String {
        let below = self.dir.strip_prefix(&cgroup.dir).ok().and_then(Path::to_str).unwrap_or_default();
        let top = cgroup.path.trim_end_matches('/');
        if below.is_empty() { cgroup.path.clone() } else { format!("{top}/{below}") }
    }

    /// Like [`Cgroup::facts`], from values already read: no file is opened right after an OOM kill.
    fn facts(&self, cgroup: &Cgroup, (limit_bytes, usage_bytes): (Option<u64>, Option<u64>)) -> CgroupFacts {
        CgroupFacts {
            path: self.path(cgroup),
            version: cgroup.version,
            limit_bytes: limit_bytes.filter(|bytes| *bytes < super::NO_LIMIT_BYTES),
            usage_bytes,
            oom_kill_count: self.events.as_ref().and_then(MonotonicCount::last),
        }
    }
}

impl Cgroup {
    /// The directory of the nearest cgroup that is charged: in v2 the controller may be disabled in ours.
    pub(super) fn charged_dir(&self) -> PathBuf {
        let files = MemcgFiles::of(self.version);
        let mut levels = self.levels(&self.dir).into_iter();
        levels.find(|level| level.join(files.usage).exists()).unwrap_or_else(|| self.dir.clone())
    }

    /// Whether its OOM kills are counted where we can read it, so that they are detected without eBPF.
    #[must_use]
    pub(in crate::monitor) fn counts_kills(&self) -> bool {
        self.is_root_of_v2() || self.facts().oom_kill_count.is_some()
    }

    /// Whether this is v2's root, the only cgroup without the controller's files although the controller is enabled.
    #[must_use]
    pub(in crate::monitor) fn is_root_of_v2(&self) -> bool {
        let is_on = || fs::read_to_string(self.dir.join("cgroup.controllers")).is_ok_and(|on| on.contains("memory"));
        self.version == 2 && !self.dir.join("cgroup.events").exists() && is_on()
    }

    fn has_local_events(&self) -> bool {
        self.version == 2 && self.mounts.iter().any(|mount| mount.has_local_events)
    }
}

#[cfg(test)]
#[path = "counter_tests.rs"]
mod tests;
