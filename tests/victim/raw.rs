//! The only `unsafe` of the victims: three system calls that no safe crate offers.

use nix::sched::{CloneFlags, clone};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pause};

/// Enough for a function that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// Starts a process that shares all our memory and only sleeps: another process, not a thread.
pub(crate) fn share_memory() -> Pid {
    // The stack lives as long as the process, which nobody waits for.
    let stack = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    let sleep = Box::new(|| -> isize {
        loop {
            pause();
        }
    });
    // SAFETY: the child runs on a stack of its own that is never freed, touches no memory that we use, takes no lock
    // and never returns.
    unsafe { clone(sleep, stack, CloneFlags::CLONE_VM, Some(Signal::SIGCHLD as i32)) }.expect("clone")
}

/// Ends the calling thread only, even the first one; its process goes on with the others.
pub(crate) fn end_thread() -> ! {
    // SAFETY: nothing on this thread's stack is used by another one, and nothing of it needs to be dropped.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("a thread that has ended goes on");
}

/// Lets bpf(2) fail with EPERM from now on, in this process and all that come of it.
pub(crate) fn forbid_bpf() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let number = u32::try_from(libc::SYS_bpf).expect("a small number");
    let mut filter = [
        // The number of the call is the first member of struct seccomp_data (seccomp(2)).
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both structs live until the call returns, `len` is the number of statements; the kernel copies them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(done, 0, "seccomp: {}", std::io::Error::last_os_error());
}
