//! The unix socket at which programs request input.
//!
//! ```text
//! bind ──▶ at its usual path ──removed (inotify)──▶ made again
//!   │                          └ another's is there: left alone, and looked at until that one is gone
//!   └ the path cannot be had ──▶ the same in a folder of its own, which the environment of programs names
//! ```
//!
//! Users clear `/tmp`, and a program may ask right after that, so waiting for the next step would be too late. What is
//! watched is the socket's own inode: its link count changes when it is removed (inotify(7), `IN_ATTRIB`), and nothing
//! else that happens in `/tmp` wakes the runner.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::AT_FDCWD;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use crate::config::INPUT_SOCKET_VARIABLE;
use crate::remove_tree::ScratchFolder;
use crate::sys;

const NAME_ELSEWHERE: &str = "input.sock";

const OWNER_ONLY_FOLDER: u32 = 0o700;
const OWNER_ONLY_FILE: u32 = 0o600;

/// Polling interval of a path that cannot be watched.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// A socket that is recreated when its path is removed. Dropping it removes the directory that was created for it.
pub(super) struct InputSocket {
    path: PathBuf,
    folder: Option<ScratchFolder>,
    bound: BoundSocket,
    is_loss_told: bool,
}

/// A listener and the inode at its path.
struct BoundSocket {
    listener: UnixListener,
    device_and_inode: (u64, u64),
    /// `None` if inotify failed: the number of instances per user is limited.
    watch: Option<AsyncFd<OwnedFd>>,
}

/// What is at the socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Own,
    Other,
    None,
}

impl InputSocket {
    /// Binds the socket, at another path if need be. Failures are logged.
    pub(super) fn open(usual: &Path) -> Option<Self> {
        let error = match remove(usual).and_then(|()| BoundSocket::at(usual)) {
            Ok(bound) => return Some(Self { path: usual.to_owned(), folder: None, bound, is_loss_told: false }),
            Err(error) => error,
        };
        match Self::open_elsewhere(usual) {
            Ok(socket) => {
                tracing::warn!(
                    "{} cannot be replaced ({error}): the input socket is {}, which Python and Java find; other programs find \
                     it in {INPUT_SOCKET_VARIABLE}; remove the file from the image",
                    usual.display(),
                    socket.path.display()
                );
                Some(socket)
            }
            Err(_) => {
                tracing::warn!("programs cannot ask for input: {}: {error}", usual.display());
                None
            }
        }
    }

    fn open_elsewhere(usual: &Path) -> io::Result<Self> {
        let parent = usual.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let only_ours = fs::Permissions::from_mode(OWNER_ONLY_FOLDER);
        let folder = tempfile::Builder::new().prefix("krunner-input-").permissions(only_ours).tempdir_in(parent)?;
        let path = folder.path().join(NAME_ELSEWHERE);
        Ok(Self { bound: BoundSocket::at(&path)?, path, folder: Some(folder.into()), is_loss_told: false })
    }

    /// The socket's path, if it is not the usual one.
    pub(super) fn elsewhere(&self) -> Option<&Path> {
        self.folder.is_some().then_some(self.path.as_path())
    }

    /// Accepts the next connection; recreates the socket meanwhile if it is removed.
    pub(super) async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                // Connections from before the removal come first: they would be lost with the listener.
                biased;
                connection = self.bound.listener.accept() => return connection.map(|(stream, _)| stream),
                () = self.bound.changed() => self.restore(),
            }
        }
    }

    fn restore(&mut self) {
        let lost = match occupant(&self.path, self.bound.device_and_inode) {
            Occupant::Own => return,
            Occupant::Other => Err(io::Error::other("another file is at this path")),
            Occupant::None => self.bind_again(),
        };
        match lost {
            Ok(()) => {
                tracing::info!("the input socket {} was removed; created it again", self.path.display());
                self.is_loss_told = false;
            }
            Err(error) => {
                // Polled from now on.
                self.bound.watch = None;
                if !std::mem::replace(&mut self.is_loss_told, true) {
                    tracing::warn!("programs cannot ask for input: {}: {error}", self.path.display());
                }
            }
        }
    }

    fn bind_again(&mut self) -> io::Result<()> {
        if let Some(folder) = &self.folder {
            fs::DirBuilder::new().mode(OWNER_ONLY_FOLDER).recursive(true).create(folder.path())?;
        }
        self.bound = BoundSocket::at(&self.path)?;
        Ok(())
    }
}

impl BoundSocket {
    /// Fails if the path exists.
    fn at(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // The path may be another file by now; a link there is not followed.
        fchmodat(AT_FDCWD, path, Mode::from_bits_truncate(OWNER_ONLY_FILE), FchmodatFlags::NoFollowSymlink)?;
        let about = fs::symlink_metadata(path)?;
        let watch = watch(path)
            .inspect_err(|error| tracing::debug!("cannot watch {}, polling it instead: {error}", path.display()));
        Ok(Self { listener, device_and_inode: (about.dev(), about.ino()), watch: watch.ok() })
    }

    /// Resolves when the file at the path may have changed.
    async fn changed(&self) {
        let Some(watch) = &self.watch else { return sleep(LOOK_PERIOD).await };
        let Ok(mut ready) = watch.readable().await else { return sleep(LOOK_PERIOD).await };
        // The events only wake us; `restore` looks at the path.
        let mut events = [0; 256];
        while nix::unistd::read(watch, &mut events).is_ok_and(|bytes| bytes > 0) {}
        ready.clear_ready();
    }
}

fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(path, AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DONT_FOLLOW)?;
    sys::readable(inotify.into())
}

/// A file that is being removed has no links left, but can still be found (`vfs_unlink`, `fs/namei.c`).
fn occupant(path: &Path, own: (u64, u64)) -> Occupant {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Occupant::None,
        Ok(about) if about.nlink() == 0 => Occupant::None,
        Ok(about) if (about.dev(), about.ino()) == own => Occupant::Own,
        _ => Occupant::Other,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    fn opened() -> (TempDir, PathBuf, InputSocket) {
        let folder = tempfile::tempdir().unwrap();
        let usual = folder.path().join("socket");
        let socket = InputSocket::open(&usual).unwrap();
        (folder, usual, socket)
    }

    /// Whether a program gets through within a few seconds, while the socket is kept.
    async fn is_reached(socket: &mut InputSocket, path: &Path) -> bool {
        let connect = async {
            while UnixStream::connect(path).await.is_err() {
                sleep(Duration::from_millis(2)).await;
            }
        };
        let reached = async { tokio::join!(socket.accept(), connect).0.is_ok() };
        timeout(3 * LOOK_PERIOD, reached).await.unwrap_or(false)
    }

    #[tokio::test]
    async fn usual_path_is_taken_whatever_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let usual = folder.path().join("socket");
        fs::write(&usual, "left over").unwrap();
        let mut socket = InputSocket::open(&usual).unwrap();
        assert_eq!(socket.elsewhere(), None);
        assert!(is_reached(&mut socket, &usual).await);
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_left_and_the_socket_is_in_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let usual = folder.path().join("socket");
        // A folder is not removed as a file, and needs no other user to be in the way.
        fs::create_dir(&usual).unwrap();
        let mut socket = InputSocket::open(&usual).unwrap();
        let path = socket.elsewhere().unwrap().to_owned();
        let about = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, OWNER_ONLY_FOLDER);
        assert!(is_reached(&mut socket, &path).await);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(is_reached(&mut socket, &path).await, "its folder is made again, too");
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only what was in the way is left");
    }

    #[tokio::test]
    async fn removed_or_renamed_it_is_there_again() {
        let (folder, usual, mut socket) = opened();
        for _ in 0..20 {
            fs::remove_file(&usual).unwrap();
            assert!(is_reached(&mut socket, &usual).await);
        }
        fs::rename(&usual, folder.path().join("renamed")).unwrap();
        assert!(is_reached(&mut socket, &usual).await);
        assert_eq!(fs::metadata(&usual).unwrap().permissions().mode() & 0o777, OWNER_ONLY_FILE);
    }

    #[tokio::test]
    async fn connection_from_before_the_removal_is_kept() {
        let (_folder, usual, mut socket) = opened();
        let _connected = UnixStream::connect(&usual).await.unwrap();
        fs::remove_file(&usual).unwrap();
        assert!(timeout(LOOK_PERIOD, socket.accept()).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn unwatched_it_is_looked_at() {
        let (_folder, usual, mut socket) = opened();
        socket.bound.watch = None;
        fs::remove_file(&usual).unwrap();
        assert!(is_reached(&mut socket, &usual).await);
    }

    #[tokio::test]
    async fn another_listener_is_left_alone_until_it_is_gone() {
        let (_folder, usual, mut socket) = opened();
        fs::remove_file(&usual).unwrap();
        let other = StdListener::bind(&usual).unwrap();
        assert!(timeout(LOOK_PERIOD / 4, socket.accept()).await.is_err());
        assert_eq!(occupant(&usual, socket.bound.device_and_inode), Occupant::Other);
        drop(other);
        fs::remove_file(&usual).unwrap();
        assert!(is_reached(&mut socket, &usual).await);
    }
}
