//! Usage of the tmpfs mounts in this mount namespace, whose files are charged as memory.
//!
//! May block if a mount point is below a network file system that does not respond, so only the sampler thread calls
//! it.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::monitor::model::mount::MountUsage;
use crate::monitor::sources::cgroup::unescape;

/// Maximum number of mounts to read, about 3 us each. A container has a few.
const MAX_MOUNTS: usize = 64;

/// Mounts with less usage are left out.
const MIN_USED_BYTES: u64 = 1 << 20;

/// Usage of non-empty tmpfs mounts, from the text of `/proc/self/mountinfo` (proc(5)).
pub(super) fn tmpfs_usage(mountinfo: &str) -> Vec<MountUsage> {
    let mounts = tmpfs_mounts(mountinfo).into_iter().filter_map(|path| usage(&path));
    mounts.filter(|mount| mount.used_bytes >= MIN_USED_BYTES).collect()
}

/// Mount point of each tmpfs; the last one if there are several.
pub(crate) fn tmpfs_mounts(mountinfo: &str) -> Vec<String> {
    let (mut devices, mut paths) = (BTreeSet::new(), BTreeSet::new());
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let (device, path) = (place.next()?, place.nth(1)?);
        // The last mount on a path hides the others.
        let is_on_top = paths.insert(path.to_owned());
        let is_new = is_on_top && kind.starts_with("tmpfs ") && devices.insert(device.to_owned());
        is_new.then(|| unescape(path))
    };
    let mut mounts: Vec<String> = mountinfo.lines().rev().filter_map(mount).take(MAX_MOUNTS).collect();
    mounts.reverse();
    mounts
}

fn usage(path: &str) -> Option<MountUsage> {
    let about = statvfs(Path::new(path)).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(about.fragment_size());
    let size_bytes = Some(bytes(about.blocks())).filter(|bytes| *bytes > 0);
    let used_bytes = bytes(about.blocks().saturating_sub(about.blocks_free()));
    Some(MountUsage { path: path.to_owned(), used_bytes, size_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tmpfs_is_listed_once() {
        let mountinfo = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                         30 22 0:25 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=65536k\n\
                         31 22 0:26 / /tmp/a\\040b rw shared:5 - tmpfs none rw\n\
                         28 22 0:24 / /dev/shm rw - tmpfs below rw\n\
                         32 22 0:25 / /dev/shm rw - tmpfs tmpfs rw\n\
                         broken\n33 22 0:5 / /dev rw - devtmpfs udev rw\n";
        assert_eq!(tmpfs_mounts(mountinfo), ["/tmp/a b", "/dev/shm"]);
        assert_eq!(tmpfs_mounts(""), Vec::<String>::new());
    }
}
