//! How many processes the kernel has killed for memory here, and how soon it may have to.
//!
//! Who may look into our memory cgroup may count kills, without any capability. What `oom_kill` counts differs
//! (`memcg_memory_event`, include/linux/memcontrol.h):
//!
//! | hierarchy | counts |
//! |---|---|
//! | v2 | the cgroup and all below: ours alone is read, or each would be counted at every level |
//! | v2 mounted with `memory_localevents`, v1 | the cgroup's own processes: all below are read as well and summed up |
//! | v2's root | nothing there; `/proc/vmstat` counts the whole machine |
//!
//! Files stay open: reading one anew costs 1 to 2 us. A cgroup that was removed answers ENODEV. Cgroups that come or go
//! show in the listing of their parent: the link count stays the same when one was removed and one was added, and the
//! modification time of such a folder does not change at all (seen on 6.18, v1 and v2; `kernfs_add_one` in
//! fs/kernfs/dir.c only touches times that were set from user space). In v2 the kernel tells by inotify when a count or a
//! limit was hit ([`KillCounter::changes`]); in v1 an eventfd that is registered with each cgroup is signalled when memory
//! runs out there, just before the kill, and when the cgroup is removed (cgroup-v1/memory.rst, section 10; one descriptor
//! serves all).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Cgroup, CgroupFacts, Files, V2, number};
use crate::monitor::clock;

/// Cgroups that are read. A container has few; who watches a whole node of v1 sees the first ones.
const MOST: usize = 256;

/// Limits change and cgroups come rarely.
const SETTLED: Duration = Duration::from_millis(250);

/// Enough for `memory.events`, `memory.oom_control` and `vmstat`'s first half.
const TEXT_BYTES: usize = 8 * 1024;

/// What a look at the counters shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct Look {
    /// Whether kills were counted that nobody has taken.
    pub(in crate::monitor) has_kills: bool,
    /// What may be taken before somebody is killed; none where our limit cannot be read.
    pub(in crate::monitor) headroom_bytes: Option<u64>,
}

/// What was counted since the last time that somebody took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Count {
    /// The kills.
    pub(in crate::monitor) kills: Vec<Kills>,
    /// Whether kills can be counted at all.
    pub(in crate::monitor) is_counted: bool,
    /// None of them happened before that, in nanoseconds since boot.
    pub(in crate::monitor) since_boot_ns: u64,
    /// And when the counters were read last.
    pub(in crate::monitor) at_boot_ns: u64,
}

impl Count {
    /// Leaves out so many that somebody else reports.
    pub(in crate::monitor) fn leave_out(&mut self, mut reported: u64) {
        for kills in &mut self.kills {
            let here = kills.number.min(reported);
            kills.number -= here;
            reported -= here;
        }
        self.kills.retain(|kills| kills.number > 0);
    }
}

/// What one counter has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Kills {
    /// How many.
    pub(in crate::monitor) number: u64,
    /// Some were killed for being in one cgroup with the one that was chosen (`memory.oom.group`, cgroup-v2.rst).
    pub(in crate::monitor) is_group: bool,
    /// Where.
    pub(in crate::monitor) cgroup: Option<CgroupFacts>,
}

/// Reads the counters of a cgroup and of those below it.
#[derive(Debug)]
pub(in crate::monitor) struct KillCounter {
    cgroup: Option<Cgroup>,
    is_summed: bool,
    levels: Vec<Level>,
    vmstat: Option<Total>,
    meminfo: Option<File>,
    settled: Option<Instant>,
    read_boot_ns: u64,
    /// Counted, and not taken.
    unclaimed: Vec<Kills>,
    unclaimed_since_ns: Option<u64>,
    buffer: Vec<u8>,
    /// v1: signalled when memory runs out.
    alarm: Option<EventFd>,
}

/// One cgroup.
#[derive(Debug)]
struct Level {
    dir: PathBuf,
    id: u64,
    events: Option<Total>,
    usage: Option<File>,
    limit_bytes: Option<u64>,
    /// What others use of that limit.
    beside_bytes: u64,
}

/// A number of kills, which only grows.
#[derive(Debug)]
struct Total {
    file: File,
    last: Option<u64>,
    /// v2 can kill all of a cgroup at once.
    may_be_group: bool,
    /// `oom_group_kill`, since Linux 5.17: how often it did.
    last_groups: Option<u64>,
}

impl KillCounter {
    /// Begins with what is counted so far.
    pub(in crate::monitor) fn start(cgroup: Option<Cgroup>) -> Self {
        let is_summed = cgroup.as_ref().is_some_and(|cgroup| cgroup.version == 1 || cgroup.has_local_events());
        let mut counter = Self {
            is_summed,
            levels: Vec::new(),
            vmstat: None,
            meminfo: File::open(cgroup.as_ref().map_or_else(|| "/proc/meminfo".into(), |it| it.root.proc("meminfo")))
                .ok(),
            cgroup,
            settled: None,
            read_boot_ns: clock::boot_ns(),
            unclaimed: Vec::new(),
            unclaimed_since_ns: None,
            buffer: vec![0; TEXT_BYTES],
            alarm: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).ok(),
        };
        if let Some(cgroup) = &counter.cgroup {
            if cgroup.is_root_of_v2() {
                counter.vmstat = File::open(cgroup.root.proc("vmstat")).ok().map(|file| Total::new(file, true));
            }
            let own = Level::open(&cgroup.charged_dir(), cgroup.version);
            counter.levels.extend(own.inspect(|level| level.arm(counter.alarm.as_ref())));
        }
        counter.settle();
        // Those that are there now begin with what they have; those that come later, with nothing.
        counter.grown();
        counter
    }

    /// Tells when something has changed, where the kernel does (v2).
    pub(in crate::monitor) fn changes(cgroup: &Cgroup) -> nix::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(&cgroup.charged_dir().join(V2.events), AddWatchFlags::IN_MODIFY)?;
        Ok(inotify)
    }

    /// Becomes readable when memory has run out in one of the cgroups, where the kernel tells that (v1).
    pub(in crate::monitor) fn alarm(&self) -> Option<OwnedFd> {
        self.alarm.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// Reads all counters, and what is left. What was counted stays here until somebody takes it, so that no two threads
    /// can miss it between them.
    pub(in crate::monitor) fn look(&mut self) -> Look {
        self.collect();
        // Right after a kill no file is opened, unless the kills do not end.
        let patience = if self.unclaimed.is_empty() { SETTLED } else { SETTLED * 4 };
        if self.settled.is_none_or(|at| at.elapsed() >= patience) {
            self.settle();
            self.collect();
        }
        let is_limit_known = self.vmstat.is_some() || self.levels.first().is_some_and(|own| own.usage.is_some());
        let left = self.levels.iter().filter_map(|level| level.headroom_bytes(&mut self.buffer));
        let headroom_bytes = left.chain(self.meminfo.as_ref().and_then(available_bytes)).min();
        Look { has_kills: !self.unclaimed.is_empty(), headroom_bytes: headroom_bytes.filter(|_| is_limit_known) }
    }

    /// Reads the counters that are known, opening no file, and takes what was counted.
    pub(in crate::monitor) fn take(&mut self) -> Count {
        self.collect();
        Count {
            kills: std::mem::take(&mut self.unclaimed),
            is_counted: self.vmstat.is_some() || self.levels.first().is_some_and(Level::is_counted),
            since_boot_ns: self.unclaimed_since_ns.take().unwrap_or(self.read_boot_ns),
            at_boot_ns: self.read_boot_ns,
        }
    }

    fn collect(&mut self) {
        let kills = self.grown();
        let since_ns = std::mem::replace(&mut self.read_boot_ns, clock::boot_ns());
        if !kills.is_empty() {
            self.unclaimed.extend(kills);
            self.unclaimed_since_ns.get_or_insert(since_ns);
        }
    }

    fn grown(&mut self) -> Vec<Kills> {
        let mut kills = Vec::new();
        let buffer = &mut self.buffer;
        if let Some((number, is_group)) = self.vmstat.as_mut().and_then(|total| total.grown(buffer)) {
            kills.push(Kills { number, is_group, cgroup: self.cgroup.as_ref().map(Cgroup::facts) });
        }
        let mut own = None;
        for level in &mut self.levels {
            let of_level = (level.limit_bytes, level.usage_bytes(buffer).map(|bytes| bytes + level.beside_bytes));
            let above = *own.get_or_insert(of_level);
            if let Some((number, is_group)) = level.events.as_mut().and_then(|total| total.grown(buffer)) {
                let smallest = if of_level.0.is_some_and(|limit| above.0.is_none_or(|above| limit < above)) {
                    of_level
                } else {
                    above
                };
                let cgroup = self.cgroup.as_ref().map(|cgroup| level.facts(cgroup, smallest));
                kills.push(Kills { number, is_group, cgroup });
            }
        }
        kills
    }

    /// Finds cgroups that came, forgets those that went, reads limits.
    fn settle(&mut self) {
        let is_first = self.settled.replace(Instant::now()).is_none();
        let Some(cgroup) = &self.cgroup else { return };
        // Another one may have its path by now.
        self.levels.retain(|level| inode(&level.dir) == level.id);
        let mut index = 0;
        while index < self.levels.len() {
            let level = &mut self.levels[index];
            level.measure(cgroup, index == 0);
            let below = if self.is_summed { folders(&level.dir) } else { Vec::new() };
            for (dir, id) in below {
                let is_known = self.levels.iter().any(|level| level.id == id);
                if !is_known && self.levels.len() < MOST {
                    let level = Level::open(&dir, cgroup.version).inspect(|level| level.arm(self.alarm.as_ref()));
                    self.levels.extend(level.map(|level| if is_first { level } else { level.counted_from_0() }));
                }
            }
            index += 1;
        }
    }
}

impl Level {
    fn open(dir: &Path, version: u8) -> Option<Self> {
        let files = Files::of(version);
        let open = |name: &str| File::open(dir.join(name)).ok();
        let level = Self {
            dir: dir.to_owned(),
            id: inode(dir),
            events: open(files.events).map(|file| Total::new(file, version == 2)),
            usage: open(files.usage),
            limit_bytes: None,
            beside_bytes: 0,
        };
        dir.is_dir().then_some(level)
    }

    /// v1: asks for a signal when memory runs out here. Needs a cgroup that is writable; without it the counter is polled.
    fn arm(&self, alarm: Option<&EventFd>) {
        let (Some(alarm), Some(events)) = (alarm, &self.events) else { return };
        let Ok(mut control) = OpenOptions::new().write(true).open(self.dir.join("cgroup.event_control")) else {
            return;
        };
        // Refused where the file is no counter of a cgroup, which polling shows as well.
        let _ = write!(control, "{} {}", alarm.as_fd().as_raw_fd(), events.file.as_raw_fd());
    }

    fn counted_from_0(mut self) -> Self {
        if let Some(events) = &mut self.events {
            events.last = Some(0);
        }
        self
    }

    /// Ours has the smallest limit of all above; those below, their own.
    fn measure(&mut self, cgroup: &Cgroup, is_own: bool) {
        let files = Files::of(cgroup.version);
        if !is_own {
            self.limit_bytes = number(&self.dir.join(files.limit), "limit").ok();
            return;
        }
        let facts = cgroup.facts();
        let own = number(&self.dir.join(files.usage), "number").unwrap_or(0);
        self.limit_bytes = facts.limit_bytes;
        self.beside_bytes = facts.usage_bytes.unwrap_or(0).saturating_sub(own);
    }

    /// A file may be there and say nothing: container engines mask some with an empty one.
    fn is_counted(&self) -> bool {
        self.events.as_ref().is_some_and(|total| total.last.is_some())
    }

    fn headroom_bytes(&self, buffer: &mut [u8]) -> Option<u64> {
        let limit_bytes = self.limit_bytes.filter(|bytes| *bytes < super::NO_LIMIT_BYTES)?;
        let usage_bytes = self.usage_bytes(buffer)?;
        Some(limit_bytes.saturating_sub(usage_bytes).saturating_sub(self.beside_bytes))
    }

    fn usage_bytes(&self, buffer: &mut [u8]) -> Option<u64> {
        text(self.usage.as_ref()?, buffer).ok()?.trim().parse().ok()
    }

    /// As [`Cgroup::facts`], of what was read already: right after a kill no file is opened.
    fn facts(&self, cgroup: &Cgroup, (limit_bytes, usage_bytes): (Option<u64>, Option<u64>)) -> CgroupFacts {
        let below = self.dir.strip_prefix(&cgroup.dir).ok().and_then(Path::to_str).unwrap_or_default();
        let top = cgroup.path.trim_end_matches('/');
        let path = if below.is_empty() { cgroup.path.clone() } else { format!("{top}/{below}") };
        CgroupFacts {
            path,
            version: cgroup.version,
            limit_bytes: limit_bytes.filter(|bytes| *bytes < super::NO_LIMIT_BYTES),
            usage_bytes,
            oom_kill_count: self.events.as_ref().and_then(|total| total.last),
        }
    }
}

impl Total {
    fn new(file: File, may_be_group: bool) -> Self {
        Self { file, last: None, may_be_group, last_groups: None }
    }

    /// By how much it has grown since the last call, and whether by groups; nothing at the first.
    fn grown(&mut self, buffer: &mut [u8]) -> Option<(u64, bool)> {
        let text = text(&self.file, buffer).ok()?;
        let (kills, groups) = (value(text, "oom_kill")?, value(text, "oom_group_kill"));
        let (before, groups_before) = (self.last.replace(kills), std::mem::replace(&mut self.last_groups, groups));
        let grown = kills.saturating_sub(before?);
        let is_group =
            self.may_be_group && grown > 1 && groups.is_none_or(|groups| groups > groups_before.unwrap_or(0));
        (grown > 0).then_some((grown, is_group))
    }
}

impl Cgroup {
    /// The nearest one that memory is charged to: in v2 the controller may be off here.
    fn charged_dir(&self) -> PathBuf {
        let files = Files::of(self.version);
        let mut levels = self.levels(&self.dir).into_iter();
        levels.find(|level| level.join(files.usage).exists()).unwrap_or_else(|| self.dir.clone())
    }

    /// v2's root is the only one without the controller's files while the controller is on.
    #[must_use]
    pub(in crate::monitor) fn is_root_of_v2(&self) -> bool {
        let is_on = || fs::read_to_string(self.dir.join("cgroup.controllers")).is_ok_and(|on| on.contains("memory"));
        self.version == 2 && !self.dir.join("cgroup.events").exists() && is_on()
    }

    fn has_local_events(&self) -> bool {
        self.version == 2 && self.mounts.iter().any(|mount| mount.has_local_events)
    }
}

/// The folders in a folder, with their inode numbers, which the listing of a cgroup shows (`kernfs_fop_readdir`,
/// fs/kernfs/dir.c). Listing one takes 5 us; most have none below, which two links tell in 1 us.
pub(super) fn folders(dir: &Path) -> Vec<(PathBuf, u64)> {
    const NONE_BELOW: u64 = 2;
    if fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() == NONE_BELOW) {
        return Vec::new();
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| (entry.path(), entry.ino())).collect()
}

pub(super) fn inode(dir: &Path) -> u64 {
    fs::metadata(dir).map_or(0, |metadata| metadata.ino())
}

fn text<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    std::str::from_utf8(&buffer[..length]).map_err(io::Error::other)
}

pub(super) fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// What the kernel thinks can be had without swapping.
pub(super) fn available_bytes(meminfo: &File) -> Option<u64> {
    let mut buffer = [0; 256];
    let length = meminfo.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
#[path = "counter_tests.rs"]
mod tests;
