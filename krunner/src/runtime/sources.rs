//! Finding source files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The files with this extension in `directory` and its subfolders, relative to it and sorted.
///
/// Links to directories are not followed, so loops are harmless. A directory that cannot be read is logged and skipped.
pub(super) fn below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(directory.join(&folder)) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!("cannot look for sources in {}: {error}", directory.join(&folder).display());
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == extension) && directory.join(&path).is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The files of `directory` itself whose names end in `suffix` and not in `except`, relative to it and sorted.
pub(super) fn here(directory: &Path, suffix: &str, except: &str) -> Vec<PathBuf> {
    let wanted = |name: &OsString| {
        let name = name.as_encoded_bytes();
        name.ends_with(suffix.as_bytes()) && !name.ends_with(except.as_bytes())
    };
    let names = directory.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<PathBuf> =
        names.filter(wanted).map(PathBuf::from).filter(|path| directory.join(path).is_file()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn loops_of_links_and_folders_with_the_extension_are_harmless() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/dir.c")).unwrap();
        fs::write(folder.path().join("a/x.c"), "").unwrap();
        symlink("..", folder.path().join("a/loop")).unwrap();
        symlink("x.c", folder.path().join("a/y.c")).unwrap();
        symlink("nowhere", folder.path().join("a/z.c")).unwrap();
        assert_eq!(below(folder.path(), "c"), [Path::new("a/x.c"), Path::new("a/y.c")]);
    }
}
