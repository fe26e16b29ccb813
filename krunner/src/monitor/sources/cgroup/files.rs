//! Reads the small files of cgroups and `/proc/meminfo`, into buffers of the caller where they are read often.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

/// Maximum number of levels whose files are held open.
const MAX_LEVELS: usize = 8;

/// The same with few descriptors. A level takes up to 15, and connections and steps need the rest.
const FEW_LEVELS: usize = 2;
const FEW_DESCRIPTORS: u64 = 256;

/// Maximum number of cgroups to count kills in. A container has few; on a whole v1 node only the first ones are read.
const MAX_CGROUPS: usize = 256;

/// What an idle session has open, as for the places of a port (`transport::listener`).
const SESSION_DESCRIPTORS: u64 = 100;

/// Buffer for a decimal number.
const NUMBER_BYTES: usize = 32;

/// How many levels of the hierarchy to hold open, innermost first.
pub(super) fn max_levels() -> usize {
    if descriptors() < FEW_DESCRIPTORS { FEW_LEVELS } else { MAX_LEVELS }
}

/// How many cgroups to count kills in.
pub(super) fn max_counted_cgroups() -> usize {
    counted_cgroups(descriptors())
}

/// Two descriptors each: half of what an idle session leaves, at most [`MAX_CGROUPS`].
fn counted_cgroups(descriptors: u64) -> usize {
    let spare = descriptors.saturating_sub(SESSION_DESCRIPTORS);
    usize::try_from(spare / 4).map_or(MAX_CGROUPS, |cgroups| cgroups.min(MAX_CGROUPS))
}

/// How many descriptors this process may have.
fn descriptors() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Opens a file that is read often, and reads it once: the first read allocates a buffer in the kernel that is charged to us and that
/// later reads use again (`seq_read_iter` in `fs/seq_file.c`). Right after an OOM kill it could cause the next one. `None` if it cannot
/// be read.
pub(super) fn open(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.read_at(&mut [0], 0).ok().map(|_| file)
}

pub(super) fn text<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    std::str::from_utf8(&buffer[..length]).map_err(io::Error::other)
}

/// The value of a key in `key value` lines.
pub(super) fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Reads a file with one number.
pub(super) fn number_in(file: &File) -> Option<u64> {
    let mut buffer = [0; NUMBER_BYTES];
    let length = file.read_at(&mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.trim().parse().ok()
}

/// The kernel's estimate of the memory available without swapping.
pub(super) fn available_bytes(meminfo: &File) -> Option<u64> {
    meminfo_bytes(meminfo, "MemAvailable:")
}

/// Reads one of the first three entries of `/proc/meminfo`.
pub(super) fn meminfo_bytes(meminfo: &File, name: &str) -> Option<u64> {
    let mut buffer = [0; 256];
    let length = meminfo.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Subdirectories with their inode numbers, which listing a cgroup provides (`kernfs_fop_readdir`, fs/kernfs/dir.c).
/// Listing takes 5 us; for the many directories without children, checking for two links takes 1 us.
pub(super) fn folders(dir: &Path) -> Vec<(PathBuf, u64)> {
    const NONE_BELOW: u64 = 2;
    if fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() == NONE_BELOW) {
        return Vec::new();
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| (entry.path(), entry.ino())).collect()
}

pub(super) fn inode(dir: &Path) -> u64 {
    fs::metadata(dir).map_or(0, |metadata| metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_cgroups_leave_descriptors_to_the_session() {
        assert_eq!([100, 128, 256, 1024, 1 << 20, u64::MAX].map(counted_cgroups), [0, 7, 39, 231, 256, 256]);
    }
}
