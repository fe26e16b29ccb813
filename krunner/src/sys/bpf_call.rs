//! A harmless bpf(2) call that tests whether the kernel allows us to use BPF.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// The command `BPF_MAP_CREATE` (include/uapi/linux/bpf.h).
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

/// Creates the smallest ring buffer and closes it: the first step of every use of our BPF programs.
///
/// Listing program ids would need `CAP_SYS_ADMIN`, and newer kernels reject an unknown command before they check
/// permissions, so neither is a usable test.
///
/// # Errors
/// The kernel's error: `ENOSYS` without bpf(2), `EINVAL` without ring buffers (before 5.8), `EPERM` from the
///   kernel or a seccomp filter if permission is missing, and before 5.11 also if `RLIMIT_MEMLOCK` is too low.
pub(crate) fn try_bpf() -> io::Result<()> {
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
    // SAFETY: the call returned a new descriptor, which no other code owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_with_the_right_is_answered() {
        if super::super::privilege::effective().unwrap().contains(super::super::Capability::CAP_BPF) {
            try_bpf().unwrap();
        } else {
            eprintln!("SKIPPED: needs CAP_BPF");
        }
    }
}
