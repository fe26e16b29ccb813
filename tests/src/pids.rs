//! A scratch cgroup with a limit of processes, in version 1's own hierarchy or in the unified one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::{Cgroup, Version};
use crate::wait;

const PIDS_HIERARCHY: &str = "/sys/fs/cgroup/pids";

/// A cgroup whose processes and threads are limited in number. Its processes are ended by the owner of the memory cgroup.
#[derive(Debug)]
pub struct PidsLimit {
    folder: PathBuf,
    /// Version 2 keeps both limits in the memory cgroup, which removes its own folder.
    is_own: bool,
}

impl PidsLimit {
    /// At most `count` in it; for the members of that memory cgroup.
    pub fn new(memory: &Cgroup, count: u32) -> Result<Self, String> {
        let limit = match memory.version() {
            Version::One => {
                let above = memory.path().parent().and_then(Path::file_name).expect("a scratch cgroup is above");
                let folder = Path::new(PIDS_HIERARCHY).join(above);
                fs::create_dir(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
                Self { folder, is_own: true }
            }
            Version::Two => Self { folder: memory.path().parent().expect("a scratch cgroup").into(), is_own: false },
        };
        limit.set(count)?;
        Ok(limit)
    }

    /// Another limit; 0 stops every fork and clone.
    pub fn set(&self, count: u32) -> Result<(), String> {
        let file = self.folder.join("pids.max");
        fs::write(&file, count.to_string()).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Where a process enters it by writing 0, if it is not in it by its memory cgroup.
    pub fn procs_file(&self) -> Option<PathBuf> {
        self.is_own.then(|| self.folder.join("cgroup.procs"))
    }
}

impl Drop for PidsLimit {
    fn drop(&mut self) {
        if self.is_own && wait::within(wait::PATIENCE, || fs::remove_dir(&self.folder).ok()).is_none() {
            eprintln!("the cgroup {} cannot be removed", self.folder.display());
        }
    }
}
