//! Why a step, a kernel or a service was killed: the monitor's knowledge, and a look at full file systems.

use std::fs;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::monitor::{SigkillCause, SigkillCauses, SigkillOf, boot_ns};
use crate::process::{EndReason, ExplainEnd, PuzzlingEnd};
use crate::tasks::blocking;

/// A process may have got its signal a moment before we saw it start.
const SLACK: Duration = Duration::from_millis(20);

/// How long file systems are looked at. Those in memory answer at once.
const LOOK_DEADLINE: Duration = Duration::from_millis(500);

/// A tmpfs with less than this left is full: one page.
const FULL_BYTES: u64 = 4096;

/// Asks the monitor.
pub(super) struct EndReasons {
    /// None when it could not be started.
    pub(super) causes: Option<SigkillCauses>,
}

#[async_trait]
impl ExplainEnd for EndReasons {
    async fn explain(&self, pid: Pid, end: PuzzlingEnd, ran_for: Duration) -> Option<EndReason> {
        if end == PuzzlingEnd::Sigbus {
            let text = timeout(LOOK_DEADLINE, blocking(full_tmpfs)).await.ok()??;
            return Some(EndReason { text, is_reported: false });
        }
        let ran_ns = u64::try_from((ran_for + SLACK).as_nanos()).unwrap_or(u64::MAX);
        let pid = pid.as_raw().unsigned_abs();
        let whose = match end {
            PuzzlingEnd::ShellSigkill => SigkillOf::Below { pid },
            _ => SigkillOf::Process { pid, since_boot_ns: boot_ns().saturating_sub(ran_ns) },
        };
        let cause = self.causes.as_ref()?.find(whose).await?;
        reason(&cause, end)
    }
}

fn reason(cause: &SigkillCause, end: PuzzlingEnd) -> Option<EndReason> {
    let is_reported = matches!(cause, SigkillCause::Oom { .. });
    match (end, cause) {
        // A program may exit with any code it likes.
        (PuzzlingEnd::ShellSigkill, SigkillCause::Unknown | SigkillCause::MaybeOom) => None,
        (PuzzlingEnd::ShellSigkill, SigkillCause::NotOom) => Some(EndReason {
            text: "exit code 137 is a shell's word for SIGKILL; not the OOM killer: its counter did not move"
                .to_owned(),
            is_reported,
        }),
        (_, cause) => Some(EndReason { text: cause.to_string(), is_reported }),
    }
}

/// The tmpfs mounts that are full. A write to a mapped file there has no page, and the kernel sends SIGBUS
/// (`shmem_fault`, `mm/shmem.c`).
fn full_tmpfs() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let full: Vec<String> = tmpfs_mounts(&mounts).filter(|path| is_full(path)).map(str::to_owned).collect();
    (!full.is_empty()).then(|| format!("SIGBUS; the tmpfs at {} is full", full.join(" and at ")))
}

/// Mount points, as `mountinfo` has them (proc(5)).
fn tmpfs_mounts(mounts: &str) -> impl Iterator<Item = &str> {
    let tmpfs =
        mounts.lines().filter(|line| line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("tmpfs ")));
    tmpfs.filter_map(|line| line.split(' ').nth(4))
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
        let told = reason(&oom, PuzzlingEnd::ShellSigkill).unwrap();
        assert_eq!((told.text.as_str(), told.is_reported), ("OOM kill of 7 (hog, rss 9m)", true));
    }

    #[test]
    fn exit_code_137_alone_proves_no_kill() {
        assert_eq!(reason(&SigkillCause::Unknown, PuzzlingEnd::ShellSigkill), None);
        assert!(reason(&SigkillCause::Unknown, PuzzlingEnd::Sigkill).is_some());
        let told = reason(&SigkillCause::NotOom, PuzzlingEnd::ShellSigkill).unwrap();
        assert!(told.text.contains("not the OOM killer"), "{}", told.text);
    }

    #[test]
    fn only_tmpfs_mounts_are_looked_at() {
        let mounts = "22 1 0:21 / /dev/shm rw - tmpfs shm rw,size=65536k\n23 1 0:22 / /mnt rw - nfs4 server:/ rw\n\
                      24 1 0:23 / /run rw shared:1 - tmpfs tmpfs rw\n";
        assert_eq!(tmpfs_mounts(mounts).collect::<Vec<_>>(), ["/dev/shm", "/run"]);
    }
}
