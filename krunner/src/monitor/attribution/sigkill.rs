//! Why a process received SIGKILL: from the OOM killer, from another process, or from the kernel for another reason. Pure.
//!
//! The exit code is 137 in all cases. [`RecentKills`] keeps the causes of the last kills for callers that reap the processes.

use std::collections::VecDeque;
use std::fmt;

use crate::monitor::model::event::{Actor, KillSender};
use crate::monitor::model::process::ProcessKey;

/// Kills to remember: far more than happen between an exit and the question about it.
const MAX_REMEMBERED: usize = 256;

/// Which SIGKILL a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SigkillOf {
    /// That of this process.
    Process {
        /// PID of the process.
        pid: u32,
        /// Earliest possible start, in nanoseconds since boot; the PID may have been used before.
        since_boot_ns: u64,
    },
    /// That of a descendant, just before the process itself exited. Shells report such kills.
    Below {
        /// PID of the ancestor.
        pid: u32,
    },
}

/// Why a process received SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SigkillCause {
    /// The OOM killer killed it. A report was emitted.
    Oom {
        /// Describes the victim: `37 (python3, rss 258m)`.
        victim: String,
    },
    /// Another process sent it.
    Sent {
        /// The process that was killed.
        victim: Actor,
        /// The process that sent the signal.
        by: KillSender,
    },
    /// The OOM killer killed the init process of its PID namespace, and the kernel killed all other processes there.
    OomOfInit {
        /// That init process.
        init: Actor,
    },
    /// The kernel sent it, and not for an OOM kill.
    Kernel,
    /// No tracer; the OOM kill counter did not change.
    NotOom,
    /// No tracer; the OOM kill counter rose at about that time.
    MaybeOom,
    /// Neither a tracer nor a counter was available.
    Unknown,
}

impl SigkillCause {
    /// Whether a user-space OOM killer sent it.
    pub(in crate::monitor) fn is_of_daemon(&self) -> bool {
        matches!(self, Self::Sent { by: KillSender::OomDaemon(_), .. })
    }
}

impl fmt::Display for SigkillCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oom { victim } => write!(f, "OOM kill of {victim}"),
            Self::Sent { victim, by: KillSender::Visible(by) } => write!(
                f,
                "SIGKILL from PID {} ({}) to PID {} ({}), not the OOM killer",
                by.pid,
                by.name.escape_debug(),
                victim.pid,
                victim.name.escape_debug()
            ),
            Self::Sent { victim, by: KillSender::OomDaemon(daemon) } => write!(
                f,
                "SIGKILL from {daemon}, a user-space OOM killer outside this container, to PID {} ({})",
                victim.pid,
                victim.name.escape_debug()
            ),
            Self::Sent { victim, by: KillSender::Outside } => write!(
                f,
                "SIGKILL from outside this container to PID {} ({}), not the OOM killer",
                victim.pid,
                victim.name.escape_debug()
            ),
            Self::OomOfInit { init } => write!(
                f,
                "SIGKILL from the kernel: the OOM killer killed PID {} ({}), the init process of its PID namespace",
                init.pid,
                init.name.escape_debug()
            ),
            Self::Kernel => f.write_str(
                "SIGKILL from the kernel, not the OOM killer (a hard CPU time limit, or the end of a PID namespace)",
            ),
            Self::NotOom => f.write_str("SIGKILL, not the OOM killer: the OOM kill counter did not change"),
            Self::MaybeOom => {
                f.write_str("SIGKILL, possibly the OOM killer: the OOM kill counter rose at about that time")
            }
            Self::Unknown => {
                f.write_str("SIGKILL from an unknown sender: neither eBPF nor the OOM kill counter is available")
            }
        }
    }
}

#[derive(Debug)]
struct Killed {
    process: ProcessKey,
    at_boot_ns: u64,
    cause: SigkillCause,
}

/// The last kills by process.
#[derive(Debug, Default)]
pub(in crate::monitor) struct RecentKills(VecDeque<Killed>);

impl RecentKills {
    pub(in crate::monitor) fn add(&mut self, process: ProcessKey, at_boot_ns: u64, cause: SigkillCause) {
        if self.0.len() == MAX_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Killed { process, at_boot_ns, cause });
    }

    /// The last kill since that time of a process that matches.
    #[must_use]
    pub(in crate::monitor) fn find(
        &self,
        since_boot_ns: u64,
        is_it: impl Fn(ProcessKey, &SigkillCause) -> bool,
    ) -> Option<&SigkillCause> {
        let mut recent = self.0.iter().rev().filter(|killed| killed.at_boot_ns >= since_boot_ns);
        recent.find(|killed| is_it(killed.process, &killed.cause)).map(|killed| &killed.cause)
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
        SigkillCause::Sent { victim: actor(pid, "sleep"), by: KillSender::Visible(actor(33, "timeout")) }
    }

    #[test]
    fn latest_match_is_found() {
        let mut recent = RecentKills::default();
        recent.add(key(7), 100, sent(7));
        recent.add(key(7), 200, SigkillCause::Kernel);
        recent.add(key(8), 300, sent(8));
        let find = |pid, since| recent.find(since, |process, _| process.pid == pid);
        assert_eq!(find(7, 0), Some(&SigkillCause::Kernel));
        assert_eq!(find(7, 201), None, "too old");
        assert_eq!(find(9, 0), None);
    }

    #[test]
    fn sender_is_named() {
        assert_eq!(sent(7).to_string(), "SIGKILL from PID 33 (timeout) to PID 7 (sleep), not the OOM killer");
        let by = KillSender::OomDaemon("earlyoom");
        let daemons = SigkillCause::Sent { victim: Actor { pid: 7, name: "sleep".into() }, by };
        let expected = "SIGKILL from earlyoom, a user-space OOM killer outside this container, to PID 7 (sleep)";
        assert_eq!(daemons.to_string(), expected);
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent = RecentKills::default();
        (0..1000).for_each(|pid| recent.add(key(pid), 1, SigkillCause::Kernel));
        assert_eq!(recent.0.len(), MAX_REMEMBERED);
    }
}
