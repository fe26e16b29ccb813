//! Files of ours in the user's home.
//!
//! The home is the user's own, links in it included. A runner that is root could be led out of it by one, so it
//! follows none; any other runner can do nothing that the user could not, and goes where the user's links lead.
//! A file is replaced as a whole or not at all. Everything here may block, and belongs on a thread that may.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK};

/// No file that we read here is larger by right.
const MAX_BYTES: u64 = 1024 * 1024;

const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// A folder that is held open, so that what happens in it happens in it, whatever its name leads to by then.
#[derive(Debug)]
pub(super) struct Folder {
    held: File,
    /// The user and group whose home it is, for a runner of root, which gives them what it makes. No other runner can
    /// give anything away; nor can it be led anywhere by links.
    owner: Option<(u32, u32)>,
}

impl Folder {
    /// The home itself; whatever leads there is not the user's to change.
    pub(super) fn home(path: &Path) -> io::Result<Self> {
        let held = OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(path)?;
        let about = held.metadata()?;
        let owner = nix::unistd::geteuid().is_root().then(|| (about.uid(), about.gid()));
        Ok(Self { held, owner })
    }

    /// A folder in this one that is for its owner only; made if need be.
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

    /// The file's content; `None` without such a file. What is there already is closed to others.
    pub(super) fn read_private(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open(&self.at(name), O_NONBLOCK) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        close_to_others(&file, PRIVATE_FILE, name)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::other("it is too large to be what it should be"));
        }
        Ok(Some(text))
    }

    /// Writes the file, for its owner only.
    pub(super) fn write_private(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let mut target = self.at(name);
        if self.owner.is_none() {
            // A link stays one, and what it leads to is replaced.
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
                io::Error::other("it is a link, and a runner of root follows none in the home")
            }
            _ => error,
        })
    }
}

/// Takes from others what they may do; by the descriptor, since the name could lead elsewhere by now. What another
/// owns, on a mount from elsewhere, is used as it is.
fn close_to_others(file: &File, mode: u32, name: &str) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & OTHERS != 0
        && let Err(error) = file.set_permissions(Permissions::from_mode(mode))
    {
        tracing::warn!("{name} in the home stays open to others ({error}); ssh may refuse to use it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A home, as a runner of root sees it, or any other.
    fn home(for_root: bool) -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let mut home = Folder::home(place.path()).unwrap();
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
    fn the_users_links_are_followed_by_whoever_has_the_users_rights_only() {
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
        let ssh = Folder::home(place.path()).unwrap().private(".ssh").unwrap();
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
