//! `sched_process_exec`: a new program in a process, with the opening of its command line.
//!
//! Fires in the process itself when the new memory is in place and nothing has run in it yet.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_user};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{CMDLINE_BYTES, Exec, Kind, Task, exec_flag};

use super::address::Place;
use super::direct::Direct;
use super::globals::{direct_reads, offset};
use super::ring::{self, Wake};
use super::{fence, task};

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_: RawTracePointContext) -> Option<()> {
    if direct_reads() { record(Direct::current()) } else { record(task::current()) }
}

#[inline(always)]
fn record<P: Place>(task: P) -> Option<()> {
    if !fence::has(task) {
        return None;
    }
    // A thread that calls exec is the leader by now (`de_thread`, fs/exec.c).
    let tgid = task::id(task)?;
    let described = Task { tgid, tid: tgid, start_boot_ns: task::start(task)? };
    let comm = task::comm(task);
    let (start, length) = arguments(task).unwrap_or((0, 0));

    // SAFETY: a helper without arguments.
    let time_boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    let mut entry = ring::reserve::<Exec>(Kind::Exec)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is the size of a record and aligned to 8, and ours until it is submitted.
    // The command line is written in place, since a copy of it would not fit the stack.
    unsafe {
        (*record).kind = Kind::Exec as u32;
        (*record).time_boot_ns = time_boot_ns;
        (*record).task = described;
        (*record).comm = comm;
        let kept = length.min(CMDLINE_BYTES as u64);
        let failed = bpf_probe_read_user((&raw mut (*record).cmdline).cast(), kept as u32, start as *const _) != 0;
        let truncated = if length > CMDLINE_BYTES as u64 { exec_flag::TRUNCATED } else { 0 };
        (*record).cmdline_bytes = if failed { 0 } else { kept as u16 };
        (*record).flags = truncated | if failed { exec_flag::UNREADABLE } else { 0 };
    }
    entry.submit(Wake::Later { time_boot_ns }.flags());
    Some(())
}

/// Where the command line starts in user memory, and how long it is.
#[inline(always)]
fn arguments<P: Place>(task: P) -> Option<(u64, u64)> {
    let mm = task.pointer(offset!(task_mm))?;
    let (start, end) = (mm.u64(offset!(mm_arg_start))?, mm.u64(offset!(mm_arg_end))?);
    Some((start, end.checked_sub(start)?))
}
