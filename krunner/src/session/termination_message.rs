//! Kubernetes' termination message: a file that the kubelet mounts into a container and shows after the container
//! exits. Does blocking I/O.
//!
//! The kubelet creates a regular file and reads at most 4096 bytes of it (`terminationMessagePath`;
//! `MaxContainerTerminationMessageLength`, pkg/kubelet/container). Without Kubernetes the file does not exist and is
//! not created.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::monitor::{OomReport, OwnCharge, utc};
use crate::tasks::{TaskGroup, blocking};

/// The kubelet truncates longer messages.
const MAX_BYTES: usize = 4096;

/// Writes reports to the termination message.
pub(super) struct TerminationMessage {
    pub(super) path: PathBuf,
    pub(super) tasks: TaskGroup,
}

impl TerminationMessage {
    /// Writes the first lines of the report. The container may exit long after the kill, so the text starts with the
    /// time of the kill.
    pub(super) fn write(&self, report: &OomReport, charge: Option<Arc<OwnCharge>>) {
        let (path, text) = (self.path.clone(), format!("(at {}) {report}\n", utc(report.time)));
        self.tasks.spawn("termination message", async move {
            // Opening a file right after a kill may cause the next one.
            if let Some(charge) = charge {
                charge.room().await;
            }
            let shown = path.clone();
            if let Err(error) = blocking(move || write(&path, &text)).await {
                tracing::debug!("cannot write the termination message {}: {error}", shown.display());
            }
        });
    }
}

/// Replaces the content by the first lines of the text; `false` if the file does not exist.
fn write(path: &Path, text: &str) -> io::Result<bool> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = match open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.set_len(0)?;
    file.write_all(first_lines(text).as_bytes())?;
    Ok(true)
}

/// As many whole lines as fit; a first line that is too long is truncated.
fn first_lines(text: &str) -> &str {
    let start = &text[..text.floor_char_boundary(MAX_BYTES)];
    if start.len() == text.len() {
        return text;
    }
    start.rfind('\n').map_or(start, |end| &start[..=end])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn whole_lines_up_to_the_bound_replace_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(write(&path, &"0123456789 é\n".repeat(1000)).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() <= MAX_BYTES && text.len() > MAX_BYTES - 20 && text.ends_with('\n'), "{}", text.len());
        assert!(write(&path, "short").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "short");
        assert_eq!(first_lines(&"é".repeat(3000)).len(), MAX_BYTES);
    }

    #[test]
    fn nothing_is_made_and_only_a_regular_file_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        assert!(!write(&path, "text").unwrap() && !path.exists());
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(write(&path, "text").is_err());
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "mine").unwrap();
        symlink(&elsewhere, folder.path().join("link")).unwrap();
        assert!(write(&folder.path().join("link"), "text").is_err());
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "mine");
    }
}
