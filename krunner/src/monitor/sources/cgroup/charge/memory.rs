//! Usage of the cgroup with the least headroom, and its unreclaimable part. Reads only files that are open and were
//! read before.

use std::os::unix::fs::FileExt as _;

use super::{ChargeLevel, NO_LIMIT_BYTES, OwnCharge};
use crate::monitor::sources::cgroup::files::{number_in, value};

/// Buffer for `memory.stat`, which has about 1.5 KiB; the entries needed are within this size.
const STAT_BYTES: usize = 8192;

/// Memory charged to our cgroup or an ancestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct ChargedMemory {
    /// Levels above our own cgroup; 0 is our own.
    pub(in crate::monitor) level: usize,
    /// Memory in use.
    pub(in crate::monitor) usage_bytes: u64,
    /// The limit; `None` if unlimited.
    pub(in crate::monitor) limit_bytes: Option<u64>,
}

/// Reclaimable parts of the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the unit is a part of each name")]
pub(in crate::monitor) struct MemoryStat {
    /// Inactive file pages.
    pub(in crate::monitor) inactive_file_bytes: u64,
    /// v2: all file pages and reclaimable slab. Pages read twice are active, but reclaimable nevertheless.
    reclaimable_bytes: u64,
    /// v1, which does not show reclaimable slab: anonymous memory, including tmpfs files.
    programs_bytes: Option<u64>,
}

impl ChargedMemory {
    /// Headroom below the limit; `u64::MAX` if unlimited.
    #[must_use]
    pub(in crate::monitor) fn headroom_bytes(&self) -> u64 {
        self.limit_bytes.map_or(u64::MAX, |limit_bytes| limit_bytes.saturating_sub(self.usage_bytes))
    }
}

impl MemoryStat {
    /// Estimate of the unreclaimable memory.
    pub(in crate::monitor) fn needed_bytes(&self, usage_bytes: u64) -> u64 {
        match self.programs_bytes {
            Some(programs_bytes) => programs_bytes.min(usage_bytes),
            None => usage_bytes.saturating_sub(self.reclaimable_bytes),
        }
    }

    /// Parses `memory.stat`. v1 has sums over descendants as `total_*`
    /// (Documentation/admin-guide/cgroup-v1/memory.rst); v2 has only such sums (cgroup-v2.rst).
    pub(in crate::monitor::sources::cgroup) fn parse(text: &str) -> Option<Self> {
        if let Some(inactive_file_bytes) = value(text, "total_inactive_file") {
            let programs_bytes = value(text, "total_rss")
                .zip(value(text, "total_shmem"))
                .map(|(rss, shmem)| u64::saturating_add(rss, shmem));
            let reclaimable_bytes = inactive_file_bytes.saturating_add(value(text, "total_active_file").unwrap_or(0));
            return Some(Self { inactive_file_bytes, reclaimable_bytes, programs_bytes });
        }
        let inactive_file_bytes = value(text, "inactive_file")?;
        let others = ["active_file", "slab_reclaimable"].map(|name| value(text, name).unwrap_or(0));
        let reclaimable_bytes = others.into_iter().fold(inactive_file_bytes, u64::saturating_add);
        Some(Self { inactive_file_bytes, reclaimable_bytes, programs_bytes: None })
    }
}

impl OwnCharge {
    /// The level with the least headroom; our own cgroup if there is no limit. Reads three files per level.
    #[must_use]
    pub(in crate::monitor) fn nearest_limit(&self) -> Option<ChargedMemory> {
        self.read_hidden_limit();
        (0..self.levels.len()).filter_map(|level| self.read_at(level)).min_by_key(ChargedMemory::headroom_bytes)
    }

    /// Current usage and limit of a level. Reads two files.
    #[must_use]
    pub(in crate::monitor) fn read_at(&self, level: usize) -> Option<ChargedMemory> {
        self.charged_at(level, self.limit_bytes(level))
    }

    /// Current usage of a level whose limit is known. Reads one file.
    #[must_use]
    pub(in crate::monitor) fn charged_at(&self, level: usize, limit_bytes: Option<u64>) -> Option<ChargedMemory> {
        let usage_bytes = number_in(&self.levels.get(level)?.usage)?;
        Some(ChargedMemory { level, usage_bytes, limit_bytes })
    }

    /// Reclaimable memory of a level. The kernel sums per-CPU counters for it (`mem_cgroup_flush_stats`,
    /// mm/memcontrol.c), which takes about 20 us, or more on large machines.
    #[must_use]
    pub(in crate::monitor) fn stat_at(&self, level: usize) -> Option<MemoryStat> {
        self.levels.get(level)?.stat()
    }
}

impl ChargeLevel {
    pub(super) fn stat(&self) -> Option<MemoryStat> {
        MemoryStat::parse(self.stat_text(&mut [0; STAT_BYTES])?)
    }

    /// v1: the smallest limit of this level and all its ancestors, visible or not.
    pub(super) fn smallest_limit_bytes(&self) -> Option<u64> {
        let mut buffer = [0; STAT_BYTES];
        let text = self.stat_text(&mut buffer)?;
        value(text, "hierarchical_memory_limit").filter(|bytes| *bytes < NO_LIMIT_BYTES)
    }

    fn stat_text<'a>(&self, buffer: &'a mut [u8; STAT_BYTES]) -> Option<&'a str> {
        let length = self.stat.as_ref()?.read_at(buffer, 0).ok()?;
        std::str::from_utf8(&buffer[..length]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_has_sums_of_its_own() {
        let text = "cache 9\nrss 1\ninactive_file 1\nactive_file 1\ntotal_cache 50\ntotal_rss 30\ntotal_shmem 5\n\
                    total_inactive_file 20\ntotal_active_file 25\n";
        let stat = MemoryStat::parse(text).unwrap();
        assert_eq!((stat.inactive_file_bytes, stat.needed_bytes(100)), (20, 35));
        let masked = MemoryStat::parse("total_inactive_file 20\ntotal_active_file 25\n").unwrap();
        assert_eq!(masked.needed_bytes(100), 55, "an older kernel has no total_shmem");
    }

    #[test]
    fn version_2_takes_back_files_and_their_caches() {
        let text = "anon 30\nfile 50\nshmem 5\ninactive_file 20\nactive_file 25\nslab_reclaimable 10\n";
        let stat = MemoryStat::parse(text).unwrap();
        assert_eq!((stat.inactive_file_bytes, stat.needed_bytes(100)), (20, 45));
        assert_eq!(stat.needed_bytes(10), 0, "the two are not of the same moment");
        assert_eq!(MemoryStat::parse("anon 30\n"), None);
    }

    #[test]
    fn sums_do_not_overflow() {
        let max = u64::MAX;
        let old = format!("total_rss {max}\ntotal_shmem {max}\ntotal_inactive_file {max}\ntotal_active_file {max}\n");
        assert_eq!(MemoryStat::parse(&old).unwrap().needed_bytes(100), 100);
        let new = format!("inactive_file {max}\nactive_file {max}\nslab_reclaimable {max}\n");
        assert_eq!(MemoryStat::parse(&new).unwrap().needed_bytes(100), 0);
    }
}
