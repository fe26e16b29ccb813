//! The number of bytes in a kernel queue, and how long a TCP socket has been idle.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

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

/// Time since this TCP socket last received or sent data.
pub(crate) fn tcp_idle_time(fd: BorrowedFd<'_>) -> io::Result<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut bytes = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: `info` has room for `bytes` bytes, and the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut bytes)
    };
    Errno::result(result)?;
    // SAFETY: it consists of numbers, for which zeros are values as well.
    let info = unsafe { info.assume_init() };
    Ok(Duration::from_millis(info.tcpi_last_data_recv.min(info.tcpi_last_data_sent).into()))
}
