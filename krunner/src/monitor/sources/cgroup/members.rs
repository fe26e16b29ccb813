//! The processes of a cgroup and its descendants, from the cgroups' own files: a list that is as long as the cgroup is large,
//! where `/proc` lists a whole machine.
//!
//! `cgroup.procs` has no process whose threads have all begun to exit (`css_task_iter_advance`, kernel/cgroup/cgroup.c). A
//! threaded cgroup of v2 has none to read.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Maximum number of cgroups to read, 20 us each. Where there are more, listing `/proc` is cheaper.
const MAX_CGROUPS: usize = 512;

/// The pids in the cgroup at `dir` and below, in our PID namespace, in no order. A pid may be listed twice (cgroups(7)).
///
/// # Errors
/// If the cgroup at `dir` itself or a file of members cannot be read, or if there are more than [`MAX_CGROUPS`].
pub(in crate::monitor) fn members(dir: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    let mut left = vec![dir.to_owned()];
    let mut read = 0;
    while let Some(next) = left.pop() {
        read += 1;
        if read > MAX_CGROUPS {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        match read_cgroup(&next, &mut left) {
            Ok(found) => pids.extend(found),
            // Removed since its parent was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && next != dir => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pids)
}

/// The pids in one cgroup; adds its children to `left`.
fn read_cgroup(dir: &Path, left: &mut Vec<PathBuf>) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            left.push(entry.path());
        }
    }
    // 0 is a process outside of our PID namespace.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(dir: &Path, pids: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("cgroup.procs"), pids).unwrap();
    }

    #[test]
    fn members_are_those_of_the_cgroup_and_below() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        cgroup(&top, "7\n0\n");
        cgroup(&top.join("a/b"), "9\n");
        cgroup(&top.join("a"), "8\n");
        cgroup(&folder.path().join("beside"), "6\n");
        let mut pids = members(&top).unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [7, 8, 9]);
    }

    #[test]
    fn too_many_cgroups_and_one_that_cannot_be_read_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(members(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        cgroup(folder.path(), "7\n");
        for number in 1..MAX_CGROUPS {
            cgroup(&folder.path().join(number.to_string()), "");
        }
        assert_eq!(members(folder.path()).unwrap(), [7]);
        cgroup(&folder.path().join("one-more"), "");
        assert_eq!(members(folder.path()).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
}
