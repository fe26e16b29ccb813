//! Folders that the session's user may change: the home, `.ssh` and `.logs` in it. Everything that the runner writes there
//! is opened here.
//!
//! The user, or another session with the same folder, may put a link, a FIFO, a device or a hard link where the runner is
//! about to write, at any moment. A runner of root follows no link below the home, opens regular files only, and writes to
//! no hard link of a file that belongs to someone else; what it creates belongs to the owner of the home. Any other runner
//! has no more rights than the user, and follows the user's links. Mounts are entered, because `.logs` may be one, and
//! because a user of the container cannot make them.
//!
//! The I/O may hang on a network mount, so call it on a blocking thread.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::geteuid;

/// Only for the owner.
pub(crate) const PRIVATE_FILE: u32 = 0o600;

/// How a folder is opened.
const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC);

/// Opening a FIFO or a terminal does not wait, and a terminal does not become ours.
const HARMLESS: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// A folder held open, so that operations stay in it even if its path is replaced.
#[derive(Debug)]
pub(crate) struct UserFolder {
    held: File,
    path: PathBuf,
    /// The owner of the home, if the runner is root.
    owner: Option<(u32, u32)>,
}

impl AsFd for UserFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

impl UserFolder {
    /// Opens the home itself. The user cannot change the path to it, which may have links.
    ///
    /// # Errors
    /// If it cannot be opened or is no folder.
    pub(crate) fn home(path: &Path) -> io::Result<Self> {
        Self::home_as(path, geteuid().is_root())
    }

    /// The same for a runner that is root or not.
    ///
    /// # Errors
    /// As [`Self::home`].
    pub(crate) fn home_as(path: &Path, is_root: bool) -> io::Result<Self> {
        // Others may be allowed to enter the folder and not to read it.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let held = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        let about = held.metadata()?;
        let owner = is_root.then(|| (about.uid(), about.gid()));
        Ok(Self { held, path: path.to_owned(), owner })
    }

    /// Opens a folder that the operator chose, whose path and owner are the operator's own.
    ///
    /// # Errors
    /// As [`Self::home`].
    pub(crate) fn of_operator(path: &Path) -> io::Result<Self> {
        Self::home_as(path, false)
    }

    /// Opens a folder in the home, such as `.logs`: its parent is the home.
    ///
    /// # Errors
    /// As [`Self::folder`].
    pub(crate) fn in_home(path: &Path) -> io::Result<Self> {
        let (Some(home), Some(name)) = (path.parent(), path.file_name()) else { return Self::home(path) };
        let home = if home.as_os_str().is_empty() { Path::new(".") } else { home };
        Self::home(home)?.folder(Path::new(name))
    }

    /// Opens a folder below this one.
    ///
    /// # Errors
    /// If it does not exist, is no folder, or a link on the way to it is not followed.
    pub(crate) fn folder(&self, path: &Path) -> io::Result<Self> {
        let held = self.open_below(path, FOLDER, Mode::empty())?;
        Ok(Self { held: held.into(), path: self.path.join(path), owner: self.owner })
    }

    /// Opens a folder below this one, and creates what is missing on the way to it.
    ///
    /// # Errors
    /// As [`Self::folder`], and if a folder cannot be created.
    pub(crate) fn make_folders(&self, path: &Path, mode: u32) -> io::Result<Self> {
        let mut reached = self.try_clone()?;
        for name in path.components() {
            reached = reached.make_folder(Path::new(name.as_os_str()), mode)?;
        }
        Ok(reached)
    }

    fn make_folder(&self, name: &Path, mode: u32) -> io::Result<Self> {
        match self.folder(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let made = match mkdirat(self, name, Mode::from_bits_truncate(mode)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let folder = self.folder(name)?;
        if made {
            self.give(&folder.held)?;
        }
        Ok(folder)
    }

    /// The open folder itself.
    pub(crate) fn file(&self) -> &File {
        &self.held
    }

    /// Opens a regular file below this folder. With `O_CREAT` a missing one is created.
    ///
    /// # Errors
    /// If it cannot be opened, is not a regular file, or is a hard link of another user's file.
    pub(crate) fn open(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<File> {
        let (open, create) = (flags.difference(OFlag::O_CREAT), flags.union(OFlag::O_EXCL));
        if flags.contains(OFlag::O_CREAT) {
            match self.open_below(path, create | HARMLESS, mode) {
                Ok(made) => {
                    let made = File::from(made);
                    self.give(&made)?;
                    return Ok(made);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && create != flags => {}
                Err(error) => return Err(error),
            }
        }
        let file = match self.open_below(path, open | HARMLESS, Mode::empty()) {
            Ok(file) => File::from(file),
            // A FIFO without a reader, or a socket (open(2)).
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Err(not_regular()),
            Err(error) => return Err(error),
        };
        self.check_file(&file)?;
        Ok(file)
    }

    /// Replaces a file as a whole. Where links are followed, a link stays and its target is replaced.
    ///
    /// # Errors
    /// If the new file cannot be written.
    pub(crate) fn replace(&self, name: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        let mut target = self.path_of(name);
        if self.owner.is_none() {
            target = fs::canonicalize(&target).unwrap_or(target);
        }
        self.replace_at(&target, content, mode)
    }

    /// Replaces a file as a whole, and a link by the file.
    ///
    /// # Errors
    /// If the new file cannot be written.
    pub(crate) fn replace_link(&self, name: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        self.replace_at(&self.path_of(name), content, mode)
    }

    fn path_of(&self, name: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd())).join(name)
    }

    fn replace_at(&self, target: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut new = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
        self.give(new.as_file())?;
        new.write_all(content)?;
        new.persist(target)?;
        Ok(())
    }

    /// Not a FIFO, a device or a folder, and not another user's file under a second name.
    fn check_file(&self, file: &File) -> io::Result<()> {
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(not_regular());
        }
        match self.owner {
            Some((owner, _)) if about.nlink() > 1 && about.uid() != owner => Err(io::Error::other(format!(
                "a hard link of a file of uid {}, which a runner of root does not use in the home of uid {owner}; remove it",
                about.uid()
            ))),
            _ => Ok(()),
        }
    }

    /// What root creates belongs to the owner of the home. An NFS server may have given it to `nobody` instead.
    fn give(&self, made: &File) -> io::Result<()> {
        let Some((user, group)) = self.owner else { return Ok(()) };
        if user == 0 || made.metadata()?.uid() != 0 {
            return Ok(());
        }
        // Root without CAP_CHOWN, an owner that the user namespace does not map, a file system without owners. The file is
        // usable.
        let _ = fchown(made, Some(user), Some(group));
        Ok(())
    }

    fn open_below(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        if self.owner.is_none() {
            return Ok(openat(self, path, flags | OFlag::O_CLOEXEC, mode)?);
        }
        let opened = open_beneath(self.as_fd(), path, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode);
        opened.map_err(|error| self.link_on_the_way(path).unwrap_or_else(|| error.into()))
    }

    /// Says that a link was not followed, if the path has one.
    fn link_on_the_way(&self, path: &Path) -> Option<io::Error> {
        let mut prefixes: Vec<&Path> = path.ancestors().filter(|prefix| !prefix.as_os_str().is_empty()).collect();
        prefixes.reverse();
        let link = prefixes.into_iter().find(|prefix| {
            fstatat(self, *prefix, AtFlags::AT_SYMLINK_NOFOLLOW)
                .is_ok_and(|about| SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
        })?;
        Some(io::Error::other(format!(
            "{} is a symbolic link, which a runner of root does not follow in the home directory; put a folder, a file or \
             a mount in its place, or run the session as the user",
            self.path.join(link).display()
        )))
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { held: self.held.try_clone()?, path: self.path.clone(), owner: self.owner })
    }
}

/// The home and the rest of the path, if the path is in the home and the rules for a runner of root apply. A relative path
/// starts at the home, which is the working directory.
pub(crate) fn guarded<'a>(home: &Path, path: &'a Path) -> io::Result<Option<(UserFolder, &'a Path)>> {
    let below = if path.is_absolute() { path.strip_prefix(home).ok() } else { Some(path) };
    match below.filter(|_| geteuid().is_root()) {
        Some(below) => Ok(Some((UserFolder::home(home)?, below))),
        None => Ok(None),
    }
}

fn not_regular() -> io::Error {
    io::Error::other("not a regular file")
}

/// Opens a path below the folder without following any link.
fn open_beneath(folder: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    // A mode without O_CREAT is EINVAL (openat2(2)).
    let mode_if_created = if flags.contains(OFlag::O_CREAT) { mode } else { Mode::empty() };
    match openat2(folder, path, OpenHow::new().flags(flags).mode(mode_if_created).resolve(resolve)) {
        // A kernel before 5.6, or a seccomp filter that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => walk_beneath(folder, path, flags, mode),
        opened => opened,
    }
}

/// The same, component by component.
fn walk_beneath(folder: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let is_beneath = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let (Some(name), true) = (path.file_name(), is_beneath) else { return Err(Errno::EXDEV) };
    let mut reached: Option<OwnedFd> = None;
    for part in path.parent().into_iter().flat_map(Path::components) {
        let at = reached.as_ref().map_or(folder, AsFd::as_fd);
        reached = Some(openat(at, part.as_os_str(), FOLDER | OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?);
    }
    openat(reached.as_ref().map_or(folder, AsFd::as_fd), name, flags | OFlag::O_NOFOLLOW, mode)
}

#[cfg(test)]
#[path = "user_folder/user_folder_tests.rs"]
mod tests;
