//! The number of bytes in a kernel queue.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);
// SIOCOUTQ has the number of TIOCOUTQ (include/uapi/linux/sockios.h).
nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, libc::c_int);

/// Bytes that can be read from this pipe or socket now.
pub(crate) fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, to the int that `bytes` is.
    unsafe { fionread(fd.as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Bytes written to this TCP socket that its peer's kernel has not acknowledged.
pub(crate) fn unsent_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ writes one int, to the int that `bytes` is.
    unsafe { siocoutq(fd.as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
