//! Namespaces of processes, by their files in `/proc/PID/ns` (`namespaces(7)`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

// include/uapi/linux/nsfs.h.
nix::ioctl_none!(ns_get_parent, 0xb7, 0x2);

/// The namespace around a PID namespace, `None` for the outermost one that we may see (`ioctl_nsfs(2)`).
pub(crate) fn parent_of_pid_namespace(namespace: &File) -> io::Result<Option<File>> {
    // SAFETY: takes no argument and returns a new descriptor.
    match unsafe { ns_get_parent(namespace.as_raw_fd()) } {
        // SAFETY: the kernel made it just now, and nothing else has it.
        Ok(fd) => Ok(Some(unsafe { File::from_raw_fd(fd) })),
        Err(nix::Error::EPERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
