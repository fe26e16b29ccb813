//! Writes one line about an OOM kill to the user's terminal. In ssh, ttyd or the `git` terminal the shell shows
//! "Killed" at best.
//!
//! The terminal is the controlling terminal of the victim or of its nearest ancestor that has one. It is written only
//! if it belongs to the user of that process, and that user is ours. The write never blocks.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, major, minor};
use nix::unistd::geteuid;

use crate::monitor::{OomReport, ProcRoot};

/// Pseudoterminals have these major numbers (Documentation/admin-guide/devices.txt); the kernel uses the first one.
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;

/// Writes the line if there is such a terminal.
pub(super) fn notify(report: &OomReport) {
    let root = ProcRoot::default();
    let people = std::iter::once(&report.victim.process).chain(&report.ancestors);
    let Some((device, pid)) = people.into_iter().find_map(|seen| {
        let device = root.terminal_of(seen.key())?;
        Some((device, seen.pid))
    }) else {
        return;
    };
    if let Err(error) = write(device, pid, &line(report)) {
        tracing::debug!("cannot report the OOM kill of {} on its terminal: {error}", report.victim.process.pid);
    }
}

fn line(report: &OomReport) -> String {
    let victim = &report.victim.process;
    let limit = report.limit().map(|limit| format!(", limit {limit}")).unwrap_or_default();
    let name = victim.name.escape_debug();
    format!("\r\nkrunner: OOM kill: PID {} ({name}, rss {}{limit})\r\n", victim.pid, victim.rss())
}

/// Writes to `device`, the controlling terminal of `pid`.
fn write(device: u64, pid: u32, line: &str) -> io::Result<()> {
    let path = path_of(device).ok_or_else(|| io::Error::other("not a pseudoterminal"))?;
    let owner = fs::metadata(format!("/proc/{pid}"))?.uid();
    let flags = OFlag::O_WRONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let terminal: OwnedFd = open(&path, flags, Mode::empty())?;
    let mut terminal = File::from(terminal);
    let about = terminal.metadata()?;
    let user = geteuid();
    let is_theirs = about.uid() == owner && (user.is_root() || owner == user.as_raw());
    if !(about.file_type().is_char_device() && about.rdev() == device && is_theirs) {
        return Err(io::Error::other(format!("{} belongs to another user or is another device", path.display())));
    }
    // A partial line is better than blocking.
    terminal.write(line.as_bytes()).map(|_| ())
}

fn path_of(device: u64) -> Option<PathBuf> {
    let (major, minor) = (major(device), minor(device));
    PTS_MAJORS.contains(&major).then(|| format!("/dev/pts/{}", ((major - PTS_MAJORS.start()) << 8) + minor).into())
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn only_pseudoterminals_have_a_path() {
        assert_eq!(path_of(makedev(136, 7)), Some("/dev/pts/7".into()));
        assert_eq!(path_of(makedev(136, 300)), Some("/dev/pts/300".into()));
        assert_eq!(path_of(makedev(5, 0)), None, "/dev/tty");
    }
}
