//! Formats the use of memory: `memory: 256m = programs 240m + tmpfs and shared memory 9m + page cache 2m + kernel 5m`.

use std::fmt;

use crate::monitor::explain::{KernelMemory, MemoryUsage, TreeUsage};
use crate::monitor::model::mount::MountUsage;
use crate::monitor::model::units::{MIB, grouped, mib};

/// Number of mounts in the text.
const SHOWN_MOUNTS: usize = 3;

/// Number of trees in the text.
const SHOWN_TREES: usize = 3;

/// Mounts are listed from this size of shared memory on.
const NAMED_SHMEM_BYTES: u64 = 4 * MIB;

impl fmt::Display for MemoryUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("programs", self.anon_bytes),
            ("tmpfs and shared memory", self.shmem_bytes),
            ("page cache", self.page_cache_bytes),
            ("kernel", self.kernel.map(|kernel| kernel.total_bytes)),
            ("unaccounted", Some(self.unexplained_bytes)),
        ];
        let mut parts: Vec<(&str, u64)> = parts
            .into_iter()
            .filter_map(|(name, bytes)| Some((name, bytes?)))
            .filter(|part| part.1 >= MIB / 2)
            .collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.1));
        write!(f, "memory: {}", mib(self.total_bytes))?;
        for (index, (name, bytes)) in parts.iter().enumerate() {
            write!(f, " {} {name} {}", if index == 0 { "=" } else { "+" }, mib(*bytes))?;
        }
        if let Some(bytes) = self.swap_bytes.filter(|bytes| *bytes >= MIB / 2) {
            write!(f, "; plus {} in swap", mib(bytes))?;
        }
        self.write_kernel(f)?;
        self.write_mounts(f)?;
        self.write_trees(f)
    }
}

impl MemoryUsage {
    /// Writes the kernel's part only if it is large.
    fn write_kernel(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_much = |kernel: &KernelMemory| kernel.total_bytes > self.total_bytes / 4;
        let Some(kernel) = self.kernel.filter(is_much) else { return Ok(()) };
        let parts = [
            ("socket buffers", kernel.sockets_bytes),
            ("page tables", kernel.page_tables_bytes),
            ("stacks", kernel.stacks_bytes),
            ("slab", kernel.slab_bytes),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter_map(|(name, bytes)| Some((name, bytes?)))
            .filter(|part| part.1 >= MIB / 2)
            .map(|(name, bytes)| format!("{name} {}", mib(bytes)))
            .collect();
        if parts.is_empty() { Ok(()) } else { write!(f, "\n  kernel: {}", parts.join(", ")) }
    }

    fn write_mounts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mounts.is_empty() || self.shmem_bytes.is_some_and(|bytes| bytes < NAMED_SHMEM_BYTES) {
            return Ok(());
        }
        let mounts: Vec<String> = self.mounts.iter().take(SHOWN_MOUNTS).map(ToString::to_string).collect();
        write!(f, "\n  tmpfs: {}", mounts.join(", "))
    }

    fn write_trees(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tree in self.trees.iter().take(SHOWN_TREES) {
            write!(f, "\n  {tree}: {} of {}", mib(tree.rss_bytes), mib(self.total_bytes))?;
            if tree.rss_bytes > self.total_bytes {
                f.write_str(" (shared pages counted more than once)")?;
            }
        }
        Ok(())
    }
}

/// `/dev/shm 40m of 64m`.
impl fmt::Display for MountUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.escape_debug(), mib(self.used_bytes))?;
        match self.size_bytes {
            Some(bytes) => write!(f, " of {}", mib(bytes)),
            None => Ok(()),
        }
    }
}

/// `3 (train.py) and its 8 descendants`.
impl fmt::Display for TreeUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key.pid, self.name.escape_debug())?;
        match self.descendants {
            1 => f.write_str(" and its 1 descendant"),
            more => write!(f, " and its {} descendants", grouped(more as u64)),
        }
    }
}
