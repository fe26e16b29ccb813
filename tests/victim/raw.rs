//! The only `unsafe` of the victims: four system calls that no safe crate offers.

#![expect(unsafe_code, reason = "system calls that no safe crate offers")]

use nix::unistd::pause;

/// Enough for a function that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// Starts a process that shares all our memory and only sleeps: another process, not a thread.
///
/// nix's `clone` cannot do this: its child calls a closure on the stack of the parent, which keeps running.
pub(crate) fn share_memory() -> u32 {
    extern "C" fn sleep(_: *mut libc::c_void) -> libc::c_int {
        loop {
            pause();
        }
    }
    // Leaked: the stack must live as long as the process, which is never waited for.
    let stack = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    // The ABI wants 16 bytes of alignment.
    let end = stack.as_mut_ptr_range().end;
    let top = end.wrapping_sub(end.addr() % 16).cast();
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: `top` is the aligned end of a stack of its own that is never freed; the child
    // touches no memory that we use, takes no lock and never returns.
    let pid = unsafe { libc::clone(sleep, top, flags, std::ptr::null_mut()) };
    u32::try_from(pid).unwrap_or_else(|_| panic!("clone: {}", std::io::Error::last_os_error()))
}

/// Ends only the calling thread, even if it is the first one. Other threads keep running.
pub(crate) fn end_thread() -> ! {
    // SAFETY: nothing on this thread's stack is used by another one, and nothing of it needs to be dropped.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has exited");
}

/// Lets bpf(2) fail with EPERM from now on, in this process and its descendants.
pub(crate) fn forbid_bpf() {
    filter_calls(&[unless_equal(NUMBER, libc::SYS_bpf), refuse(libc::EPERM)].concat());
}

/// Lets `prctl(PR_GET_AUXV)` fail as before Linux 6.4, in this process and its descendants.
pub(crate) fn forbid_auxv() {
    let tests = [unless_equal(NUMBER, libc::SYS_prctl), unless_equal(FIRST_ARGUMENT, PR_GET_AUXV)];
    filter_calls(&[&tests.concat()[..], &refuse(libc::EINVAL)].concat());
}

/// Since Linux 6.4 (`linux/prctl.h`).
const PR_GET_AUXV: libc::c_long = 0x4155_5856;

/// Offsets of members of `struct seccomp_data` (seccomp(2)); of the argument, its lower half.
const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("a code"), jt: 0, jf: 0, k }
}

/// Allows the call unless this member is equal.
fn unless_equal(member: u32, value: libc::c_long) -> Vec<libc::sock_filter> {
    let value = u32::try_from(value).expect("a small number");
    vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, member),
        libc::sock_filter { jt: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value) },
        allow(),
    ]
}

fn allow() -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)
}

fn refuse(error: libc::c_int) -> Vec<libc::sock_filter> {
    let error = u32::try_from(error).expect("an error's number");
    vec![statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | error)]
}

fn filter_calls(filter: &[libc::sock_filter]) {
    let mut filter = filter.to_vec();
    let len = u16::try_from(filter.len()).expect("a short filter");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: both live until the call returns, `len` is the number of statements; the kernel copies them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(done, 0, "seccomp: {}", std::io::Error::last_os_error());
}

/// What is started from now on cannot have that capability, even if it is root's (capabilities(7)).
pub(crate) fn drop_capability(number: u64) {
    // SAFETY: plain numbers go in, and nothing is written.
    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    assert_eq!(done, 0, "capability {number}: {}", std::io::Error::last_os_error());
}
