//! The task log: a copy of the output in the user's `.logs` folder, if that exists.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::time::timeout;
use uuid::Uuid;

use super::spawn_limits::explain;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::tasks::blocking;
use crate::user_folder::UserFolder;
use crate::writer::Writer;

/// How long a step waits for its log to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// The variable with the session's kernel id.
const KERNEL_ID: &str = "BACKENDAI_KERNEL_ID";

/// Opens the task log for one step; a discarding writer if the folder does not exist.
///
/// The folder may be on a hung network mount: after [`OPEN_TIMEOUT`] the step runs without its log.
pub(super) async fn open(logs: Option<PathBuf>, env: &ChildEnv) -> Writer {
    let Some(logs) = logs else { return Writer::discard() };
    let kernel_id = env.get(OsStr::new(KERNEL_ID)).cloned();
    let folder = logs.clone();
    let opened = blocking(move || file(&folder, kernel_id.as_deref()));
    let Ok(opened) = timeout(OPEN_TIMEOUT, opened).await else {
        tracing::warn!("task log disabled for this step: {} did not open within {OPEN_TIMEOUT:?}", logs.display());
        return Writer::discard();
    };
    let started = match opened {
        Ok(None) => return Writer::discard(),
        Ok(Some((file, path))) => Writer::to_file(file, path.display().to_string())
            .map_err(|error| format!("cannot start a writer for the task log {}: {}", path.display(), explain(error))),
        Err(error) => Err(format!("task log disabled: {}", chain(&error))),
    };
    let problem = started.as_ref().err().cloned();
    if let Some(news) = PROBLEM.changed_to(problem) {
        tracing::warn!("{news}");
    }
    started.unwrap_or_else(|_| Writer::discard())
}

/// A problem stays until the user mends it, and steps are many: it is logged when it changes.
struct LastProblem(Mutex<Option<String>>);

static PROBLEM: LastProblem = LastProblem(Mutex::new(None));

impl LastProblem {
    /// The problem, if it is not the last one.
    fn changed_to(&self, problem: Option<String>) -> Option<String> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == problem {
            return None;
        }
        last.clone_from(&problem);
        problem
    }
}

/// Why there is no task log.
#[derive(Debug, thiserror::Error)]
enum TaskLogError {
    /// The session has no kernel id.
    #[error("{KERNEL_ID} is not set")]
    NoKernelId,
    /// The kernel id cannot be a part of a path.
    #[error("{KERNEL_ID} is {value:?}")]
    KernelId {
        /// The variable's value.
        value: String,
        /// What is invalid about it.
        #[source]
        source: uuid::Error,
    },
    /// The file cannot be created or opened.
    #[error("{}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
}

/// `None` if there is no folder for logs.
fn file(logs: &Path, kernel_id: Option<&OsStr>) -> Result<Option<(File, PathBuf)>, TaskLogError> {
    let failed = |path: &Path, source| TaskLogError::File { path: path.to_owned(), source };
    let folder = match UserFolder::in_home(logs) {
        Ok(folder) => folder,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(failed(logs, source)),
    };
    let value = kernel_id.ok_or(TaskLogError::NoKernelId)?.to_string_lossy().into_owned();
    let id = Uuid::parse_str(&value).map_err(|source| TaskLogError::KernelId { value, source })?;
    let (below, path) = (path(id), logs.join(path(id)));
    match append(&folder, &below) {
        Ok(file) => Ok(Some((file, path))),
        Err(source) => Err(failed(&path, source)),
    }
}

/// `task/AB/CD/REST.log`, where `ABCDREST` is the id in hex.
fn path(id: Uuid) -> PathBuf {
    let hex = id.simple().to_string();
    Path::new("task").join(&hex[..2]).join(&hex[2..4]).join(format!("{}.log", &hex[4..]))
}

fn append(logs: &UserFolder, path: &Path) -> io::Result<File> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW;
    let readable = Mode::from_bits_truncate(0o666);
    logs.make_folders(parent, 0o777)?.open(Path::new(name), flags, readable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_made_of_the_id() {
        let id = Uuid::parse_str("0123abcd-4567-89ab-cdef-0123456789ab").unwrap();
        assert_eq!(path(id), Path::new("task/01/23/abcd456789abcdef0123456789ab.log"));
    }

    #[test]
    fn only_a_regular_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let logs = UserFolder::home(folder.path()).unwrap();
        let (fifo, link, plain) =
            (folder.path().join("fifo"), folder.path().join("link"), folder.path().join("a/plain"));
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        assert!(append(&logs, Path::new("fifo")).is_err() && append(&logs, Path::new("link")).is_err());
        assert!(!plain.exists());
        append(&logs, Path::new("a/plain")).unwrap();
        assert!(plain.is_file());
    }

    #[test]
    fn problem_is_told_again_only_after_it_changed() {
        let last = LastProblem(Mutex::new(None));
        let told = |problem: Option<&str>| last.changed_to(problem.map(str::to_owned));
        assert_eq!(told(None), None);
        assert_eq!(told(Some("a")).as_deref(), Some("a"));
        assert_eq!(told(Some("a")), None);
        assert_eq!(told(Some("b")).as_deref(), Some("b"));
        assert_eq!(told(None), None);
        assert_eq!(told(Some("b")).as_deref(), Some("b"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |id: Option<&str>| chain(&file(Path::new("/proc"), id.map(OsStr::new)).unwrap_err());
        assert_eq!(error(None), "BACKENDAI_KERNEL_ID is not set");
        let invalid = error(Some("../../etc"));
        assert!(invalid.starts_with("BACKENDAI_KERNEL_ID is \"../../etc\": invalid character"), "{invalid}");
        let file = error(Some("0123abcd-4567-89ab-cdef-0123456789ab"));
        assert_eq!(file, "/proc/task/01/23/abcd456789abcdef0123456789ab.log: No such file or directory (os error 2)");
    }
}
