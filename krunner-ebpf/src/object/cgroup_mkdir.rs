//! `cgroup_mkdir`: a new cgroup, so that one which is removed right after a kill still has a name.
//!
//! Fires in the process that makes it, when the directory is there (`cgroup_mkdir()` in `kernel/cgroup/cgroup.c`). Only
//! what processes of ours make is told: the names of other tenants' cgroups stay in the kernel.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel_str};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{CGROUP_NAME_BYTES, CgroupMade, Kind};

use super::address::{Address, Place};
use super::globals::offset;
use super::ring::{self, Wake};
use super::{cgroup, fence, task};

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: RawTracePointContext) -> Option<()> {
    let (made, current) = (Address::new(ctx.arg(0)), task::current());
    if !cgroup::is_charged_hierarchy(made, current)? || !fence::has(current) {
        return None;
    }
    task::id(current)?;
    let (id, parent_id) = (cgroup::id(made)?, cgroup::parent_id(made)?);
    let name = made.pointer(offset!(cgroup_kn))?.u64(offset!(kernfs_node_name))?;
    // SAFETY: a helper without arguments.
    let time_boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    let mut entry = ring::reserve::<CgroupMade>(Kind::CgroupMade)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is the size of a record and aligned to 8, and ours until it is submitted. The helper checks
    // the address that it reads, and writes no more than it is told to.
    unsafe {
        (*record).kind = Kind::CgroupMade as u32;
        (*record).time_boot_ns = time_boot_ns;
        (*record).id = id;
        (*record).parent_id = parent_id;
        let to = (&raw mut (*record).name).cast();
        let copied = bpf_probe_read_kernel_str(to, CGROUP_NAME_BYTES as u32, name as *const _);
        // With the final NUL; what fills all of it was cut.
        let is_whole = copied > 1 && copied < CGROUP_NAME_BYTES as i64;
        (*record).name_bytes = if is_whole { copied as u32 - 1 } else { 0 };
    }
    entry.submit(Wake::Later { time_boot_ns }.flags());
    Some(())
}
