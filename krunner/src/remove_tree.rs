//! Removes a folder tree that a user made.
//!
//! `std::fs::remove_dir_all` calls itself for each level and keeps a descriptor open for each: a tree of ten thousand levels
//! overflows the stack of a thread, or meets the limit of open files. This one goes down and up again in a loop, with two
//! descriptors and sixteen bytes of memory for a level.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;
use tempfile::TempDir;

/// A temporary folder that the user's programs may fill. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct ScratchFolder(PathBuf);

impl From<TempDir> for ScratchFolder {
    fn from(folder: TempDir) -> Self {
        Self(folder.keep())
    }
}

impl ScratchFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// How often a folder is read again before it counts as one that cannot be emptied: some file systems skip entries of a
/// folder that changes while it is read, or show removed ones for a while.
const MAX_PASSES: usize = 100;

/// Removes a folder and everything in it. Follows no link, enters no mount.
///
/// # Errors
/// If an entry cannot be removed. The first such entry ends the removal.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    if is_removed(unlinkat(CWD, path, AtFlags::REMOVEDIR))? {
        return Ok(());
    }
    let mut folder = open(CWD, path)?;
    let mut parents = Vec::new();
    loop {
        if let Some(name) = clear(&folder)? {
            parents.push(identity(&folder)?);
            folder = open(&folder, &*name)?;
        } else if let Some(parent) = parents.pop() {
            folder = open(&folder, c"..")?;
            // A program that moves folders meanwhile must not lead us out of the tree.
            if identity(&folder)? != parent {
                return Err(io::Error::other("a folder in it was moved during the removal"));
            }
        } else {
            break;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Removes the entries of a folder up to the first folder that is not empty; returns its name.
fn clear(folder: &OwnedFd) -> io::Result<Option<CString>> {
    for _ in 0..MAX_PASSES {
        let mut is_empty = true;
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            is_empty = false;
            if !remove_entry(folder, name)? {
                return Ok(Some(name.to_owned()));
            }
        }
        if is_empty {
            return Ok(None);
        }
    }
    Err(Errno::NOTEMPTY.into())
}

/// Removes a file or an empty folder; `false` for a folder that is not empty.
fn remove_entry(folder: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(folder, name, AtFlags::empty()) {
        // A folder: EISDIR on Linux, EPERM in POSIX.
        Err(error @ (Errno::ISDIR | Errno::PERM)) => match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => Err(error.into()),
            removed => is_removed(removed),
        },
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn is_removed(removed: Result<(), Errno>) -> io::Result<bool> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open(folder: impl AsFd, name: impl Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

fn identity(folder: &OwnedFd) -> io::Result<(u64, u64)> {
    let about = fstat(folder)?;
    Ok((about.st_dev, about.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::thread;

    use rustix::fs::mkdirat;

    use super::*;

    /// Makes folders in folders.
    fn deep(path: &Path, levels: usize) {
        fs::create_dir(path).unwrap();
        let mut folder = open(CWD, path).unwrap();
        for _ in 0..levels {
            mkdirat(&folder, "d", Mode::RWXU).unwrap();
            folder = open(&folder, "d").unwrap();
        }
    }

    #[test]
    fn a_deep_tree_needs_no_deep_stack() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        deep(&tree, 20_000);
        // The smallest stack that the standard library gives.
        thread::scope(|scope| {
            let small = thread::Builder::new().stack_size(64 * 1024);
            small.spawn_scoped(scope, || remove_tree(&tree).unwrap()).unwrap().join().unwrap();
        });
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_scratch_folder_is_removed_with_what_a_program_made_in_it() {
        let place = tempfile::tempdir().unwrap();
        let scratch = ScratchFolder::from(tempfile::tempdir_in(place.path()).unwrap());
        deep(&scratch.path().join("made"), 20_000);
        thread::scope(|scope| {
            let small = thread::Builder::new().stack_size(64 * 1024);
            small.spawn_scoped(scope, || drop(scratch)).unwrap().join().unwrap();
        });
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn all_of_a_tree_is_removed_and_nothing_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let (tree, beside) = (place.path().join("tree"), place.path().join("beside"));
        for folder in ["a/b/c", "a/b/d", "a/e", "f"] {
            fs::create_dir_all(tree.join(folder)).unwrap();
            for number in 0..50 {
                fs::write(tree.join(folder).join(number.to_string()), "").unwrap();
            }
        }
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("kept"), "").unwrap();
        symlink(&beside, tree.join("a/link")).unwrap();
        symlink("/nonexistent", tree.join("a/dangling")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && beside.join("kept").exists());
        remove_tree(&tree).expect("a tree that does not exist is none that is left");
        symlink(&beside, &tree).unwrap();
        assert!(remove_tree(&tree).is_err(), "a link is not followed");
        assert!(beside.join("kept").exists());
    }
}
