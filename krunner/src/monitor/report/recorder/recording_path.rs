//! The files of recordings: finds a free name and reads earlier recordings. The I/O may hang, so it runs in a thread of its own.
//!
//! The folder is the user's and often shared by several sessions on several machines. So a recording is locked (flock(2)) while its
//! process lives; the kernel releases the lock when the process dies. A locked file belongs to another session, and the next name
//! is tried. NFS forwards locks to the server. On a mount that does not, a recording of another boot that was written recently
//! counts as live.
//!
//! ```text
//!  recorder.bin ── locked ───────────────▶ not touched, the next name is tried
//!       ├── not a regular file, a link ──▶ not touched, logged, the next name is tried
//!       ├── with a goodbye ──────────────▶ removed; the name is free
//!       └── anything else ───────────────▶ renamed to recorder.bin.1, logged; the name is free
//! ```

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::cause::CurrentState;
use super::format::{Layout, NotARecording, Recording, encode_header};
use super::post_mortem::PostMortem;
use super::record::RecordingHeader;
use crate::user_folder::UserFolder;

/// Name of recordings in the `.logs` folder.
const SESSION_FILE: &str = "recorder.bin";

/// Maximum number of live sessions that share a folder; further ones are not recorded.
const SESSION_FILES: u32 = 16;

/// A live process writes every 5 s.
const FRESH_SECONDS: i64 = 20;

/// Where to record.
#[derive(Debug, Clone)]
pub(crate) struct RecordingPath {
    folder: PathBuf,
    name: String,
    names: u32,
    is_folder_optional: bool,
}

/// A file to record to, and the earlier recordings found.
pub(super) struct OpenedRecording {
    /// The lock is held while the file is open. Closing it cannot fail, where unlocking can (NFS, FUSE).
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Recordings that ended without a goodbye.
    pub(super) ended: Vec<PostMortem>,
    /// Files that are not used, and why.
    pub(super) problems: Vec<String>,
}

/// Why nothing is recorded.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordingPathError {
    #[error("cannot write {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    #[error("{} is in use or unusable{}", .0.display(), .1)]
    Taken(PathBuf, String),
    #[error("bug: the recording header is too large")]
    Header,
}

impl RecordingPath {
    /// In the folder of a session's logs. Nothing is recorded if there is none.
    #[must_use]
    pub(crate) fn of_session(logs: PathBuf) -> Self {
        Self { folder: logs, name: SESSION_FILE.to_owned(), names: SESSION_FILES, is_folder_optional: true }
    }

    /// This file; `None` if the path has no file name.
    #[must_use]
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_owned();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(Self { folder: folder.to_owned(), name, names: 1, is_folder_optional: false })
    }

    /// All possible files, including those of ended processes.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let names = (0..self.names).map(|number| self.name(number));
        names.flat_map(|name| [old(&name), name]).map(|name| self.folder.join(name))
    }

    /// Creates a file and reads earlier recordings. `None` if an optional folder does not exist.
    pub(super) fn open(
        &self,
        header: &RecordingHeader,
        now: &CurrentState,
    ) -> Result<Option<OpenedRecording>, RecordingPathError> {
        // An optional folder is the session's; any other is an argument of the command.
        let open = if self.is_folder_optional { UserFolder::in_home } else { UserFolder::home };
        let folder = match open(&self.folder) {
            Ok(folder) => folder,
            Err(error) if self.is_folder_optional && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordingPathError::Io(self.folder.clone(), error)),
        };
        let draft = format!("{}.new-{:016x}", self.name, header.nonce);
        let opened = self.open_in(&folder, &draft, header, now);
        // The draft has its final name by now, or is useless.
        let _ = unlinkat(&folder, draft.as_str(), UnlinkatFlags::NoRemoveDir);
        opened.map(Some)
    }

    fn open_in(
        &self,
        folder: &UserFolder,
        draft: &str,
        header: &RecordingHeader,
        now: &CurrentState,
    ) -> Result<OpenedRecording, RecordingPathError> {
        let header_bytes = encode_header(header).ok_or(RecordingPathError::Header)?;
        let failed = |error| RecordingPathError::Io(self.folder.join(draft), error);
        let file = write_draft(folder, draft, &header_bytes).map_err(failed)?;
        let made_at = file.metadata().map_err(failed)?.mtime();
        file.try_lock().map_err(|error| failed(error.into()))?;
        let mut problems = Vec::new();
        let mut ended = Vec::new();
        let mut path = None;
        for number in 0..self.names {
            let name = self.name(number);
            match self.make_free(folder, &name, made_at, now) {
                Ok(NameState::Free(post_mortem)) => ended.extend(post_mortem.map(|boxed| *boxed)),
                Ok(NameState::Foreign(what)) => problems.push(format!("{name}: {what}; kept as {}", old(&name))),
                Ok(NameState::Taken) => continue,
                Err(problem) => {
                    problems.push(format!("not using {name}: {problem}"));
                    continue;
                }
            }
            if path.is_none() && publish_draft(folder, draft, &name).map_err(failed)? {
                path = Some(self.folder.join(name));
            }
        }
        let why = || problems.first().map(|problem| format!(": {problem}")).unwrap_or_default();
        let path = path.ok_or_else(|| RecordingPathError::Taken(self.folder.join(&self.name), why()))?;
        Ok(OpenedRecording { file, path, ended, problems })
    }

    fn name(&self, number: u32) -> String {
        match (number, self.name.rsplit_once('.')) {
            (0, _) => self.name.clone(),
            (_, Some((stem, ending))) => format!("{stem}-{}.{ending}", number + 1),
            (_, None) => format!("{}-{}", self.name, number + 1),
        }
    }

    /// Frees the name.
    fn make_free(&self, folder: &UserFolder, name: &str, made_at: i64, now: &CurrentState) -> io::Result<NameState> {
        let Some((file, locked)) = open_recording(folder, name)? else { return Ok(NameState::Free(None)) };
        if matches!(locked, Err(TryLockError::WouldBlock)) {
            return Ok(NameState::Taken);
        }
        let recording = match read(&file)? {
            Ok(recording) => recording,
            Err(what) => {
                renameat(folder, name, folder, old(name).as_str())?;
                return Ok(NameState::Foreign(what));
            }
        };
        let post_mortem = PostMortem::of(self.folder.join(old(name)).display().to_string(), &recording, now);
        if !post_mortem.is_unexpected() {
            // The old name keeps the last recording that ended unexpectedly.
            unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?;
            return Ok(NameState::Free(None));
        }
        let is_fresh = made_at - file.metadata()?.mtime() < FRESH_SECONDS;
        if recording.header.boot_id != now.boot_id && is_fresh {
            return Ok(NameState::Taken);
        }
        renameat(folder, name, folder, old(name).as_str())?;
        Ok(NameState::Free(Some(Box::new(post_mortem))))
    }
}

/// Whether a name is free.
enum NameState {
    /// It is free, with the earlier recording if that ended without a goodbye.
    Free(Option<Box<PostMortem>>),
    /// It is free; the file there was not a recording.
    Foreign(NotARecording),
    Taken,
}

/// Reads a recording and whether its process lives.
///
/// # Errors
///
/// When it is not a regular file or cannot be read.
pub(super) fn read_file(path: &Path) -> io::Result<(Result<Recording, NotARecording>, bool)> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    require_regular(&file)?;
    let is_alive = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    Ok((read(&file)?, is_alive))
}

/// Opens and locks a recording, whose file may be on a file system without locks. `None` if it does not exist.
fn open_recording(folder: &UserFolder, name: &str) -> io::Result<Option<(File, Result<(), TryLockError>)>> {
    // NFS requires write access (flock(2)).
    let file = match folder.open(Path::new(name), OFlag::O_RDWR | OFlag::O_NOFOLLOW, Mode::empty()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let locked = file.try_lock();
    Ok(Some((file, locked)))
}

fn require_regular(file: &File) -> io::Result<()> {
    let is_regular = file.metadata()?.is_file();
    is_regular.then_some(()).ok_or_else(|| io::Error::other("not a regular file"))
}

/// Reads at most the size of a recording.
fn read(file: &File) -> io::Result<Result<Recording, NotARecording>> {
    let mut bytes = vec![0; Layout::STANDARD.bytes()];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Recording::read(&bytes[..length]))
}

/// Writes the whole file, zeros included: later writes need no further disk space, and its pages are charged while there is
/// enough memory.
fn write_draft(folder: &UserFolder, draft: &str, header: &[u8]) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let mut file = folder.open(Path::new(draft), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let zeros = [0; 16 * 1024];
    let mut left = Layout::STANDARD.bytes();
    while left > 0 {
        let part = left.min(zeros.len());
        file.write_all(&zeros[..part])?;
        left -= part;
    }
    file.write_all_at(header, 0)?;
    Ok(file)
}

/// Gives the draft its final name; `false` if the name was just taken. Unlike a rename, a link replaces nothing.
fn publish_draft(folder: &UserFolder, draft: &str, name: &str) -> io::Result<bool> {
    match linkat(folder, draft, folder, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(nix::Error::EEXIST) => Ok(false),
        // The file system has no hard links.
        Err(nix::Error::EPERM | nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => {
            renameat(folder, draft, folder, name)?;
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

/// Name of a recording after its process ended.
fn old(name: &str) -> String {
    format!("{name}.1")
}

#[cfg(test)]
#[path = "recording_path_tests.rs"]
mod tests;
