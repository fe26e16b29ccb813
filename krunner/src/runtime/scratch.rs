//! The temporary files of one `code` step: created next to the user's files and removed after the step.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tempfile::{Builder, TempPath};

use crate::remove_tree::ScratchFolder;
use crate::user_folder::UserFolder;

/// Prefix of the names, as of Python's temporary files.
const PREFIX: &str = "tmp";

/// Number of random characters after the prefix.
const RANDOM_BYTES: usize = 6;

/// Creates temporary files and removes them when it is dropped.
#[derive(Debug)]
pub(crate) struct ScratchFiles {
    directory: PathBuf,
    random_bytes: usize,
    files: Vec<TempPath>,
    folder: Option<ScratchFolder>,
}

impl ScratchFiles {
    /// For a step that runs in this directory.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), random_bytes: RANDOM_BYTES, files: Vec::new(), folder: None }
    }

    /// The same with fixed names, for display only.
    pub(crate) fn for_show(directory: impl Into<PathBuf>) -> Self {
        Self { random_bytes: 0, ..Self::new(directory) }
    }

    /// Writes the pieces to a file in the user's directory, where the code finds the user's files. The name ends in `suffix`;
    /// the path is relative to the directory.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub(crate) fn beside(&mut self, suffix: &str, pieces: &[&str]) -> io::Result<PathBuf> {
        let mut file = self.builder().suffix(suffix).tempfile_in(&self.directory)?;
        for piece in pieces {
            file.write_all(piece.as_bytes())?;
        }
        let path = self.relative(file.path());
        self.files.push(file.into_temp_path());
        Ok(path)
    }

    /// A directory with mode 0700 for compiled files; the path is relative to the directory.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(crate) fn folder(&mut self) -> io::Result<PathBuf> {
        if self.folder.is_none() {
            let only_ours = Permissions::from_mode(0o700);
            self.folder = Some(self.builder().permissions(only_ours).tempdir_in(&self.directory)?.into());
        }
        let path = self.folder.as_ref().map(|folder| folder.path().to_owned());
        path.map(|path| self.relative(&path)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Writes a file of this name into the folder.
    ///
    /// # Errors
    /// When it cannot be created or written.
    pub(crate) fn within(&mut self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.folder()?.join(name);
        let (flags, mode) = (OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, Mode::from_bits_truncate(0o666));
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        UserFolder::in_home(folder.path())?.open(Path::new(name), flags, mode)?.write_all(text.as_bytes())?;
        Ok(path)
    }

    fn builder(&self) -> Builder<'static, 'static> {
        let mut builder = Builder::new();
        builder.prefix(PREFIX).rand_bytes(self.random_bytes);
        builder
    }

    /// With a leading `./`, so that it is not mistaken for an option or looked up in `PATH`.
    fn relative(&self, path: &Path) -> PathBuf {
        Path::new(".").join(path.strip_prefix(&self.directory).unwrap_or(path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn all_is_gone_after_the_step() {
        let directory = tempfile::tempdir().unwrap();
        let mut scratch = ScratchFiles::new(directory.path());
        let source = scratch.beside(".php", &["<?php ", "echo 1;"]).unwrap();
        let program = scratch.within("main", "x").unwrap();
        assert_eq!(scratch.folder().unwrap(), program.parent().unwrap(), "one folder for all");
        assert!(source.starts_with("./") || source.is_relative(), "{}", source.display());
        assert_eq!(fs::read_to_string(directory.path().join(&source)).unwrap(), "<?php echo 1;");
        let folder = directory.path().join(scratch.folder().unwrap());
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        drop(scratch);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut scratch = ScratchFiles::new(directory.path().join("gone"));
        assert_eq!(scratch.beside(".c", &[""]).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(scratch.folder().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
