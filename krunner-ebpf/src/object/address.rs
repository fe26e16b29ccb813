//! Kernel memory, read by a helper. A read of a bad address fails and does no harm, so the reads are
//! safe calls. Each takes some 25 ns, whence [`Window`] and [`Direct`](super::direct::Direct).

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;
use krunner_common::{ABSENT, COMM_BYTES, WINDOW_BYTES};

use super::globals::offset;
use super::log::log_line;

/// Somewhere in the kernel from where members are read: a struct of a known type.
///
/// Offsets are those of [`offset!`](super::globals::offset); one that is absent reads as `None`.
pub(super) trait Place: Copy {
    fn u32(self, offset: u32) -> Option<u32>;

    fn u64(self, offset: u32) -> Option<u64>;

    /// What the pointer that is stored there points to; `None` for a null pointer.
    fn pointer(self, offset: u32) -> Option<Self>;

    /// The same place, without its type.
    fn address(self) -> Address;

    /// A command name.
    #[inline(always)]
    fn comm(self, offset: u32) -> Option<[u8; COMM_BYTES]> {
        if offset == ABSENT {
            return None;
        }
        let [low, high] = [self.u64(offset)?, self.u64(offset + 8)?].map(u64::to_ne_bytes);
        let mut comm = [0; COMM_BYTES];
        comm[..8].copy_from_slice(&low);
        comm[8..].copy_from_slice(&high);
        Some(comm)
    }
}

/// An address in the kernel, to which offsets of struct members are added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(u64);

impl Address {
    pub(super) const fn new(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    pub(super) fn plus(self, offset: u32) -> Self {
        Self(self.0 + u64::from(offset))
    }

    #[inline(always)]
    pub(super) fn i16(self, offset: u32) -> Option<i16> {
        self.read(offset)
    }

    /// Two words that lie side by side, in one read.
    #[inline(always)]
    pub(super) fn two_u64(self, offset: u32) -> Option<[u64; 2]> {
        self.read(offset)
    }

    /// Only for types whose every bit pattern is a value; hence private.
    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address and reports a fault; it never dereferences blindly. It has
        // written the value when that is read. Volatile, lest the compiler read it earlier, on a path where
        // nothing was written: before 6.3 the verifier takes that for an error.
        unsafe {
            let (to, from) = (value.as_mut_ptr().cast(), self.plus(offset).0 as *const _);
            let failed = generated::bpf_probe_read_kernel(to, size_of::<T>() as u32, from) != 0;
            if failed { None } else { Some(value.as_ptr().read_volatile()) }
        }
    }
}

impl Place for Address {
    #[inline(always)]
    fn u32(self, offset: u32) -> Option<u32> {
        self.read(offset)
    }

    #[inline(always)]
    fn u64(self, offset: u32) -> Option<u64> {
        self.read(offset)
    }

    #[inline(always)]
    fn pointer(self, offset: u32) -> Option<Self> {
        self.u64(offset).filter(|&address| address != 0).map(Self)
    }

    #[inline(always)]
    fn address(self) -> Address {
        self
    }

    #[inline(always)]
    fn comm(self, offset: u32) -> Option<[u8; COMM_BYTES]> {
        let [low, high] = self.two_u64(offset)?.map(u64::to_ne_bytes);
        let mut comm = [0; COMM_BYTES];
        comm[..8].copy_from_slice(&low);
        comm[8..].copy_from_slice(&high);
        Some(comm)
    }
}

/// The stretch of a task that has what a fork needs, copied in one read; the copy itself costs a
/// nanosecond for every ten bytes or so.
pub(super) struct Window(MaybeUninit<[u64; WINDOW_BYTES as usize / 8]>);

impl Window {
    #[inline(always)]
    pub(super) const fn empty() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Reads it, where it lies on the stack: a second one would not fit. `None` on a kernel where the
    /// members lie too far apart.
    #[inline(always)]
    pub(super) fn read(&mut self, task: Address) -> Option<View<'_>> {
        let first = offset!(task_window);
        if first == ABSENT {
            log_line!(no_window());
            return None;
        }
        // SAFETY: the helper checks the address, and writes all of the window.
        let failed = unsafe {
            let (to, from) = (self.0.as_mut_ptr().cast(), task.plus(first).0 as *const _);
            generated::bpf_probe_read_kernel(to, WINDOW_BYTES, from) != 0
        };
        // SAFETY: written just now.
        if failed { None } else { Some(View(unsafe { self.0.assume_init_ref() })) }
    }
}

/// A window that has been read.
pub(super) struct View<'a>(&'a [u64; WINDOW_BYTES as usize / 8]);

impl View<'_> {
    #[inline(always)]
    pub(super) fn u32(&self, offset: u32) -> Option<u32> {
        // SAFETY: a multiple of 4 within the window, as `at` and the type say.
        Self::at(offset, 4).map(|at| unsafe { self.0.as_ptr().byte_add(at).cast::<u32>().read_volatile() })
    }

    #[inline(always)]
    pub(super) fn u64(&self, offset: u32) -> Option<u64> {
        // SAFETY: a multiple of 8 within the window, as `at` and the type say.
        Self::at(offset, 8).map(|at| unsafe { self.0.as_ptr().byte_add(at).read_volatile() })
    }

    /// Where in the window something is. All of it are constants to the verifier.
    #[inline(always)]
    fn at(offset: u32, bytes: u32) -> Option<usize> {
        let at = offset.wrapping_sub(offset!(task_window));
        (offset != ABSENT && at <= WINDOW_BYTES - bytes && at.is_multiple_of(bytes)).then_some(at as usize)
    }
}
