//! `cgroup_mkdir`: records new cgroups, so that a cgroup removed right after an OOM kill still has a name.
//!
//! Fires in the process that creates the cgroup, after the directory exists (`cgroup_mkdir()` in
//! `kernel/cgroup/cgroup.c`). Only cgroups created by our processes are recorded: names of other tenants' cgroups do
//! not leave the kernel.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel_str};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{CGROUP_NAME_BYTES, CgroupMade, Kind};

use super::address::{Address, KernelPointer};
use super::globals::offset;
use super::ring::{self, Wake};
use super::{cgroup, cgroup_filter, task};

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: RawTracePointContext) -> Option<()> {
    let (made, current) = (Address::new(ctx.arg(0)), task::current());
    if !cgroup::is_charged_hierarchy(made, current)? || !cgroup_filter::matches(current) {
        return None;
    }
    task::id(current)?;
    let (id, parent_id) = (cgroup::id(made)?, cgroup::parent_id(made)?);
    let name = made.pointer(offset!(cgroup_kn))?.u64(offset!(kernfs_node_name))?;
    // SAFETY: a helper without arguments.
    let time_boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    let mut entry = ring::reserve::<CgroupMade>(Kind::CgroupMade)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is the size of a record and aligned to 8, and ours until it is submitted. The helper
    // checks the address that it reads, and writes at most the given length.
    unsafe {
        (*record).kind = Kind::CgroupMade as u32;
        (*record).time_boot_ns = time_boot_ns;
        (*record).id = id;
        (*record).parent_id = parent_id;
        let to = (&raw mut (*record).name).cast();
        let copied = bpf_probe_read_kernel_str(to, CGROUP_NAME_BYTES as u32, name as *const _);
        // `copied` includes the final NUL. A name that fills the buffer may be truncated.
        let is_whole = copied > 1 && copied < CGROUP_NAME_BYTES as i64;
        (*record).name_bytes = if is_whole { copied as u32 - 1 } else { 0 };
    }
    entry.submit(Wake::Later { time_boot_ns }.flags());
    Some(())
}
