//! Kernel memory. A read of a bad address fails and does no harm, so the reads are safe calls.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use krunner_common::{ABSENT, COMM_BYTES};

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

    #[inline(always)]
    pub(super) fn u32(self, offset: u32) -> Option<u32> {
        self.read(offset)
    }

    #[inline(always)]
    pub(super) fn u64(self, offset: u32) -> Option<u64> {
        self.read(offset)
    }

    /// Two words that lie side by side, in one read.
    #[inline(always)]
    pub(super) fn two_u64(self, offset: u32) -> Option<[u64; 2]> {
        self.read(offset)
    }

    /// The address that is stored there; `None` for a null pointer.
    #[inline(always)]
    pub(super) fn pointer(self, offset: u32) -> Option<Self> {
        self.u64(offset).filter(|&address| address != 0).map(Self)
    }

    /// A command name.
    #[inline(always)]
    pub(super) fn comm(self, offset: u32) -> Option<[u8; COMM_BYTES]> {
        let words: [u64; 2] = self.read(offset)?;
        let [low, high] = words.map(u64::to_ne_bytes);
        let mut comm = [0; COMM_BYTES];
        comm[..8].copy_from_slice(&low);
        comm[8..].copy_from_slice(&high);
        Some(comm)
    }

    /// Only for types whose every bit pattern is a value; hence private.
    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        // SAFETY: the helper checks the address and reports a fault; it never dereferences blindly.
        unsafe { bpf_probe_read_kernel(self.plus(offset).0 as *const T) }.ok()
    }
}
