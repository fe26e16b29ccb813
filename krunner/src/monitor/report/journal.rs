//! The journal of OOM kills: a file with one JSON object per line, such as `oom.jsonl` in the user's `.logs` folder.
//!
//! The folder may belong to the user and be on a network mount that hangs. It is accessed only from a thread that may block, only
//! while there is something to write, and its contents are not trusted. A journal that reaches [`MAX_BYTES`] is renamed to
//! `FILE.1`, which replaces the previous one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use tokio::sync::mpsc;

use crate::monitor::sources::cgroup::charge::OwnCharge;
use crate::tasks::{TaskGroup, blocking};
use crate::user_folder::UserFolder;

/// Lines that may wait for the disk: one for each of the containers that `krunner node` serves. A session's burst of kills is
/// rate-limited long before. Further lines are dropped and the loss is logged.
const QUEUED_LINES: usize = 1024;

/// A journal of this size is renamed before the next line. It has several thousand reports.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

const SESSION_FILE: &str = "oom.jsonl";

/// Logs a problem with the journal.
pub(crate) type LogProblem = fn(&str);

/// A handle that queues lines for the journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    lines: mpsc::Sender<String>,
    log_problem: LogProblem,
    is_dropping: Arc<AtomicBool>,
}

/// Location of a journal.
#[derive(Debug, Clone)]
pub(crate) struct JournalPath {
    folder: PathBuf,
    name: OsString,
    open_folder: fn(&Path) -> io::Result<UserFolder>,
}

impl JournalPath {
    /// `oom.jsonl` in this folder, if the folder exists when there is something to write.
    #[must_use]
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder, name: SESSION_FILE.into(), open_folder: UserFolder::in_home }
    }

    /// A file given by the user, created if it is missing. Symbolic links to its folder are resolved now.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn of_file(file: &Path) -> io::Result<Self> {
        let name = file.file_name().ok_or_else(|| io::Error::other("not a file name"))?.to_owned();
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = Self { folder: parent.canonicalize()?, name, open_folder: UserFolder::of_operator };
        file.open(&file.folder()?)?;
        Ok(file)
    }

    fn folder(&self) -> io::Result<UserFolder> {
        (self.open_folder)(&self.folder).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other("the folder does not exist"),
            _ => error,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn open(&self, folder: &UserFolder) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW;
        folder.open(Path::new(&self.name), flags, Mode::S_IRUSR | Mode::S_IWUSR)
    }
}

impl Journal {
    /// Writes lines until all senders are dropped. `charge`: opening a file right after a kill may cause the next one, so the
    /// cgroup must have free memory first.
    pub(crate) fn start(
        file: JournalPath,
        charge: Option<Arc<OwnCharge>>,
        log_problem: LogProblem,
        tasks: &TaskGroup,
    ) -> Self {
        let (lines, mut queued) = mpsc::channel(QUEUED_LINES);
        tasks.spawn("oom journal", async move {
            let mut lines = Vec::new();
            let mut is_failing = false;
            while queued.recv_many(&mut lines, QUEUED_LINES).await > 0 {
                let (to, text): (_, String) = (file.clone(), lines.concat());
                lines.clear();
                if let Some(charge) = &charge {
                    charge.room().await;
                }
                let written = blocking(move || append(&to, &text, MAX_BYTES)).await;
                // Logged once, until a line can be written again.
                if let (Err(error), false) = (&written, is_failing) {
                    log_problem(&format!("cannot write OOM reports to {}: {error}", file.path().display()));
                }
                is_failing = written.is_err();
            }
        });
        Self { lines, log_problem, is_dropping: Arc::default() }
    }

    /// Queues a line.
    pub(crate) fn add(&self, line: String) {
        let is_dropped = self.lines.try_send(line + "\n").is_err();
        if is_dropped && !self.is_dropping.swap(true, Ordering::Relaxed) {
            (self.log_problem)("OOM reports dropped from the journal: the disk is too slow");
        } else if !is_dropped {
            self.is_dropping.store(false, Ordering::Relaxed);
        }
    }
}

fn append(journal: &JournalPath, text: &str, max_bytes: u64) -> io::Result<()> {
    let folder = journal.folder()?;
    let mut file = journal.open(&folder)?;
    let mut length = file.metadata()?.len();
    if length >= max_bytes {
        let mut older = journal.name.clone();
        older.push(".1");
        renameat(&folder, journal.name.as_os_str(), &folder, older.as_os_str())?;
        file = journal.open(&folder)?;
        length = 0;
    }
    // A truncated line, after the disk was full, must not corrupt the next one.
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    file.write_all(text.as_bytes())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
