//! Finds and reaps exited children.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::unistd::Pid;

/// A child that exited and is not reaped yet, so `/proc` still shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitedChild {
    /// The pid of the child.
    pub pid: Pid,
    /// The signal that killed it, if any.
    pub signal: Option<i32>,
}

/// Returns any exited child, or `None` if there is none now. It stays a zombie until [`reap`].
///
/// nix's equivalents fail on a child killed by a real-time signal, which its `Signal` cannot represent.
#[must_use]
pub(crate) fn exited_child() -> Option<ExitedChild> {
    exited(libc::P_ALL, 0)
}

/// Returns the child with this pid if it has exited. It stays a zombie until [`reap`].
#[must_use]
pub(crate) fn exited_child_with(pid: Pid) -> Option<ExitedChild> {
    exited(libc::P_PID, pid.as_raw().unsigned_abs())
}

fn exited(which: libc::idtype_t, id: libc::id_t) -> Option<ExitedChild> {
    // SAFETY: a siginfo_t is plain numbers and unions of them, for which 0 is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    until_done(|| {
        // SAFETY: waitid writes one siginfo_t, to the one that `info` is.
        unsafe { libc::waitid(which, id, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) }
    })?;
    // SAFETY: waitid has filled in the members for a child, or left all at 0 (waitid(2)).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let is_killed = matches!(info.si_code, libc::CLD_KILLED | libc::CLD_DUMPED);
    (pid > 0).then(|| ExitedChild { pid: Pid::from_raw(pid), signal: is_killed.then_some(status) })
}

/// Reaps an exited child; `None` if it was reaped already.
#[must_use]
pub(crate) fn reap(pid: Pid) -> Option<ExitStatus> {
    let mut status = 0;
    // SAFETY: waitpid writes one int, to the int that `status` is.
    let reaped = until_done(|| unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WNOHANG) })?;
    (reaped > 0).then(|| ExitStatus::from_raw(status))
}

/// Repeats a system call while signals interrupt it; `None` if it fails.
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
