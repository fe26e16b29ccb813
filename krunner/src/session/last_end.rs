//! Writes `last-end.json` in the user's `.logs` folder: how the last session ended. The I/O may hang, so call it on a
//! blocking thread.
//!
//! The file is replaced atomically. As with `oom.jsonl`, symbolic links are not followed, and nothing is written if the
//! folder does not exist.

use std::io::{self, Write as _};
use std::path::Path;

use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;

use crate::user_folder::UserFolder;

pub(super) const FILE: &str = "last-end.json";

/// Replaces the file.
pub(super) fn write(folder: &Path, end: &impl Serialize) -> io::Result<()> {
    replace(folder, &(serde_json::to_string(end)? + "\n"))
}

fn replace(folder: &Path, text: &str) -> io::Result<()> {
    let folder = match UserFolder::in_home(folder) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // A unique name, because sessions may share the folder.
    let draft = format!("{FILE}.new-{}", uuid::Uuid::new_v4().simple());
    let written = write_new(&folder, &draft, text).and_then(|()| Ok(renameat(&folder, draft.as_str(), &folder, FILE)?));
    if written.is_err() {
        // The first error matters, not this one.
        let _ = unlinkat(&folder, draft.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    written
}

fn write_new(folder: &UserFolder, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    folder.open(Path::new(name), flags, Mode::S_IRUSR | Mode::S_IWUSR)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn file_is_replaced_as_a_whole_for_the_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        replace(folder.path(), "a long first one").unwrap();
        replace(folder.path(), "second").unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn link_is_replaced_and_not_followed_and_no_folder_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "mine").unwrap();
        symlink(&elsewhere, folder.path().join(FILE)).unwrap();
        replace(folder.path(), "new").unwrap();
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "mine");
        replace(&folder.path().join("missing"), "new").unwrap();
    }

    #[test]
    fn what_cannot_be_replaced_leaves_no_draft() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        assert!(replace(folder.path(), "new").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
