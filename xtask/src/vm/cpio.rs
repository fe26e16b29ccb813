//! The archive that a kernel unpacks into its first file system: cpio in the "newc" format.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel's sources. Numbers are eight
//! hexadecimal digits; name and content are each padded to four bytes.

use std::fmt::Write as _;
use std::io::{self, Write};

const FOLDER: u32 = 0o04_0755;
const PROGRAM: u32 = 0o10_0755;
const LINK: u32 = 0o12_0777;
const DEVICE: u32 = 0o02_0600;

/// An archive as it is written.
pub(super) struct Archive<W> {
    sink: W,
    files: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(sink: W) -> Self {
        Self { sink, files: 0 }
    }

    pub(super) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, FOLDER, (0, 0), &[])
    }

    pub(super) fn program(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, PROGRAM, (0, 0), content)
    }

    pub(super) fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub(super) fn device(&mut self, name: &str, number: (u32, u32)) -> io::Result<()> {
        self.entry(name, DEVICE, number, &[])
    }

    /// Writes the trailer and hands the sink back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.sink)
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> io::Result<()> {
        self.files += 1;
        let inode = self.files;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let (user, group, links, time, check) = (0, 0, 1, 0, 0);
        let fields = [inode, mode, user, group, links, time, size, 0, 0, major, minor, name_size, check];
        let mut header = String::from("070701");
        for field in fields {
            let _ = write!(header, "{field:08x}");
        }
        self.padded(&[header.as_bytes(), name.as_bytes(), b"\0"].concat())?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.sink.write_all(&[0; 4][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_closed() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("bin").unwrap();
        archive.link("bin/sh", "busybox").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("07070100000001000041ed"), "{text:?}");
        assert!(text.contains("bin/sh\0\0\0\0busybox\0"), "{text:?}");
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"), "{text:?}");
    }
}
