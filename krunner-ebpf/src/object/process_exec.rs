//! `sched_process_exec`: records execs with the beginning of the command line.
//!
//! Fires in the process itself, after the new address space is set up and before the program runs.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_user};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{CMDLINE_BYTES, Exec, Kind, Task, exec_flag};

use super::address::KernelPointer;
use super::direct::Direct;
use super::globals::{direct_reads, offset};
use super::ring::{self, Wake};
use super::{cgroup_filter, task};

const MAX: u64 = CMDLINE_BYTES as u64;

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_: RawTracePointContext) -> Option<()> {
    if direct_reads() { record(Direct::current()) } else { record(task::current()) }
}

#[inline(always)]
fn record<P: KernelPointer>(task: P) -> Option<()> {
    if !cgroup_filter::matches(task) {
        return None;
    }
    // A thread that calls exec has become the leader by now (`de_thread`, fs/exec.c).
    let tgid = task::id(task)?;
    let described = Task { tgid, tid: tgid, start_boot_ns: task::start(task)? };
    let comm = task::comm(task);
    // SAFETY: a helper without arguments.
    let time_boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    let mut entry = ring::reserve::<Exec>(Kind::Exec)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is the size of a record and aligned to 8, and ours until it is submitted.
    // The command line is written in place: a copy would not fit on the stack.
    unsafe {
        (*record).kind = Kind::Exec as u32;
        (*record).time_boot_ns = time_boot_ns;
        (*record).task = described;
        (*record).comm = comm;
        (*record).flags = copy_arguments(task, record).unwrap_or(exec_flag::UNREADABLE);
    }
    entry.submit(Wake::Later { time_boot_ns }.flags());
    Some(())
}

/// Copies the beginning of the command line and its length into the record. Returns the flags to set.
#[inline(always)]
unsafe fn copy_arguments<P: KernelPointer>(task: P, record: *mut Exec) -> Option<u16> {
    // SAFETY: the caller owns the record.
    let length_at = unsafe { &raw mut (*record).cmdline_bytes };
    // SAFETY: as above.
    unsafe { length_at.write_volatile(0) };
    let mm = task.pointer(offset!(task_mm))?;
    let (start, end) = (mm.u64(offset!(mm_arg_start))?, mm.u64(offset!(mm_arg_end))?);
    let length = end.checked_sub(start)?;
    // SAFETY: as above; the helper checks the address that it reads, and `kept` bytes fit. The length goes
    // through memory because the verifier of 5.10 loses the bounds of values spilled to the stack: the value read
    // here is compared and used immediately.
    let failed = unsafe {
        length_at.write_volatile(length.min(MAX) as u16);
        let kept = u32::from(length_at.read_volatile());
        kept > MAX as u32 || bpf_probe_read_user((&raw mut (*record).cmdline).cast(), kept, start as *const _) != 0
    };
    if failed {
        // SAFETY: as above.
        unsafe { length_at.write_volatile(0) };
        return None;
    }
    Some(if length > MAX { exec_flag::TRUNCATED } else { 0 })
}
