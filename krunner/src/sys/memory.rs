//! Memory given back to the kernel, and memory shared with it.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Gives memory that was freed back to the kernel. glibc keeps it otherwise; musl never does.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches only what the allocator itself holds as free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has glibc keep little that is free (mallopt(3)): one arena for all threads, the only one that [`give_back`] can
/// make smaller, and thresholds that stay what they are: it raises them to the size of whatever large
/// piece is freed, and with the tracer's loader that is megabytes. To be called while there is one thread.
pub fn keep_little() {
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

/// glibc's own at the start: larger pieces are mapped one by one, and go as they are freed.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 128 * 1024;

/// What may stay free at the end of the arena: a few chunks of output, so that a busy pump does not ask the
/// kernel for each.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD_BYTES: libc::c_int = 1024 * 1024;

/// Words that the kernel side of a map counts up, read without a system call.
#[derive(Debug)]
pub struct Words {
    start: NonNull<AtomicU64>,
    count: NonZeroUsize,
}

// SAFETY: the memory is the mapping's own and never moves; access is by atomic loads only.
unsafe impl Send for Words {}

impl Words {
    /// Maps the values of a BPF array of `count` 8-byte values that was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// When the kernel refuses: another kind of map, or smaller.
    pub fn of_map(map: impl AsFd, count: NonZeroUsize) -> io::Result<Self> {
        let length = bytes(count);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start: start.cast(), count })
    }

    /// Their sum now.
    #[must_use]
    pub fn sum(&self) -> u64 {
        // SAFETY: `count` words are mapped from `start` on until the drop, aligned to a page.
        let words = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count.get()) };
        words.iter().map(|word| word.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of_map`, which nobody else knows.
        let unmapped = unsafe { munmap(self.start.cast(), bytes(self.count).get()) };
        debug_assert!(unmapped.is_ok(), "it was mapped");
    }
}

fn bytes(count: NonZeroUsize) -> NonZeroUsize {
    count.saturating_mul(const { NonZeroUsize::new(size_of::<u64>()).expect("a word has bytes") })
}
