//! Kernel memory, read by plain loads: the running task, and what hangs on it.
//!
//! The verifier knows the type behind the pointer that `bpf_get_current_task_btf` returns, and the type
//! of each pointer that is loaded from there, and a load that faults gives 0 (`PROBE_MEM` in
//! `kernel/bpf/verifier.c`). No relocations are needed: an offset from a frozen map is as good as one in the
//! instruction, as long as it is that of a member and the load has the member's size.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use krunner_common::ABSENT;

use super::address::{Address, Place};

/// A pointer whose type the verifier knows.
#[derive(Clone, Copy)]
pub(super) struct Direct(*const u8);

impl Direct {
    /// The running task. Only where [`direct_reads`](super::globals::direct_reads) says so.
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

impl Place for Direct {
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
