//! How much of our cgroup's memory is in swap. The kernel compares processes by their resident memory and swap
//! (`oom_badness`, `mm/oom_kill.c`), and scans of `/proc` do not read the latter.
//!
//! | hierarchy | read from |
//! |---|---|
//! | v2 | `memory.swap.current` |
//! | v1 with swap accounting | `memory.memsw.usage_in_bytes` minus `memory.usage_in_bytes` |
//! | v2's root, or none | `/proc/meminfo`: the whole machine's |
//!
//! Elsewhere it is unknown: the machine's says nothing about one cgroup.
//!
//! The files stay open and are read along with the counters, 1 to 2 us each, because a victim's swap is soon freed.

use std::fs::File;
use std::path::Path;

use super::files::{number_in, open, text};
use super::{Cgroup, MemcgFiles};

/// Where to read the swap in use from.
#[derive(Debug)]
pub(super) enum SwapInUse {
    Cgroup(File),
    MemoryAndSwap { both: File, memory: File },
    Machine(File),
    Unknown,
}

impl SwapInUse {
    pub(super) fn open(cgroup: Option<&Cgroup>) -> Self {
        let source = match cgroup {
            None => open(Path::new("/proc/meminfo")).map(Self::Machine),
            Some(cgroup) if cgroup.is_root_of_v2() => open(&cgroup.root.proc("meminfo")).map(Self::Machine),
            Some(cgroup) => Self::of_cgroup(&cgroup.charged_dir(), cgroup.version),
        };
        source.unwrap_or(Self::Unknown)
    }

    fn of_cgroup(dir: &Path, version: u8) -> Option<Self> {
        let open = |name: &str| open(&dir.join(name));
        if version == 2 {
            return open("memory.swap.current").map(Self::Cgroup);
        }
        let (both, memory) = (open("memory.memsw.usage_in_bytes")?, open(MemcgFiles::of(1).usage)?);
        Some(Self::MemoryAndSwap { both, memory })
    }

    /// Reads it; 0 if it is unknown.
    pub(super) fn read(&self, buffer: &mut [u8]) -> u64 {
        let bytes = match self {
            Self::Cgroup(file) => number_in(file),
            // Read in this order, so that memory charged in between is not taken for swap.
            Self::MemoryAndSwap { both, memory } => {
                number_in(both).zip(number_in(memory)).map(|(both, memory)| both.saturating_sub(memory))
            }
            Self::Machine(meminfo) => text(meminfo, buffer).ok().and_then(of_machine),
            Self::Unknown => None,
        };
        bytes.unwrap_or(0)
    }
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(kib("SwapTotal:")?.saturating_sub(kib("SwapFree:")?) << 10)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::CgroupRoot;
    use super::*;

    /// The swap in use of the cgroup `/own`, which has these files.
    fn swap_bytes(version: u8, files: &[(&str, &str)]) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        for dir in ["proc/self", "m/own"] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        let (own, kind) =
            if version == 1 { ("4:memory", "cgroup cgroup rw,memory") } else { ("0:", "cgroup2 cgroup2 rw") };
        write("proc/self/cgroup", &format!("{own}:/own\n"));
        write("proc/self/mountinfo", &format!("33 31 0:29 / /m rw - {kind}\n"));
        write("proc/meminfo", "MemTotal: 100 kB\nSwapCached: 1 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n");
        for (file, text) in files {
            write(&format!("m/own/{file}"), text);
        }
        let cgroup = Cgroup::find(&CgroupRoot::below(folder.path())).unwrap();
        SwapInUse::open(Some(&cgroup)).read(&mut [0; 4096])
    }

    #[test]
    fn swap_is_that_of_the_cgroup_where_it_is_counted() {
        let v1 = [("memory.memsw.usage_in_bytes", "700\n"), ("memory.usage_in_bytes", "500\n")];
        assert_eq!(swap_bytes(1, &v1), 200);
        assert_eq!(swap_bytes(1, &v1[1..]), 0, "not counted");
        assert_eq!(swap_bytes(2, &[("memory.current", "500\n"), ("memory.swap.current", "40\n")]), 40);
        assert_eq!(swap_bytes(2, &[("memory.current", "500\n")]), 0, "not counted");
        assert_eq!(swap_bytes(2, &[("cgroup.controllers", "cpu memory\n")]), 30 << 10, "the root: of the machine");
    }
}
