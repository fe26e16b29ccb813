//! Explains why a step, a kernel or a service was killed, from the monitor and from full file systems.

use std::fs;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::monitor::{SigkillCause, SigkillCauses, SigkillOf, boot_ns, tmpfs_mounts};
use crate::process::{ExitExplainer, ExitReason, UnexplainedExit};
use crate::tasks::blocking;

/// A process may receive its signal a moment before we record its start.
const SLACK: Duration = Duration::from_millis(20);

/// Timeout for checking file systems. A tmpfs answers at once.
const LOOK_DEADLINE: Duration = Duration::from_millis(500);

/// A tmpfs with less than one page left is full.
const FULL_BYTES: u64 = 4096;

/// Gets the reasons from the monitor.
pub(super) struct MonitorExplainer {
    /// `None` if the monitor could not be started.
    pub(super) causes: Option<SigkillCauses>,
}

#[async_trait]
impl ExitExplainer for MonitorExplainer {
    async fn explain(&self, pid: Pid, end: UnexplainedExit, ran_for: Duration) -> Option<ExitReason> {
        if end == UnexplainedExit::Sigbus {
            let text = timeout(LOOK_DEADLINE, blocking(full_tmpfs)).await.ok()??;
            return Some(ExitReason { text, is_reported: false });
        }
        let ran_ns = u64::try_from((ran_for + SLACK).as_nanos()).unwrap_or(u64::MAX);
        let pid = pid.as_raw().unsigned_abs();
        let whose = match end {
            UnexplainedExit::ShellSigkill => SigkillOf::Below { pid },
            _ => SigkillOf::Process { pid, since_boot_ns: boot_ns().saturating_sub(ran_ns) },
        };
        let cause = self.causes.as_ref()?.find(whose).await?;
        reason(&cause, end)
    }
}

fn reason(cause: &SigkillCause, end: UnexplainedExit) -> Option<ExitReason> {
    let is_reported = matches!(cause, SigkillCause::Oom { .. });
    match (end, cause) {
        // A program may exit with code 137 by itself.
        (UnexplainedExit::ShellSigkill, SigkillCause::Unknown | SigkillCause::MaybeOom) => None,
        (UnexplainedExit::ShellSigkill, SigkillCause::NotOom) => Some(ExitReason {
            text: "exit code 137: a shell reporting SIGKILL; not the OOM killer: its kill counter did not change"
                .to_owned(),
            is_reported,
        }),
        (_, cause) => Some(ExitReason { text: cause.to_string(), is_reported }),
    }
}

/// The tmpfs mounts that are full. A write to a mapped file there gets no page, and the kernel sends SIGBUS
/// (`shmem_fault`, `mm/shmem.c`).
fn full_tmpfs() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let full: Vec<String> = tmpfs_mounts(&mounts).into_iter().filter(|path| is_full(path)).collect();
    (!full.is_empty()).then(|| format!("SIGBUS: the tmpfs at {} is full", full.join(" and at ")))
}

fn is_full(path: &str) -> bool {
    statvfs(path).is_ok_and(|about| about.blocks() > 0 && about.blocks_available() * about.fragment_size() < FULL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reported_kill_is_marked_as_such() {
        let oom = SigkillCause::Oom { victim: "7 (hog, rss 9m)".to_owned() };
        let told = reason(&oom, UnexplainedExit::ShellSigkill).unwrap();
        assert_eq!((told.text.as_str(), told.is_reported), ("OOM kill of 7 (hog, rss 9m)", true));
    }

    #[test]
    fn exit_code_137_alone_proves_no_kill() {
        assert_eq!(reason(&SigkillCause::Unknown, UnexplainedExit::ShellSigkill), None);
        assert!(reason(&SigkillCause::Unknown, UnexplainedExit::Sigkill).is_some());
        let told = reason(&SigkillCause::NotOom, UnexplainedExit::ShellSigkill).unwrap();
        assert!(told.text.contains("not the OOM killer"), "{}", told.text);
    }
}
