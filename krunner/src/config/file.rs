//! Reads a configuration file that may be anything: a FIFO without a writer, a device without an end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::O_NONBLOCK;

/// Far more than any of these files needs.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Reads a regular file. Does not wait for anything but the disk.
///
/// # Errors
/// If it cannot be opened or read, is no regular file, or is larger than [`MAX_FILE_BYTES`].
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO waits for its writer, unless it is non-blocking.
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, plain) = (folder.path().join("fifo"), folder.path().join("plain"));
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        fs::write(&plain, "text").unwrap();
        for path in [&fifo, Path::new("/dev/zero"), folder.path()] {
            assert_eq!(read_regular(path).unwrap_err().to_string(), "not a regular file", "{}", path.display());
        }
        assert_eq!(read_regular(&plain).unwrap(), b"text");
        File::create(&plain).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert_eq!(read_regular(&plain).unwrap_err().to_string(), "larger than 16 MiB");
    }
}
