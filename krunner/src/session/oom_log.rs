//! The record of kills: `oom.jsonl` in the user's `.logs` folder, a JSON object a line.
//!
//! The folder is the user's, and may be on a network mount that hangs: it is only touched from a thread that
//! may block, only while there is something to write, and nothing in it is trusted to be what it should.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use tokio::sync::mpsc;

use crate::monitor::OwnCharge;
use crate::tasks::{TaskGroup, blocking};

/// Lines that wait for the disk; a kill storm is summed up long before. Further ones are dropped, and told.
const QUEUED_LINES: usize = 256;

/// The record is no archive: from this size on it is left as it is.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

const FILE: &str = "oom.jsonl";

/// Where lines go.
#[derive(Debug, Clone)]
pub(super) struct OomLog(mpsc::Sender<String>);

impl OomLog {
    /// A record in this folder, if it exists when there is something to write.
    pub(super) fn start(folder: PathBuf, charge: Option<Arc<OwnCharge>>, tasks: &TaskGroup) -> Self {
        let (lines, mut queued) = mpsc::channel(QUEUED_LINES);
        tasks.spawn("oom record", async move {
            let mut lines = Vec::new();
            while queued.recv_many(&mut lines, QUEUED_LINES).await > 0 {
                let (folder, text): (_, String) = (folder.clone(), lines.concat());
                lines.clear();
                // Opening a file right after a kill may be the next kill.
                if let Some(charge) = &charge {
                    charge.room().await;
                }
                if let Err(error) = blocking(move || append(&folder, &text)).await {
                    tracing::warn!("the record of kills was not written: {FILE}: {error}");
                }
            }
        });
        Self(lines)
    }

    /// Adds a line.
    pub(super) fn add(&self, line: String) {
        if self.0.try_send(line + "\n").is_err() {
            tracing::warn!("a line of {FILE} is dropped: the disk is too slow");
        }
    }
}

fn append(folder: &Path, text: &str) -> io::Result<()> {
    let Some(mut file) = open_record(folder)? else { return Ok(()) };
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if about.len() > MAX_BYTES {
        return Err(io::Error::other("it has grown too large; move it away"));
    }
    file.write_all(text.as_bytes())
}

/// `None` when there is no such folder. Follows no link, and no FIFO can hold us up.
fn open_record(folder: &Path) -> io::Result<Option<File>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder: OwnedFd = match open(folder, flags | OFlag::O_RDONLY, Mode::empty()) {
        Ok(folder) => folder,
        Err(nix::Error::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let record = openat(folder, FILE, flags | OFlag::O_CLOEXEC, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok(Some(record.into()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn lines_are_added_for_the_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), "1\n").unwrap();
        append(folder.path(), "2\n").unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn no_folder_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        append(&folder.path().join("missing"), "1\n").unwrap();
    }

    #[test]
    fn links_and_other_things_are_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "").unwrap();
        symlink(&elsewhere, folder.path().join(FILE)).unwrap();
        assert!(append(folder.path(), "1\n").is_err());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "");

        let other = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&other.path().join(FILE), Mode::S_IRWXU).unwrap();
        assert!(append(other.path(), "1\n").is_err(), "a FIFO without a reader");
    }
}
