//! The runner's files in `.ssh` and beside it in the user's home: for the owner only, replaced as a whole.
//!
//! [`UserFolder`] has the rules about links. Everything here may block and must run on a thread for blocking work.

use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::user_folder::{PRIVATE_FILE, UserFolder};

/// Limit of the files read here.
const MAX_BYTES: u64 = 1024 * 1024;

const PRIVATE_FOLDER: u32 = 0o700;
const OTHERS: u32 = 0o077;

/// The home, or a folder in it.
#[derive(Debug)]
pub(super) struct HomeFolder(UserFolder);

impl HomeFolder {
    /// Opens the home itself.
    pub(super) fn home(path: &Path) -> io::Result<Self> {
        UserFolder::home(path).map(Self)
    }

    /// Opens a subdirectory with mode 0700; creates it if it is missing.
    pub(super) fn private(&self, name: &str) -> io::Result<Self> {
        let folder = self.0.make_folders(Path::new(name), PRIVATE_FOLDER)?;
        close_to_others(folder.file(), PRIVATE_FOLDER, name)?;
        Ok(Self(folder))
    }

    /// Reads a file and removes the permissions of others from it; `None` if it does not exist.
    pub(super) fn read_private(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.0.open(Path::new(name), OFlag::O_RDONLY, Mode::empty()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
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
        self.0.replace(Path::new(name), text, PRIVATE_FILE)
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
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    /// A home as a root runner sees it, or any other runner.
    fn home(for_root: bool) -> (tempfile::TempDir, HomeFolder) {
        let place = tempfile::tempdir().unwrap();
        let home = UserFolder::home_as(place.path(), for_root).unwrap();
        (place, HomeFolder(home))
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
