//! Pseudoterminals: session leadership and window size.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Makes the program lead its own session with its stdin as controlling terminal.
pub(crate) fn lead_session_on_stdin(command: &mut Command) {
    let lead = || {
        // SAFETY: setsid has no arguments and touches no memory of ours.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: TIOCSCTTY takes an int: 0, do not steal the terminal of another session (ioctl_tty(2)).
        if unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(lead) };
}

/// Sets the size of a terminal; its foreground processes get SIGWINCH if it changed.
///
/// # Errors
/// If the descriptor is not a terminal.
pub(crate) fn set_window_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, and `size` is one.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
