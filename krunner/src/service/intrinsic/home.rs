//! The runner's files in the user's home directory.
//!
//! The user controls the home, links in it included. A runner that is root does not follow links, which could lead it
//! elsewhere. Any other runner has no more rights than the user, and follows them. A file is replaced atomically. Everything
//! here may block and must run on a thread for blocking work.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK};

/// Limit of the files read here.
const MAX_BYTES: u64 = 1024 * 1024;

const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// A directory held open, so that operations stay in it even if its path is replaced.
#[derive(Debug)]
pub(super) struct HomeFolder {
    held: File,
    /// Owner of the home, set if the runner is root: it gives new files to them and follows no links.
    owner: Option<(u32, u32)>,
}

impl HomeFolder {
    /// Opens the home itself. The user cannot change the path to it.
    pub(super) fn home(path: &Path) -> io::Result<Self> {
        let held = OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(path)?;
        let about = held.metadata()?;
        let owner = nix::unistd::geteuid().is_root().then(|| (about.uid(), about.gid()));
        Ok(Self { held, owner })
    }

    /// Opens a subdirectory with mode 0700; creates it if it is missing.
    pub(super) fn private(&self, name: &str) -> io::Result<Self> {
        let path = self.at(name);
        let made = match fs::DirBuilder::new().mode(PRIVATE_FOLDER).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            made => made.is_ok(),
        };
        let held = self.open(&path, O_DIRECTORY)?;
        if made {
            self.give(&held)?;
        }
        close_to_others(&held, PRIVATE_FOLDER, name)?;
        Ok(Self { held, owner: self.owner })
    }

    /// Reads a file and removes the permissions of others from it; `None` if it does not exist.
    pub(super) fn read_private(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open(&self.at(name), O_NONBLOCK) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        close_to_others(&file, PRIVATE_FILE, name)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::other("the file is too large"));
        }
        Ok(Some(text))
    }

    /// Replaces the file, with mode 0600.
    pub(super) fn write_private(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let mut target = self.at(name);
        if self.owner.is_none() {
            // A link stays; its target is replaced.
            target = fs::canonicalize(&target).unwrap_or(target);
        }
        let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut new = tempfile::Builder::new().permissions(Permissions::from_mode(PRIVATE_FILE)).tempfile_in(folder)?;
        self.give(new.as_file())?;
        new.write_all(text)?;
        new.persist(&target)?;
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd())).join(name)
    }

    fn give(&self, made: &File) -> io::Result<()> {
        self.owner.map_or(Ok(()), |(user, group)| fchown(made, Some(user), Some(group)))
    }

    fn open(&self, path: &Path, flags: i32) -> io::Result<File> {
        let stay = if self.owner.is_some() { O_NOFOLLOW } else { 0 };
        let opened = OpenOptions::new().read(true).custom_flags(flags | stay).open(path);
        // With O_NOFOLLOW a link is ELOOP, or ENOTDIR where a folder was asked for (open(2)).
        opened.map_err(|error| match fs::symlink_metadata(path) {
            Ok(about) if stay != 0 && about.is_symlink() => {
                io::Error::other("a symbolic link, which a runner that is root does not follow in the home directory")
            }
            _ => error,
        })
    }
}

/// Removes the permissions of group and others, by descriptor because the name may have been replaced. A file that another
/// user owns, for example on a mount, is used as it is.
fn close_to_others(file: &File, mode: u32, name: &str) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & OTHERS != 0
        && let Err(error) = file.set_permissions(Permissions::from_mode(mode))
    {
        tracing::warn!(
            "cannot restrict the permissions of {name} in the home directory ({error}); ssh may refuse to use it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A home as a root runner sees it, or any other runner.
    fn home(for_root: bool) -> (tempfile::TempDir, HomeFolder) {
        let place = tempfile::tempdir().unwrap();
        let mut home = HomeFolder::home(place.path()).unwrap();
        let about = fs::metadata(place.path()).unwrap();
        home.owner = for_root.then(|| (about.uid(), about.gid()));
        (place, home)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn folders_and_files_are_for_their_owner_only() {
        let (place, home) = home(true);
        let ssh = home.private(".ssh").unwrap();
        assert_eq!(ssh.read_private("config").unwrap(), None);
        ssh.write_private("config", b"1").unwrap();
        ssh.write_private("config", b"2").unwrap();
        let file = place.path().join(".ssh/config");
        assert_eq!((mode(&place.path().join(".ssh")), mode(&file)), (0o700, 0o600));
        fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(place.path().join(".ssh"), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(home.private(".ssh").unwrap().read_private("config").unwrap().unwrap(), b"2");
        assert_eq!((mode(&place.path().join(".ssh")), mode(&file)), (0o700, 0o600));
        assert_eq!(fs::read_dir(place.path().join(".ssh")).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn root_is_not_led_out_of_the_home_by_links() {
        let (place, home) = home(true);
        let (elsewhere, _) = self::home(true);
        let secret = elsewhere.path().join("secret");
        fs::write(&secret, "theirs").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(elsewhere.path(), Permissions::from_mode(0o755)).unwrap();

        symlink(elsewhere.path(), place.path().join(".ssh")).unwrap();
        assert!(home.private(".ssh").is_err());
        symlink(&secret, place.path().join("config")).unwrap();
        assert!(home.read_private("config").is_err());
        home.write_private("config", b"ours").unwrap();

        assert_eq!(fs::read(&secret).unwrap(), b"theirs");
        assert_eq!((mode(&secret), mode(elsewhere.path())), (0o644, 0o755));
        assert_eq!(fs::read(place.path().join("config")).unwrap(), b"ours");
    }

    #[test]
    fn only_a_runner_without_root_follows_the_users_links() {
        let (place, home) = home(false);
        let (elsewhere, _) = self::home(false);
        symlink(elsewhere.path(), place.path().join(".ssh")).unwrap();
        symlink("keys", elsewhere.path().join("authorized_keys")).unwrap();
        fs::write(elsewhere.path().join("keys"), "old").unwrap();
        let ssh = home.private(".ssh").unwrap();
        assert_eq!(ssh.read_private("authorized_keys").unwrap().unwrap(), b"old");
        ssh.write_private("authorized_keys", b"new").unwrap();
        assert_eq!(fs::read(elsewhere.path().join("keys")).unwrap(), b"new");
        assert!(fs::symlink_metadata(elsewhere.path().join("authorized_keys")).unwrap().is_symlink());
    }

    #[test]
    fn what_root_makes_is_the_homes_owners() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(place.path(), Some(4321), Some(1234)).unwrap();
        let ssh = HomeFolder::home(place.path()).unwrap().private(".ssh").unwrap();
        ssh.write_private("config", b"").unwrap();
        for made in [".ssh", ".ssh/config"] {
            let about = fs::metadata(place.path().join(made)).unwrap();
            assert_eq!((about.uid(), about.gid()), (4321, 1234), "{made}");
        }
    }

    #[test]
    fn what_is_no_file_is_told() {
        let (place, home) = home(true);
        nix::unistd::mkfifo(&place.path().join("config"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(home.read_private("config").is_err(), "a FIFO without a writer");
        fs::write(place.path().join(".ssh"), "").unwrap();
        assert!(home.private(".ssh").is_err());
        fs::write(place.path().join("large"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        assert!(home.read_private("large").is_err());
    }
}
