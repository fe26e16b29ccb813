//! The node's listening socket and its file.
//!
//! A socket that nobody listens at is a node's that was killed, and replaced. Anything else at the path is left alone: another
//! node, a file, a link. Everybody may connect; who may see what is decided for each connection.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

const FOLDER_MODE: u32 = 0o755;
const SOCKET_MODE: u32 = 0o666;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeSocketError {
    /// Another node is running.
    #[error("another process listens at {}", .0.display())]
    InUse(PathBuf),
    /// The path is something else.
    #[error("{} exists and is not a socket", .0.display())]
    Occupied(PathBuf),
    /// A system call failed.
    #[error("cannot listen at {}", .0.display())]
    Failed(PathBuf, #[source] io::Error),
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct NodeListener {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl NodeListener {
    /// Listens at this path; creates its folder if it is missing.
    pub(super) fn bind(path: &Path) -> Result<Self, NodeSocketError> {
        let failed = |error| NodeSocketError::Failed(path.to_owned(), error);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().mode(FOLDER_MODE).recursive(true).create(folder).map_err(failed)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Waits for a connection.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for NodeListener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), NodeSocketError> {
    let failed = |error| NodeSocketError::Failed(path.to_owned(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(NodeSocketError::Occupied(path.to_owned())),
        Ok(_) => match StdStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
            _ => Err(NodeSocketError::InUse(path.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn what_is_at_the_path_is_replaced_only_if_it_is_a_dead_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/node.sock");
        let listener = NodeListener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        assert!(matches!(NodeListener::bind(&path), Err(NodeSocketError::InUse(_))));
        drop(listener);
        assert!(!path.exists(), "its file is removed with it");

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(NodeListener::bind(&path).unwrap());

        let target = folder.path().join("target");
        fs::write(&target, "kept").unwrap();
        symlink(&target, &path).unwrap();
        assert!(matches!(NodeListener::bind(&path), Err(NodeSocketError::Occupied(_))));
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
