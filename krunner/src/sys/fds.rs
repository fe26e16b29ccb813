//! Keeps inherited file descriptors out of user code, and registers our own for polling.

use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Marks every descriptor from `first` on as close-on-exec, including inherited ones.
///
/// `CLOSE_RANGE_CLOEXEC` exists since Linux 5.11; on older kernels the open descriptors are listed.
///
/// # Errors
/// If `/proc/self/fd` is needed and cannot be read.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    let from = libc::c_uint::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed; only the close-on-exec flag is set.
    if unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, flags) } == 0 {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if fd >= first {
            // SAFETY: the descriptor is borrowed for one fcntl; one that was closed meanwhile (the
            // directory's own) yields EBADF, which is ignored.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
    Ok(())
}

/// Registers a non-blocking file with the async runtime.
///
/// # Errors
/// If the file does not support polling.
pub(crate) fn pollable(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File keeps its descriptor open, and the same one, until it is dropped; AsyncFd hands it out
    // as `&File` and `&mut File`, and no caller of this crate assigns to the latter.
    Ok(unsafe { AsyncFd::register(file) }?)
}
