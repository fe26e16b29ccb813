//! A pseudoterminal: the master as a byte stream, the slave for a program.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use tokio::io::unix::AsyncFd;

use super::window_size::WindowSize;
use crate::sys;

/// The master. When it is dropped, the kernel hangs up the session at the other end (SIGHUP).
pub(super) struct Pty {
    end: AsyncFd<File>,
}

impl Pty {
    /// Opens a terminal of this size and returns master and slave. Both are close-on-exec.
    pub(super) fn open(size: WindowSize) -> io::Result<(Self, OwnedFd)> {
        let end = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        grantpt(&end)?;
        unlockpt(&end)?;
        let other = open(ptsname_r(&end)?.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
        let pty = Self { end: sys::pollable(File::from(OwnedFd::from(end)))? };
        pty.resize(size)?;
        Ok((pty, other))
    }

    /// Sets the size; the kernel sends SIGWINCH to the foreground process group.
    pub(super) fn resize(&self, size: WindowSize) -> io::Result<()> {
        sys::set_window_size(self.end.as_fd(), size.rows, size.columns)
    }

    /// Reads what was written at the other end; 0 when all descriptors of it are closed.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.end.readable().await?;
            match ready.try_io(|end| end.get_ref().read(buffer)) {
                // The last descriptor of the other end is closed (tty_ioctl of a hung-up pty, pty(7)).
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Ok(0),
                Ok(result) => return result,
                Err(_) => {}
            }
        }
    }

    /// Writes all bytes. Waits while the other end does not read.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.end.writable().await?;
            // `try_io` fails if the descriptor was not writable after all.
            if let Ok(written) = ready.try_io(|end| end.get_ref().write(bytes)) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}
