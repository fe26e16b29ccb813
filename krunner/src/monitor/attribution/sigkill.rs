//! Why a process got SIGKILL: the OOM killer, another process, the kernel for another reason. Pure.
//!
//! Exit code 137 looks the same in all of these cases. [`RecentKills`] remembers the last ones by process, so that whoever
//! waited for a child can be told the reason.

use std::collections::VecDeque;
use std::fmt;

use crate::monitor::event::{Actor, ProcessKey};

/// Kills that are remembered: far more than end between a death and the question about it.
const MAX_REMEMBERED: usize = 256;

/// Whose SIGKILL is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigkillOf {
    /// This process, which started at that time at the earliest, in nanoseconds since boot.
    Process {
        /// Its id.
        pid: u32,
        /// Others had its id before.
        since_boot_ns: u64,
    },
    /// One that it started, just before it ended itself: what a shell reports.
    Below {
        /// Whose.
        pid: u32,
    },
}

/// Why a process got SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SigkillCause {
    /// An OOM kill, which was reported.
    Oom {
        /// Who was killed, in words: `37 (python3, rss 258m)`.
        victim: String,
    },
    /// A process sent it.
    Sent {
        /// To whom.
        victim: Actor,
        /// By whom; `None` if that one cannot be seen from this PID namespace.
        by: Option<Actor>,
    },
    /// The first process of its PID namespace was killed for memory, and the kernel ended all others in it.
    OomOfInit {
        /// That first process.
        init: Actor,
    },
    /// The kernel sent it, and not because of memory.
    Kernel,
    /// There is no tracer, and the counter of OOM kills did not move.
    NotOom,
    /// There is no tracer, and OOM kills were counted about that time.
    MaybeOom,
    /// Neither a tracer nor a counter saw it.
    Unknown,
}

impl fmt::Display for SigkillCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oom { victim } => write!(f, "OOM kill of {victim}"),
            Self::Sent { victim, by: Some(by) } => write!(
                f,
                "SIGKILL from PID {} ({}) to PID {} ({}), not the OOM killer",
                by.pid,
                by.name.escape_debug(),
                victim.pid,
                victim.name.escape_debug()
            ),
            Self::Sent { victim, by: None } => write!(
                f,
                "SIGKILL from outside this container to PID {} ({}), not the OOM killer",
                victim.pid,
                victim.name.escape_debug()
            ),
            Self::OomOfInit { init } => write!(
                f,
                "SIGKILL from the kernel: died with PID {} ({}), the first of its PID namespace, which the OOM killer killed",
                init.pid,
                init.name.escape_debug()
            ),
            Self::Kernel => f.write_str(
                "SIGKILL from the kernel, not the OOM killer (a hard CPU time limit, or the end of a PID namespace)",
            ),
            Self::NotOom => f.write_str("SIGKILL, not the OOM killer: its counter did not move"),
            Self::MaybeOom => f.write_str("SIGKILL, perhaps the OOM killer: its counter moved about that time"),
            Self::Unknown => {
                f.write_str("SIGKILL from an unknown sender: neither eBPF nor the OOM kill counter is available")
            }
        }
    }
}

/// A process that got SIGKILL.
#[derive(Debug)]
struct Killed {
    process: ProcessKey,
    at_boot_ns: u64,
    cause: SigkillCause,
}

/// The last ones.
#[derive(Debug, Default)]
pub(in crate::monitor) struct RecentKills(VecDeque<Killed>);

impl RecentKills {
    /// Remembers one.
    pub(in crate::monitor) fn add(&mut self, process: ProcessKey, at_boot_ns: u64, cause: SigkillCause) {
        if self.0.len() == MAX_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Killed { process, at_boot_ns, cause });
    }

    /// The last one since that time for which it holds.
    #[must_use]
    pub(in crate::monitor) fn find(
        &self,
        since_boot_ns: u64,
        is_it: impl Fn(ProcessKey) -> bool,
    ) -> Option<&SigkillCause> {
        let mut recent = self.0.iter().rev().filter(|killed| killed.at_boot_ns >= since_boot_ns);
        recent.find(|killed| is_it(killed.process)).map(|killed| &killed.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_ticks: 1 }
    }

    fn sent(pid: u32) -> SigkillCause {
        let actor = |pid, name: &str| Actor { pid, name: name.into() };
        SigkillCause::Sent { victim: actor(pid, "sleep"), by: Some(actor(33, "timeout")) }
    }

    #[test]
    fn the_last_one_that_fits_is_found() {
        let mut recent = RecentKills::default();
        recent.add(key(7), 100, sent(7));
        recent.add(key(7), 200, SigkillCause::Kernel);
        recent.add(key(8), 300, sent(8));
        let find = |pid, since| recent.find(since, |process| process.pid == pid);
        assert_eq!(find(7, 0), Some(&SigkillCause::Kernel));
        assert_eq!(find(7, 201), None, "too old");
        assert_eq!(find(9, 0), None);
    }

    #[test]
    fn sender_is_named() {
        assert_eq!(sent(7).to_string(), "SIGKILL from PID 33 (timeout) to PID 7 (sleep), not the OOM killer");
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent = RecentKills::default();
        (0..1000).for_each(|pid| recent.add(key(pid), 1, SigkillCause::Kernel));
        assert_eq!(recent.0.len(), MAX_REMEMBERED);
    }
}
