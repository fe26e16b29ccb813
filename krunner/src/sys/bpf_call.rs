//! One harmless bpf(2) call: does the kernel answer us at all.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// `BPF_MAP_CREATE` (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;

/// `BPF_MAP_TYPE_RINGBUF`, since Linux 5.8.
const RING_BUFFER: u32 = 27;

/// The first members of `union bpf_attr` for that command. The kernel takes the rest as zeros.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// Makes the smallest ring buffer and closes it again: what every use of our BPF programs begins with.
///
/// Not a question for program ids, which wants `CAP_SYS_ADMIN`, nor a command that does not exist, which newer
/// kernels refuse as such whatever the caller may do.
///
/// # Errors
/// As the kernel says it: `ENOSYS` without bpf(2), `EINVAL` without ring buffers (before 5.8), `EPERM` from the
/// kernel or a seccomp filter for want of rights, before 5.11 also for want of `RLIMIT_MEMLOCK`.
pub fn try_bpf() -> io::Result<()> {
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
    let entries = u32::try_from(page_bytes).map_err(io::Error::other)?;
    let request = MapCreate { map_type: RING_BUFFER, key_bytes: 0, value_bytes: 0, entries, flags: 0 };
    let pointer = (&raw const request).cast::<libc::c_void>();
    // SAFETY: the kernel reads as many bytes as `request` has, and keeps no pointer to it.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, pointer, size_of::<MapCreate>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the call returned a new descriptor, which nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_with_the_right_is_answered() {
        if super::super::effective().unwrap().contains(super::super::Capability::CAP_BPF) {
            try_bpf().unwrap();
        } else {
            eprintln!("SKIPPED: needs CAP_BPF");
        }
    }
}
