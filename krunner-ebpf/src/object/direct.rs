//! Kernel memory reads with plain loads: the running task and the structs it points to.
//!
//! The verifier knows the type of the pointer that `bpf_get_current_task_btf` returns and of each pointer loaded
//! through it. A load that faults returns 0 (`PROBE_MEM` in `kernel/bpf/verifier.c`). No relocations are required: the
//! verifier accepts an offset from a frozen map if it is that of a member and the load has the member's size.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use krunner_common::ABSENT;

use super::address::{Address, KernelPointer};

/// A pointer whose type the verifier knows.
#[derive(Clone, Copy)]
pub(super) struct Direct(*const u8);

impl Direct {
    /// The running task. Call it only if [`direct_reads`](super::globals::direct_reads) is true.
    #[inline(always)]
    pub(super) fn current() -> Self {
        // SAFETY: a helper without arguments.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        // SAFETY: the verifier has checked that the offset is of a member of this size; a bad address
        // reads as 0. Volatile, so that the load stays one and stays behind its checks.
        Some(unsafe { self.0.add(offset as usize).cast::<T>().read_volatile() })
    }
}

impl KernelPointer for Direct {
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
        self.read(offset).filter(|pointer: &*const u8| !pointer.is_null()).map(Self)
    }

    #[inline(always)]
    fn address(self) -> Address {
        Address::new(self.0 as u64)
    }
}
