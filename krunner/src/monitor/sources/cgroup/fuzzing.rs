//! Fuzz targets of `/proc/PID/cgroup`, `mountinfo` and the files of a cgroup.

use std::fmt::Write as _;
use std::path::Path;

use super::charge::MemoryStat;
use super::files::value;
use super::{CgroupRoot, Mount, dir_of, own_path, path_in, unescape};
use crate::monitor::model::cgroup::CgroupFilter;

/// A process is in its own cgroup, and no path leads out of one.
pub(crate) fn process_cgroup(own: &str, other: &str) {
    let Some((version, path)) = own_path(own) else { return };
    assert_eq!(path_in(own, version), Some(path));
    let filter = CgroupFilter::new(version, path);
    let is_absolute = path.starts_with('/') && !path.split('/').any(|step| step == "..");
    let same_path = filter.path(own) == Some(path);
    assert!(!(is_absolute && same_path) || filter.contains(own), "{path:?}");
    if filter.contains(other) {
        let inside = filter.path(other).unwrap_or_default();
        assert!(inside.starts_with(path.trim_end_matches('/')));
        assert!(!inside[path.trim_end_matches('/').len()..].split('/').any(|step| step == ".."), "{inside:?}");
    }
}

/// No cgroup's directory is outside of a mount point.
pub(crate) fn mountinfo(text: &str, cgroup: &str) {
    let root = CgroupRoot::below("/nowhere");
    for version in [1, 2] {
        let mounts: Vec<_> = text.lines().filter_map(|line| Mount::parse(line, version, &root)).collect();
        assert!(mounts.iter().all(|mount| mount.point.starts_with("/nowhere")), "{mounts:?}");
        assert!(dir_of(cgroup, &mounts).is_none_or(|dir| dir.starts_with("/nowhere")));
    }
    let escaped = cgroup.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => write!(escaped, "\\{byte:03o}"),
            _ => write!(escaped, "{}", char::from(byte)),
        }
        .expect("a String takes everything");
        escaped
    });
    if cgroup.is_ascii() {
        assert_eq!(unescape(&escaped), cgroup);
    }
    assert!(!Path::new(&unescape(text)).as_os_str().is_empty() || text.is_empty());
}

/// Sums do not overflow, and no part is larger than the whole.
pub(crate) fn cgroup_files(text: &str) {
    for usage_bytes in [0, 1 << 30, u64::MAX] {
        if let Some(stat) = MemoryStat::parse(text) {
            assert!(stat.needed_bytes(usage_bytes) <= usage_bytes);
        }
    }
    for name in ["oom_kill", "oom", "max", "total_rss"] {
        let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name);
        assert_eq!(value(text, name), line.and_then(|(_, number)| number.trim().parse().ok()));
    }
}
