//! Writes `last-end.json` in the user's `.logs` folder: how the last session ended. The I/O may hang, so call it on a
//! blocking thread.
//!
//! The file is replaced atomically. As with `oom.jsonl`, symbolic links are not followed, and nothing is written if the
//! folder does not exist.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::user_folder::{PRIVATE_FILE, UserFolder};

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
    folder.replace_link(Path::new(FILE), text.as_bytes(), PRIVATE_FILE)
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
