//! Heap tuning, locked code pages, and memory shared with the kernel.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Returns freed memory to the kernel. glibc would keep it; musl returns it by itself.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches only what the allocator itself holds as free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes glibc keep little free memory (mallopt(3)). One arena for all threads, because [`trim_heap`] can shrink only
/// that one. Fixed thresholds, because glibc would raise them to the size of each large block that is freed, which is
/// megabytes after the tracer's loader ran. Call while the process has one thread.
pub(crate) fn tune_malloc() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
    ] {
        // SAFETY: sets a number, which other threads, if there were any, would read a moment later.
        unsafe {
            libc::mallopt(option, value);
        }
    }
}

/// glibc's initial value: larger blocks are mapped individually and unmapped when freed.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 128 * 1024;

/// Free memory to keep at the end of the arena: a few chunks of output, so that a busy pump does not need a system call
/// for each.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD_BYTES: libc::c_int = 1024 * 1024;

/// Keeps pages of our program and its libraries in memory once they were used (`mlock2(2)`, `MLOCK_ONFAULT`); returns
/// how many bytes of address space that covers. At a memory limit the kernel evicts them first because they are clean,
/// and reads them back one by one when they are needed: thousands of times a second, each with a charge. Pages that
/// were never used stay out of memory.
///
/// # Errors
/// If no page can be locked because `RLIMIT_MEMLOCK` is 0.
pub(crate) fn keep_code_resident() -> io::Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut locked = 0;
    for (start, bytes) in code_mappings(&maps) {
        // SAFETY: locking changes no content, whatever is mapped there.
        let result = unsafe { libc::mlock2(std::ptr::without_provenance(start), bytes, libc::MLOCK_ONFAULT) };
        if result == 0 {
            locked += bytes as u64;
        } else if locked == 0 {
            return Err(io::Error::last_os_error());
        } else {
            // The limit is used up. The most important mappings come first.
            break;
        }
    }
    Ok(locked)
}

/// Where executable files are mapped: first what is executed, then the constants beside it (proc(5)).
fn code_mappings(maps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut files = Vec::new();
    for permissions in ["r-xp", "r--p"] {
        for line in maps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(range), Some(has), Some(path)) = (fields.next(), fields.next(), fields.nth(3)) else { continue };
            let Some((start, end)) = range.split_once('-') else { continue };
            let address = |text| usize::from_str_radix(text, 16).ok();
            let (Some(start), Some(end)) = (address(start), address(end)) else { continue };
            if has == "r-xp" && path.starts_with('/') {
                files.push(path);
            }
            if has == permissions && files.contains(&path) {
                found.push((start, end.saturating_sub(start)));
            }
        }
    }
    found
}

/// Pre-faults some heap memory, so that allocations at a memory limit need no new page. Call after [`tune_malloc`]; the
/// reserve stays below its thresholds.
pub(crate) fn reserve_heap() {
    #[cfg(target_env = "gnu")]
    drop(touched(HEAP_RESERVE_BYTES));
    #[cfg(not(target_env = "gnu"))]
    for size in RESERVED_UNITS.map(largest_of_class) {
        let count = (RESERVED_BYTES / size).max(4);
        keep_pages((0..count).map(|_| touched(size)).collect());
    }
    #[cfg(not(target_env = "gnu"))]
    for size in RESERVED_BUFFERS.map(largest_of_class) {
        // One of them keeps the others' pages: musl makes groups of three or more.
        let mut blocks = [(); 3].map(|()| touched(size)).into_iter();
        blocks.next().map(Vec::leak);
    }
}

/// Pre-faults glibc's reserve again: long-lived allocations use it up. On musl, blocks that are never freed keep it.
pub(crate) fn renew_heap_reserve() {
    #[cfg(target_env = "gnu")]
    drop(touched(HEAP_RESERVE_BYTES));
}

/// Frees blocks but for the first one in each page, which keeps the page.
#[cfg(not(target_env = "gnu"))]
fn keep_pages(blocks: Vec<Vec<u8>>) {
    let mut kept = None;
    for block in blocks {
        let page = block.as_ptr().addr() / PAGE_BYTES;
        if kept != Some(page) {
            kept = Some(page);
            block.leak();
        }
    }
}

/// Allocates memory and touches every page of it, the last one as well, in which no step may end.
fn touched(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    if let Some(last) = memory.last_mut() {
        *last = 1;
    }
    std::hint::black_box(memory)
}

/// Below glibc's threshold for blocks that are mapped individually.
#[cfg(target_env = "gnu")]
const HEAP_RESERVE_BYTES: usize = 120 * 1024;

/// Musl's size classes up to 4 KiB, in units of 16 bytes (`size_classes`, src/malloc/mallocng/malloc.c). It groups blocks by class
/// and returns a group when all of it is free.
#[cfg(not(target_env = "gnu"))]
const RESERVED_UNITS: [usize; 28] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 20, 25, 31, 36, 42, 50, 63, 72, 84, 102, 127, 146, 170, 204, 255];

/// Larger classes: up to 9 KiB, and those of 16 and 32 KiB, where buffers that grow by doubling are.
#[cfg(not(target_env = "gnu"))]
const RESERVED_BUFFERS: [usize; 7] = [292, 340, 409, 511, 584, 1169, 2340];

/// The largest size of a class. Its block is touched to the end: musl writes to the end of each block that it allocates.
#[cfg(not(target_env = "gnu"))]
fn largest_of_class(units: usize) -> usize {
    units * 16 - 4
}

/// Bytes reserved in each class.
#[cfg(not(target_env = "gnu"))]
const RESERVED_BYTES: usize = 12 * 1024;

const PAGE_BYTES: usize = 4096;

/// The counters in a memory-mapped BPF array, read without a system call.
#[derive(Debug)]
pub(crate) struct CounterMap {
    start: NonNull<AtomicU64>,
    count: NonZeroUsize,
}

// SAFETY: the mapping never moves and is accessed by atomic loads only.
unsafe impl Send for CounterMap {}

impl CounterMap {
    /// Maps the values of a BPF array of `count` 8-byte values that was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// If the kernel refuses: the map has another type or is smaller.
    pub(crate) fn of_map(map: impl AsFd, count: NonZeroUsize) -> io::Result<Self> {
        let length = bytes(count);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start: start.cast(), count })
    }

    /// The current sum of the counters at the wanted indexes.
    #[must_use]
    pub(crate) fn sum_of(&self, is_wanted: impl Fn(usize) -> bool) -> u64 {
        // SAFETY: `count` words are mapped from `start` on until the drop, aligned to a page.
        let words = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count.get()) };
        let wanted = words.iter().enumerate().filter(|(index, _)| is_wanted(*index));
        wanted.map(|(_, word)| word.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for CounterMap {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of_map`, which this value owns.
        let unmapped = unsafe { munmap(self.start.cast(), bytes(self.count).get()) };
        debug_assert!(unmapped.is_ok(), "it was mapped");
    }
}

fn bytes(count: NonZeroUsize) -> NonZeroUsize {
    count.saturating_mul(const { NonZeroUsize::new(size_of::<u64>()).expect("a word has bytes") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_before_constants_and_nothing_else_is_locked() {
        let maps = "1000-2000 r--p 00000000 08:01 1 /bin/krunner\n2000-5000 r-xp 00001000 08:01 1 /bin/krunner\n\
                    5000-6000 rw-p 00004000 08:01 1 /bin/krunner\n7000-8000 rw-p 00000000 00:00 0 [heap]\n\
                    9000-a000 r-xp 00000000 08:01 2 /lib/libc.so.6\nb000-c000 r-xp 00000000 00:00 0 [vdso]\n\
                    d000-e000 r--s 00000000 00:00 3 /etc/locale\n";
        assert_eq!(code_mappings(maps), [(0x2000, 0x3000), (0x9000, 0x1000), (0x1000, 0x1000)]);
    }

    /// A block of this size starts behind a header, so it is in one page more than there are steps.
    #[test]
    fn reserve_is_in_memory_to_its_last_byte() {
        let memory = touched(256 * PAGE_BYTES + PAGE_BYTES - 8);
        let last = memory.as_ptr_range().end.addr() - 1;
        let mut is_there = 0;
        let page = std::ptr::without_provenance_mut(last - last % PAGE_BYTES);
        // SAFETY: one page, whose state is written to one byte.
        let result = unsafe { libc::mincore(page, 1, &raw mut is_there) };
        assert_eq!((result, is_there & 1), (0, 1));
    }

    #[test]
    fn own_code_can_be_kept() {
        match keep_code_resident() {
            Ok(bytes) => assert!(bytes > 1 << 20, "{bytes}"),
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }
}
