//! The ssh server's host key, restored before each start.
//!
//! A key generated for the session is in `/tmp`, which users clear. A restarted server needs the same key, or clients warn of a
//! changed host.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The server's private key. The methods may block.
#[derive(Clone)]
pub(super) struct HostKey {
    file: PathBuf,
    /// `None` for a key that the agent provided.
    text: Option<Vec<u8>>,
}

impl HostKey {
    /// A key that the agent provided.
    pub(super) fn given(file: PathBuf) -> Self {
        Self { file, text: None }
    }

    /// A key that was just generated for this session.
    pub(super) fn made(file: PathBuf) -> io::Result<Self> {
        let text = fs::read(&file)?;
        Ok(Self { file, text: Some(text) })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Writes the session's key again if its file is gone.
    pub(super) fn restore(&self) -> io::Result<()> {
        let (Some(text), Some(folder)) = (&self.text, self.file.parent()) else { return Ok(()) };
        fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.file) {
            Ok(mut file) => file.write_all(text),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn key_that_is_gone_is_written_again_and_one_that_is_there_is_left() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("dropbear");
        let file = folder.join("key");
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "secret").unwrap();
        let key = HostKey::made(file.clone()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        key.restore().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        assert_eq!(fs::read(&file).unwrap(), b"secret");
        fs::write(&file, "another").unwrap();
        key.restore().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"another");
    }

    #[test]
    fn the_agents_key_is_the_agents_to_keep() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("given");
        HostKey::given(file.clone()).restore().unwrap();
        assert!(!file.exists());
    }
}
