//! The task log: a copy of the output in the user's `.logs` folder, if that exists.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::tasks::blocking;
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
    let opened = blocking(move || folder.is_dir().then(|| file(&folder, kernel_id.as_deref())));
    let Ok(opened) = timeout(OPEN_TIMEOUT, opened).await else {
        tracing::warn!("task log disabled for this step: {} did not open within {OPEN_TIMEOUT:?}", logs.display());
        return Writer::discard();
    };
    match opened {
        None => Writer::discard(),
        Some(Ok((file, path))) => Writer::to_file(file, path.display().to_string()).unwrap_or_else(|error| {
            tracing::warn!("cannot start a writer for the task log {}: {error}", path.display());
            Writer::discard()
        }),
        Some(Err(error)) => {
            tracing::warn!("task log disabled: {}", chain(&error));
            Writer::discard()
        }
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

fn file(logs: &Path, kernel_id: Option<&OsStr>) -> Result<(File, PathBuf), TaskLogError> {
    let value = kernel_id.ok_or(TaskLogError::NoKernelId)?.to_string_lossy().into_owned();
    let id = Uuid::parse_str(&value).map_err(|source| TaskLogError::KernelId { value, source })?;
    let path = path(logs, id);
    match append(&path) {
        Ok(file) => Ok((file, path)),
        Err(source) => Err(TaskLogError::File { path, source }),
    }
}

/// `task/AB/CD/REST.log`, where `ABCDREST` is the id in hex.
fn path(logs: &Path, id: Uuid) -> PathBuf {
    let hex = id.simple().to_string();
    logs.join("task").join(&hex[..2]).join(&hex[2..4]).join(format!("{}.log", &hex[4..]))
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Opening a FIFO for writing waits for a reader, unless it is non-blocking.
    let file = File::options().append(true).create(true).custom_flags(O_NONBLOCK | O_NOFOLLOW).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_made_of_the_id() {
        let id = Uuid::parse_str("0123abcd-4567-89ab-cdef-0123456789ab").unwrap();
        let expected = "/l/task/01/23/abcd456789abcdef0123456789ab.log";
        assert_eq!(path(Path::new("/l"), id), Path::new(expected));
    }

    #[test]
    fn only_a_regular_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, link, plain) =
            (folder.path().join("fifo"), folder.path().join("link"), folder.path().join("a/plain"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        assert!(append(&fifo).is_err() && append(&link).is_err());
        assert!(!plain.exists());
        append(&plain).unwrap();
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
