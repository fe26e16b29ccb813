//! Collecting children that have ended.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::unistd::Pid;

/// Collects one child that has ended, whichever; `None` when there is none at the moment.
///
/// Not nix's `waitpid`, which collects a child killed by a real-time signal and then fails, because its
/// `Signal` has no name for that.
#[must_use]
pub fn reap_any() -> Option<(Pid, ExitStatus)> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one int, to the int that `status` is.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid > 0 {
            return Some((Pid::from_raw(pid), ExitStatus::from_raw(status)));
        }
        if pid == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}
