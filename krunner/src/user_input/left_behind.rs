//! Which programs at the socket were left behind by an earlier step.
//!
//! Such a program is an orphan that the runner adopted, or a descendant of one, and the orphan is older than the running step.
//! What the runner started itself is still in use: the step's own program, a kernel, a shell, a service.

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getpid};
use procfs::process::Process;
use tokio::net::UnixStream;

/// Whether the runner started this process.
pub(crate) type IsOwnChild = Box<dyn Fn(Pid) -> bool + Send + Sync>;

/// Process trees are rarely deeper. Beyond, a program counts as one of the running step.
const MAX_ANCESTORS: usize = 64;

/// Clock ticks since boot, as `/proc` has start times.
pub(super) fn now() -> Option<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let hertz = procfs::ticks_per_second();
    let (seconds, nanos) = (u64::try_from(now.tv_sec()).ok()?, u64::try_from(now.tv_nsec()).ok()?);
    Some(seconds * hertz + nanos * hertz / 1_000_000_000)
}

/// When the adopted orphan started that the peer is or descends from; `None` if there is none or `/proc` does not tell.
pub(super) fn orphan_start(stream: &UnixStream, is_own_child: &IsOwnChild) -> Option<u64> {
    let runner = getpid().as_raw();
    let mut pid = stream.peer_cred().ok()?.pid()?;
    for _ in 0..MAX_ANCESTORS {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        if stat.ppid == runner {
            return (!is_own_child(Pid::from_raw(pid))).then_some(stat.starttime);
        }
        pid = stat.ppid;
    }
    None
}
