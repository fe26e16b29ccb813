//! Our own memory cgroup: where it is, its limit, its usage, its count of kills.
//!
//! Two files of `/proc` tell where (cgroups(7)): `cgroup` has the path of ours in each hierarchy, as it is seen from
//! the root of our cgroup namespace; `mountinfo` has what part of a hierarchy is mounted where. A container
//! without a cgroup namespace of its own sees the host's path, of which only the last part is mounted; one
//! with its own sees `/`. The memory controller is in a hierarchy of version 1 or in the one of version 2,
//! never in both; on hosts with both, version 1 has it if there is a line for it.
//!
//! Reads small files when asked, keeps nothing but paths. A file that cannot be read is a figure that is
//! missing, never an error.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;

use super::procfs::{Fence, read_text};

/// Version 1 has no word for "no limit", but a number of pages close to 2^63 bytes.
const V1_NO_LIMIT_BYTES: u64 = 1 << 60;

/// Cgroups between the victim's and the first one that is mounted.
const MAX_LEVELS: usize = 16;

/// Why there is no memory cgroup to speak of.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// `/proc` does not tell.
    #[error("cannot read {}", .0.display())]
    Unreadable(PathBuf),
    /// No hierarchy has the memory controller.
    #[error("no memory controller is mounted")]
    NoController,
    /// It is mounted, but our part is not.
    #[error("the memory cgroup {path} is not to be found below {}", mount.display())]
    NotMounted {
        /// As `/proc/self/cgroup` has it.
        path: String,
        /// Where the hierarchy is mounted.
        mount: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// Figures of a memory cgroup; what cannot be read is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CgroupFacts {
    /// As in `/proc/PID/cgroup`.
    pub path: String,
    /// 1 or 2.
    pub version: u8,
    /// The smallest limit of it and those above that can be seen; `None` for no limit.
    pub limit_bytes: Option<u64>,
    /// What is charged to it.
    pub usage_bytes: Option<u64>,
    /// Processes killed in it so far.
    pub oom_kill_count: Option<u64>,
}

/// A memory hierarchy, and our place in it.
#[derive(Debug, Clone)]
pub struct Cgroup {
    proc: PathBuf,
    version: u8,
    /// Where it is mounted.
    mount: PathBuf,
    /// Which part of it is.
    root: String,
    path: String,
    dir: PathBuf,
    id: u64,
}

impl Cgroup {
    /// That of this process.
    ///
    /// # Errors
    /// When there is none that could be read.
    pub fn of_this_process() -> Result<Self, CgroupError> {
        Self::find(Path::new("/proc"))
    }

    /// That of the process that this `/proc` calls `self`.
    ///
    /// # Errors
    /// When there is none that could be read.
    pub fn find(proc: &Path) -> Result<Self, CgroupError> {
        let own = proc.join("self");
        let read = |name: &str| read_text(&own.join(name)).ok_or_else(|| CgroupError::Unreadable(own.join(name)));
        let (cgroups, mounts) = (read("cgroup")?, read("mountinfo")?);
        let (version, mount) = memory_mount(&mounts, &cgroups).ok_or(CgroupError::NoController)?;
        let path = path_in(&cgroups, version).ok_or(CgroupError::NoController)?.to_owned();
        let dir = folder(&mount, &path);
        let about = fs::metadata(&dir).map_err(|source| CgroupError::NotMounted {
            path: path.clone(),
            mount: mount.point.clone(),
            source,
        })?;
        let (mount, root) = (mount.point, mount.root);
        Ok(Self { proc: proc.to_owned(), version, mount, root, path, dir, id: about.ino() })
    }

    /// 1 or 2.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the kernel calls it: its folder's inode number (`cgroup_id`, include/linux/cgroup.h).
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is the whole machine's. Only the root of a hierarchy has no parent, and none of these files.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.path == "/" && self.root == "/" && !self.dir.join("memory.max").exists() && !self.is_limited_v1()
    }

    /// What tells its processes, and those below it, from others.
    #[must_use]
    pub(super) fn fence(&self) -> Fence {
        let controller = if self.version == 1 { "memory" } else { "" };
        Fence { controller: controller.to_owned(), path: self.path.clone() }
    }

    /// Its figures now.
    #[must_use]
    pub fn facts(&self) -> CgroupFacts {
        self.facts_at(&self.dir, &self.path)
    }

    /// Those of the cgroup of a process, which may be below ours; `None` when it is gone.
    #[must_use]
    pub fn facts_of_pid(&self, pid: u32) -> Option<CgroupFacts> {
        let cgroups = read_text(&self.proc.join(pid.to_string()).join("cgroup"))?;
        let path = path_in(&cgroups, self.version)?;
        let mount = Mount { point: self.mount.clone(), root: self.root.clone() };
        Some(self.facts_at(&folder(&mount, path), path))
    }

    fn is_limited_v1(&self) -> bool {
        self.version == 1
            && number(&self.dir.join("memory.limit_in_bytes")).is_some_and(|limit| limit < V1_NO_LIMIT_BYTES)
    }

    fn facts_at(&self, dir: &Path, path: &str) -> CgroupFacts {
        let (limit, usage, events) = match self.version {
            1 => ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
            _ => ("memory.max", "memory.current", "memory.events"),
        };
        let levels = dir.ancestors().take_while(|level| level.starts_with(&self.mount)).take(MAX_LEVELS);
        let limits = levels.filter_map(|level| number(&level.join(limit)));
        CgroupFacts {
            path: path.to_owned(),
            version: self.version,
            limit_bytes: limits.filter(|bytes| *bytes < V1_NO_LIMIT_BYTES).min(),
            usage_bytes: number(&dir.join(usage)),
            oom_kill_count: read_text(&dir.join(events)).and_then(|text| keyed(&text, "oom_kill")),
        }
    }
}

/// A mounted part of a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The path in the hierarchy of what is mounted.
    root: String,
}

/// The version of the hierarchy with the memory controller, and its mount.
fn memory_mount(mountinfo: &str, cgroups: &str) -> Option<(u8, Mount)> {
    let has_v1 = path_in(cgroups, 1).is_some();
    mountinfo.lines().find_map(|line| {
        // proc(5): id, parent, device, root, mount point, options ... - type, source, super options.
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (unescaped(left.next()?), PathBuf::from(unescaped(left.next()?)));
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
        let mount = Mount { point, root };
        match kind {
            "cgroup" if has_v1 && options.split(',').any(|option| option == "memory") => Some((1, mount)),
            "cgroup2" if !has_v1 => Some((2, mount)),
            _ => None,
        }
    })
}

/// The path in the hierarchy of that version: the line with `memory` in its list, or the one with none.
fn path_in(cgroups: &str, version: u8) -> Option<&str> {
    cgroups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it =
            if version == 1 { controllers.split(',').any(|name| name == "memory") } else { controllers.is_empty() };
        is_it.then_some(path)
    })
}

/// Where a cgroup of that path is. Without a cgroup namespace, what is mounted is a part of the path; with one
/// that the process has moved out of (`/../x`), the mount itself is the best there is.
fn folder(mount: &Mount, path: &str) -> PathBuf {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let below = match path.strip_prefix(mount.root.trim_end_matches('/')) {
        Some(below) if below.is_empty() || below.starts_with('/') => below,
        _ => path,
    };
    let below = below.trim_start_matches('/');
    let found = mount.point.join(below);
    if below.split('/').any(|part| part == "..") || !found.is_dir() { mount.point.clone() } else { found }
}

/// Spaces and the like are in octal in mountinfo.
fn unescaped(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// `max` is no number, and so no limit.
fn number(file: &Path) -> Option<u64> {
    read_text(file)?.trim().parse().ok()
}

/// The number behind a word at the start of a line.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/proc` and a `/sys/fs/cgroup` in a folder.
    struct World(tempfile::TempDir);

    impl World {
        fn new(cgroup: &str, mountinfo: &str) -> Self {
            let world = Self(tempfile::tempdir().unwrap());
            let root = world.0.path().display().to_string();
            world.write("proc/self/cgroup", cgroup);
            world.write("proc/self/mountinfo", &mountinfo.replace("ROOT", &root));
            world
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn find(&self) -> Result<Cgroup, CgroupError> {
            Cgroup::find(&self.0.path().join("proc"))
        }

        fn dir(&self, cgroup: &Cgroup) -> String {
            cgroup.dir().strip_prefix(self.0.path()).unwrap().display().to_string()
        }
    }

    const V1: &str = "30 23 0:26 / ROOT/cg/memory rw - cgroup cgroup rw,memory\n";
    const V2: &str = "35 24 0:30 / ROOT/cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_host_with_version_1() {
        let world = World::new("4:memory:/app/one\n0::/\n", V1);
        world.write("cg/memory/app/one/memory.limit_in_bytes", "9223372036854771712\n");
        world.write("cg/memory/app/memory.limit_in_bytes", "1048576\n");
        world.write("cg/memory/app/one/memory.usage_in_bytes", "4096\n");
        world.write("cg/memory/app/one/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        let cgroup = world.find().unwrap();
        assert_eq!((cgroup.version(), world.dir(&cgroup).as_str()), (1, "cg/memory/app/one"));
        assert!(!cgroup.is_root());
        let facts = cgroup.facts();
        assert_eq!(
            (facts.limit_bytes, facts.usage_bytes, facts.oom_kill_count),
            (Some(1_048_576), Some(4096), Some(3))
        );
        assert!(cgroup.fence().lets_in("4:memory:/app/one/below\n") && !cgroup.fence().lets_in("4:memory:/app\n"));
    }

    #[test]
    fn a_docker_container_with_version_1_sees_the_hosts_path() {
        let mounts = "30 23 0:26 /docker/abc ROOT/cg/memory ro - cgroup cgroup rw,memory\n";
        let world = World::new("4:memory:/docker/abc\n", mounts);
        world.write("cg/memory/memory.limit_in_bytes", "67108864\n");
        let cgroup = world.find().unwrap();
        assert_eq!(world.dir(&cgroup), "cg/memory");
        assert_eq!(cgroup.facts().limit_bytes, Some(67_108_864));
        assert!(!cgroup.is_root());
    }

    #[test]
    fn a_container_with_version_2_and_a_namespace_sees_a_root() {
        let world = World::new("0::/\n", V2);
        world.write("cg/memory.max", "max\n");
        world.write("cg/memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n");
        let cgroup = world.find().unwrap();
        assert_eq!((cgroup.version(), world.dir(&cgroup).as_str()), (2, "cg"));
        let facts = cgroup.facts();
        assert_eq!((facts.limit_bytes, facts.oom_kill_count), (None, Some(1)));
        assert!(!cgroup.is_root(), "the root of a hierarchy has no memory.max");
    }

    #[test]
    fn a_host_with_both_has_memory_in_version_1() {
        let world = World::new("4:hugetlb,memory:/x\n0::/y\n", &format!("{V2}{V1}"));
        world.write("cg/memory/x/memory.usage_in_bytes", "1\n");
        assert_eq!(world.find().unwrap().version(), 1);
    }

    #[test]
    fn the_machines_own_root() {
        let world = World::new("0::/\n", V2);
        world.write("cg/cgroup.procs", "");
        assert!(world.find().unwrap().is_root());
    }

    #[test]
    fn a_process_elsewhere_has_figures_of_its_own() {
        let world = World::new("0::/a\n", V2);
        world.write("cg/a/memory.max", "100\n");
        world.write("cg/a/b/memory.max", "50\n");
        world.write("proc/7/cgroup", "0::/a/b\n");
        let cgroup = world.find().unwrap();
        assert_eq!(cgroup.facts_of_pid(7).unwrap().limit_bytes, Some(50));
        assert_eq!(cgroup.facts_of_pid(8), None);
    }

    #[test]
    fn what_is_missing_is_said() {
        let world = World::new("0::/\n", "1 1 0:1 / / rw - ext4 /dev/vda rw\n");
        assert_eq!(world.find().unwrap_err().to_string(), "no memory controller is mounted");
        let world = World::new("0::/../other\n", V2);
        assert!(world.find().unwrap_err().to_string().contains("is not to be found below"));
        world.write("cg/memory.max", "5\n");
        assert_eq!(world.dir(&world.find().unwrap()), "cg", "outside our namespace: what is mounted is the best");
        assert!(Cgroup::find(Path::new("/nonexistent")).is_err());
    }
}
