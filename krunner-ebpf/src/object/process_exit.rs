//! `sched_process_exit`: records the exit of processes killed by SIGKILL.
//!
//! Fires for every thread, in the thread itself. The argument `group_dead` exists only since 6.16, so the program
//! checks the count of live threads; two threads that exit at the same time may both see 0.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Exit, Kind};

use super::address::KernelPointer;
use super::direct::Direct;
use super::globals::{direct_reads, offset};
use super::ring::{self, Wake};
use super::task;

/// The bits of a wait status that hold the signal.
const TERM_SIGNAL: u32 = 0x7F;
const SIGKILL: u32 = 9;

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn process_exit(_: RawTracePointContext) -> Option<()> {
    if direct_reads() { record(Direct::current()) } else { record(task::current()) }
}

#[inline(always)]
fn record<P: KernelPointer>(task: P) -> Option<()> {
    let signal = task.pointer(offset!(task_signal))?;
    if signal.u32(offset!(signal_live))? != 0 {
        return None;
    }
    let exit_code = killed(task.u32(offset!(task_exit_code)))
        // A thread that was already exiting when its group was killed has its own code; wait(2) reports the group's.
        .or_else(|| killed(signal.u32(offset!(signal_group_exit_code))))?;
    let record = Exit {
        kind: Kind::Exit as u32,
        exit_code,
        // SAFETY: a helper without arguments.
        time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        task: task::describe(task)?,
    };
    ring::send(Kind::Exit, &record, Wake::Now);
    Some(())
}

#[inline(always)]
fn killed(exit_code: Option<u32>) -> Option<u32> {
    exit_code.filter(|code| code & TERM_SIGNAL == SIGKILL)
}
