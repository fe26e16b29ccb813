//! Kernel memory reads through a helper. Reading a bad address fails without harm, so the functions are safe. A read
//! takes about 25 ns, which is why [`Window`] and [`Direct`](super::direct::Direct) exist.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;
use krunner_common::{ABSENT, COMM_BYTES, WINDOW_BYTES};

use super::globals::offset;
use super::log::log_line;

/// A pointer to a kernel struct whose members can be read.
///
/// Offsets come from [`offset!`](super::globals::offset); an absent one reads as `None`.
pub(super) trait KernelPointer: Copy {
    fn u32(self, offset: u32) -> Option<u32>;

    fn u64(self, offset: u32) -> Option<u64>;

    /// Follows the pointer stored at `offset`; `None` if it is null.
    fn pointer(self, offset: u32) -> Option<Self>;

    /// The same address, untyped.
    fn address(self) -> Address;

    /// Reads the 16 bytes of a `task_struct.comm`.
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

/// An untyped kernel address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(u64);

impl Address {
    pub(super) const fn new(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    pub(super) const fn raw(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(super) fn plus(self, offset: u32) -> Self {
        Self(self.0 + u64::from(offset))
    }

    #[inline(always)]
    pub(super) fn i16(self, offset: u32) -> Option<i16> {
        self.read(offset)
    }

    /// Reads two adjacent words with one helper call.
    #[inline(always)]
    pub(super) fn two_u64(self, offset: u32) -> Option<[u64; 2]> {
        self.read(offset)
    }

    /// Reads a number; 0 if the address is bad. Unlike [`KernelPointer::u32`] it adds no path for the verifier.
    #[inline(always)]
    pub(super) fn u32_or_0(self, offset: u32) -> u32 {
        self.read_or_0(offset)
    }

    /// Like [`Address::u32_or_0`], for an address or any other word.
    #[inline(always)]
    pub(super) fn u64_or_0(self, offset: u32) -> u64 {
        self.read_or_0(offset)
    }

    /// Like [`Address::u64_or_0`], with the error: 0, or negative if the address is bad.
    #[inline(always)]
    pub(super) fn u64_and_error(self, offset: u32) -> (u64, i64) {
        self.read_and_error(offset)
    }

    #[inline(always)]
    fn read_or_0<T: Copy>(self, offset: u32) -> T {
        self.read_and_error(offset).0
    }

    /// Private, because it is sound only for types to which all zeros are valid.
    #[inline(always)]
    fn read_and_error<T: Copy>(self, offset: u32) -> (T, i64) {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of the value in any case: it clears it if the address is bad
        // (`bpf_probe_read_kernel_common` in kernel/trace/bpf_trace.c), as that of an absent member nearly always is.
        unsafe {
            let (to, from) = (value.as_mut_ptr().cast(), self.plus(offset).0 as *const _);
            let error = generated::bpf_probe_read_kernel(to, size_of::<T>() as u32, from);
            (value.as_ptr().read_volatile(), error)
        }
    }

    /// Private, because it is sound only for types without invalid bit patterns.
    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address and reports a fault. The value is read only after the helper has
        // written it. Volatile, so that the compiler cannot hoist the read to a path where nothing was written:
        // verifiers before 6.3 reject that.
        unsafe {
            let (to, from) = (value.as_mut_ptr().cast(), self.plus(offset).0 as *const _);
            let failed = generated::bpf_probe_read_kernel(to, size_of::<T>() as u32, from) != 0;
            if failed { None } else { Some(value.as_ptr().read_volatile()) }
        }
    }
}

impl KernelPointer for Address {
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

/// The part of a `task_struct` that contains the members a fork record needs, copied with one helper call. Copying
/// takes about 1 ns per 10 bytes.
pub(super) struct Window(MaybeUninit<[u64; WINDOW_BYTES as usize / 8]>);

impl Window {
    #[inline(always)]
    pub(super) const fn empty() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Fills the window in place, because the stack has no space for a second one. `None` if this kernel's members are
    /// too far apart.
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

/// A [`Window`] that has been filled.
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

    /// Position of a member in the window; constant for the verifier.
    #[inline(always)]
    fn at(offset: u32, bytes: u32) -> Option<usize> {
        let at = offset.wrapping_sub(offset!(task_window));
        (offset != ABSENT && at <= WINDOW_BYTES - bytes && at.is_multiple_of(bytes)).then_some(at as usize)
    }
}
