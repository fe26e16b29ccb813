//! Collecting children that have ended.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::unistd::Pid;

/// A child that has ended and has not been collected yet: `/proc` still shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub pid: Pid,
    /// The signal that has ended it.
    pub signal: Option<i32>,
}

/// One child that has ended, whichever; `None` when there is none at the moment. It stays until [`reap`].
///
/// Neither this nor [`reap`] is nix's, which fail on a child killed by a real-time signal, because its `Signal` has no
/// name for that.
#[must_use]
pub fn ended_child() -> Option<Ended> {
    // SAFETY: a siginfo_t is plain numbers and unions of them, for which 0 is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    until_done(|| {
        // SAFETY: waitid writes one siginfo_t, to the one that `info` is.
        unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) }
    })?;
    // SAFETY: waitid has filled in the members for a child, or left all at 0 (waitid(2)).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let is_killed = matches!(info.si_code, libc::CLD_KILLED | libc::CLD_DUMPED);
    (pid > 0).then(|| Ended { pid: Pid::from_raw(pid), signal: is_killed.then_some(status) })
}

/// Collects a child that has ended; `None` when somebody else has.
#[must_use]
pub fn reap(pid: Pid) -> Option<ExitStatus> {
    let mut status = 0;
    // SAFETY: waitpid writes one int, to the int that `status` is.
    let reaped = until_done(|| unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WNOHANG) })?;
    (reaped > 0).then(|| ExitStatus::from_raw(status))
}

/// Makes a system call until no signal interrupts it; `None` when it fails otherwise.
fn until_done(mut call: impl FnMut() -> i32) -> Option<i32> {
    loop {
        let result = call();
        if result >= 0 {
            return Some(result);
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}
