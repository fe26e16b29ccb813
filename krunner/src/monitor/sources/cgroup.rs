//! Our own memory cgroup: its location, limit, usage and OOM kill count.
//!
//! Supports cgroup v1 and v2 (`Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`). A controller
//! belongs to one hierarchy at a time: if a v1 hierarchy has `memory`, it is used even if v2 is mounted as well.
//!
//! `/proc/PID/cgroup` contains the path, `/proc/self/mountinfo` which part of the hierarchy is mounted where. Both are
//! relative to our cgroup namespace and begin with `..` for paths above it (`cgroup_namespaces(7)`). If the two do not
//! match, the mounted part is searched for a cgroup that has us as a member.
//!
//! Finding the cgroup may fail. After that, files that cannot be read are listed in [`Reading::problems`], and their
//! facts are missing. This module does not write, block or interpret.

pub(in crate::monitor) mod charge;
pub(in crate::monitor) mod counter;
mod files;
#[cfg(any(test, fuzzing))]
pub(in crate::monitor) mod fuzzing;
pub(in crate::monitor) mod limits;
pub(in crate::monitor) mod members;
mod monotonic_count;
pub(in crate::monitor) mod names;
mod swap;
mod uncounted;
pub(in crate::monitor) mod usage;

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::monitor::model::cgroup::{CgroupFacts, CgroupFilter};

/// Limits from this value on mean "no limit", which v1 shows as the largest page multiple in an `i64`
/// (`PAGE_COUNTER_MAX`, `include/linux/page_counter.h`).
const NO_LIMIT_BYTES: u64 = 1 << 62;

/// Inode number of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`, `include/linux/proc_ns.h`).
const INIT_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

/// Maximum number of directories to search. The search is for containers, which see a few; on a whole node, which has
/// thousands, the path is correct.
const SEARCHED_MAX: usize = 4096;

/// The root directory to look up cgroups in, for tests.
#[derive(Debug, Clone)]
pub(crate) struct CgroupRoot {
    root: PathBuf,
}

impl Default for CgroupRoot {
    fn default() -> Self {
        Self::below("/")
    }
}

impl CgroupRoot {
    /// Uses this directory as `/`: it has a `proc`, and mount points are below it.
    #[must_use]
    pub(crate) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn proc(&self, file: &str) -> PathBuf {
        self.root.join("proc").join(file)
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        read(&self.proc(file))
    }
}

/// Why the cgroup or one of its values is unavailable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file has unexpected contents.
    #[error("{} has no {what}", file.display())]
    Unexpected {
        /// Path of the file.
        file: PathBuf,
        /// The missing value.
        what: &'static str,
    },
    /// The kernel has no memory cgroups, or their hierarchy is not mounted.
    #[error("no memory cgroup hierarchy is mounted")]
    NotMounted,
    /// The mounted part does not contain our cgroup.
    #[error("the memory cgroup {0} is outside the mounted hierarchy")]
    Hidden(String),
    /// v2 without the memory controller in the cgroup or above.
    #[error("the memory controller is disabled in {}", .0.display())]
    Off(PathBuf),
    /// The root cgroup of v2, which has no `memory.*` files by design.
    #[error("{} is the root cgroup, which has no memory.* files", .0.display())]
    IsRoot(PathBuf),
}

/// Facts, and the reasons why some are missing.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The facts that could be read.
    pub facts: CgroupFacts,
    /// Errors of the facts that could not be read.
    pub problems: Vec<CgroupError>,
}

/// A memory cgroup and the visible part of its hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// Path as in `/proc/self/cgroup`.
    pub path: String,
    /// Its directory below a mount point.
    pub dir: PathBuf,
    /// Cgroup version, 1 or 2.
    pub version: u8,
    /// The kernel's id (`cgroup_id`, include/linux/cgroup.h), the inode number of its directory. Unique within its
    /// hierarchy.
    pub id: u64,
    mounts: Vec<Mount>,
    root: CgroupRoot,
    /// We are not in the initial cgroup namespace.
    has_own_namespace: bool,
}

impl Cgroup {
    /// Finds the memory cgroup of this process.
    pub(crate) fn find(root: &CgroupRoot) -> Result<Self, CgroupError> {
        let own = root.read("self/cgroup")?;
        let mounts = root.read("self/mountinfo")?;
        let (version, path) = own_path(&own).ok_or(CgroupError::NotMounted)?;
        let mounts: Vec<Mount> = mounts.lines().filter_map(|line| Mount::parse(line, version, root)).collect();
        if mounts.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        let dir = dir_of(path, &mounts).or_else(|| search(root, &mounts));
        let dir = dir.ok_or_else(|| CgroupError::Hidden(path.to_owned()))?;
        let id = fs::metadata(&dir).map_err(|error| CgroupError::Read(dir.clone(), error))?.ino();
        let has_own_namespace = !is_in_host_cgroup_namespace(root);
        Ok(Self { path: path.to_owned(), dir, version, id, mounts, root: root.clone(), has_own_namespace })
    }

    /// Reads the current facts.
    #[must_use]
    pub(crate) fn facts(&self) -> CgroupFacts {
        self.read().facts
    }

    /// Reads the current facts, with the errors of those that are missing.
    #[must_use]
    pub(crate) fn read(&self) -> Reading {
        self.read_at(&self.path, &self.dir)
    }

    /// Whether the cgroup at this path or one of its ancestors has `memory.oom.group` set, so that an OOM kill may kill
    /// all of its members (`mem_cgroup_get_oom_group` in mm/memcontrol.c).
    #[must_use]
    pub(in crate::monitor) fn kills_groups_at(&self, path: &str) -> bool {
        let is_set = |level: PathBuf| number(&level.join(OOM_GROUP), "number").is_ok_and(|set| set == 1);
        let levels = || dir_of(path, &self.mounts).map_or_else(Vec::new, |dir| self.levels(&dir));
        self.has_group_kills() && levels().into_iter().any(is_set)
    }

    /// Whether the kernel knows `memory.oom.group` in this hierarchy: cgroup v1 has none.
    #[must_use]
    pub(in crate::monitor) fn has_group_kills(&self) -> bool {
        self.version == 2
    }

    /// Id and OOM kill count of the cgroup at this path; `None` if it is not visible.
    #[must_use]
    pub(in crate::monitor) fn kills_at(&self, path: &str) -> Option<(u64, u64)> {
        let dir = dir_of(path, &self.mounts)?;
        let count = self.read_at(path, &dir).facts.oom_kill_count?;
        Some((fs::metadata(dir).ok()?.ino(), count))
    }

    fn read_at(&self, path: &str, dir: &Path) -> Reading {
        let files = MemcgFiles::of(self.version);
        let mut levels = self.levels(dir);
        let mut problems = Vec::new();
        // In v2 the controller may be disabled here: the nearest ancestor that has it is charged.
        let charged = levels.iter().position(|level| level.join(files.usage).exists());
        levels.drain(..charged.unwrap_or(levels.len()));
        let Some(own) = levels.first().cloned() else {
            let facts = CgroupFacts {
                path: path.to_owned(),
                version: self.version,
                limit_bytes: None,
                usage_bytes: None,
                oom_kill_count: None,
            };
            return Reading { facts, problems: vec![MemcgFiles::why_none(dir)] };
        };
        let limit = files.smallest_limit(&levels, &mut problems);
        let limited = limit.as_ref().map_or(&own, |(_, level)| level);
        let mut keep = |read: Result<u64, CgroupError>| read.map_err(|problem| problems.push(problem)).ok();
        let usage_bytes = keep(number(&limited.join(files.usage), "number"));
        let oom_kill_count = keep(entry(&own.join(files.events), "oom_kill"));
        let facts = CgroupFacts {
            path: path.to_owned(),
            version: self.version,
            limit_bytes: limit.map(|(bytes, _)| bytes),
            usage_bytes,
            oom_kill_count,
        };
        Reading { facts, problems }
    }

    /// The directories of this cgroup and its visible ancestors, innermost first.
    #[must_use]
    pub(crate) fn visible(&self) -> Vec<PathBuf> {
        self.levels(&self.dir)
    }

    /// `dir` and its parents up to the mount point, innermost first.
    fn levels(&self, dir: &Path) -> Vec<PathBuf> {
        let top = self.mounts.iter().map(|mount| &mount.point).find(|point| dir.starts_with(point));
        let above = top.map_or(0, |top| top.components().count());
        dir.ancestors().take_while(|level| level.components().count() >= above).map(Path::to_owned).collect()
    }
}

/// v2's file that makes the OOM killer kill all members of a cgroup.
const OOM_GROUP: &str = "memory.oom.group";

/// File names of a cgroup version.
struct MemcgFiles {
    limit: &'static str,
    usage: &'static str,
    events: &'static str,
    /// The file with the smallest limit of all ancestors, including invisible ones.
    sum: Option<&'static str>,
}

const V1: MemcgFiles = MemcgFiles {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    events: "memory.oom_control",
    sum: Some("memory.stat"),
};

const V2: MemcgFiles = MemcgFiles { limit: "memory.max", usage: "memory.current", events: "memory.events", sum: None };

impl MemcgFiles {
    const fn of(version: u8) -> &'static Self {
        if version == 1 { &V1 } else { &V2 }
    }

    /// Why a v2 cgroup has no files of the memory controller. The root has neither those nor `cgroup.type`, which every
    /// other cgroup has (`cgroup_base_files`, kernel/cgroup/cgroup.c).
    fn why_none(dir: &Path) -> CgroupError {
        let is_root = dir.join("cgroup.controllers").exists() && !dir.join("cgroup.type").exists();
        if is_root { CgroupError::IsRoot(dir.to_owned()) } else { CgroupError::Off(dir.to_owned()) }
    }

    /// The smallest limit and the directory of its cgroup. The limit of an invisible ancestor is attributed to the
    /// innermost cgroup, whose usage is the closest that can be read.
    fn smallest_limit(&self, levels: &[PathBuf], problems: &mut Vec<CgroupError>) -> Option<(u64, PathBuf)> {
        let mut smallest: Option<(u64, PathBuf)> = None;
        let mut consider = |bytes: u64, level: &PathBuf| {
            if bytes < NO_LIMIT_BYTES && smallest.as_ref().is_none_or(|(least, _)| bytes < *least) {
                smallest = Some((bytes, level.clone()));
            }
        };
        for (depth, level) in levels.iter().enumerate() {
            match number(&level.join(self.limit), "limit") {
                Ok(bytes) => consider(bytes, level),
                // The root of v2 has no limit.
                Err(CgroupError::Read(_, error)) if depth > 0 && error.kind() == io::ErrorKind::NotFound => {}
                Err(problem) => problems.push(problem),
            }
        }
        if let (Some(file), Some(own)) = (self.sum, levels.first()) {
            // Optional: if it is missing, the visible limits are used.
            if let Ok(bytes) = entry(&own.join(file), "hierarchical_memory_limit") {
                consider(bytes, own);
            }
        }
        smallest
    }
}

/// A mounted part of the hierarchy.
#[derive(Debug, Clone)]
struct Mount {
    /// Path of its topmost cgroup.
    top: String,
    /// Where it is mounted.
    point: PathBuf,
    /// Mount option `memory_localevents`: each cgroup counts only its own events (cgroup-v2.rst).
    has_local_events: bool,
}

impl Mount {
    /// Parses a line of `mountinfo` (proc(5)); `None` unless it is a hierarchy of this version and, in v1, the memory
    /// controller's.
    fn parse(line: &str, version: u8, root: &CgroupRoot) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (top, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let file_system = kind.next()?;
        let options: Vec<&str> = kind.nth(1).map(|options| options.split(',').collect()).unwrap_or_default();
        let fits = match version {
            1 => file_system == "cgroup" && options.contains(&"memory"),
            _ => file_system == "cgroup2",
        };
        let point = root.root.join(unescape(point).trim_start_matches('/'));
        let has_local_events = options.contains(&"memory_localevents");
        fits.then(|| Self { top: unescape(top), point, has_local_events })
    }
}

/// Whether paths of cgroups are those of the machine: our cgroup namespace is the initial one, or there are none.
#[must_use]
pub(in crate::monitor) fn is_in_host_cgroup_namespace(root: &CgroupRoot) -> bool {
    fs::metadata(root.proc("self/ns/cgroup")).map_or(true, |namespace| namespace.ino() == INIT_CGROUP_NAMESPACE)
}

/// A filter for processes in our own cgroup and its descendants. Does not require a mounted hierarchy.
pub(in crate::monitor) fn own_cgroup_filter(root: &CgroupRoot) -> Result<CgroupFilter, CgroupError> {
    let own = root.read("self/cgroup")?;
    let (version, path) = own_path(&own).ok_or(CgroupError::NotMounted)?;
    Ok(CgroupFilter::new(version, path))
}

/// The path of a process's memory cgroup, from the text of its `/proc/PID/cgroup`.
#[must_use]
pub(crate) fn memory_cgroup(cgroups: &str) -> Option<&str> {
    own_path(cgroups).map(|(_, path)| path)
}

/// The version of the memory controller's hierarchy, and our path in it.
fn own_path(own: &str) -> Option<(u8, &str)> {
    [1, 2].into_iter().find_map(|version| Some((version, path_in(own, version)?)))
}

/// The path from `/proc/PID/cgroup` (cgroups(7)) in the v1 hierarchy with the memory controller, or in v2.
fn path_in(text: &str, version: u8) -> Option<&str> {
    let mut lines = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let found = lines.find(|(hierarchy, controllers, _)| match version {
        1 => controllers.split(',').any(|controller| controller == "memory"),
        _ => *hierarchy == "0" && controllers.is_empty(),
    });
    found.map(|(_, _, path)| path)
}

/// The directory of the cgroup `path` in the first mount that contains it.
fn dir_of(path: &str, mounts: &[Mount]) -> Option<PathBuf> {
    let wanted = steps(path);
    let candidates = mounts.iter().filter_map(|mount| {
        let rest = wanted.strip_prefix(steps(&mount.top).as_slice())?;
        (!rest.contains(&"..")).then(|| rest.iter().fold(mount.point.clone(), |dir, step| dir.join(step)))
    });
    candidates.into_iter().find(|dir| dir.is_dir())
}

fn steps(path: &str) -> Vec<&str> {
    path.split('/').filter(|step| !step.is_empty()).collect()
}

/// Searches breadth-first for the cgroup that has this process as a member.
fn search(root: &CgroupRoot, mounts: &[Mount]) -> Option<PathBuf> {
    let own = fs::read_link(root.proc("self")).ok()?;
    let own = own.to_str()?;
    let mut waiting: VecDeque<PathBuf> = mounts.iter().map(|mount| mount.point.clone()).collect();
    for _ in 0..SEARCHED_MAX {
        let dir = waiting.pop_front()?;
        if read(&dir.join("cgroup.procs")).is_ok_and(|members| members.lines().any(|member| member == own)) {
            return Some(dir);
        }
        let inner = fs::read_dir(&dir).into_iter().flatten().flatten();
        let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(inner.map(|entry| entry.path()).take(SEARCHED_MAX.saturating_sub(waiting.len())));
    }
    None
}

/// Decodes `mountinfo`'s octal escapes of blanks and similar characters (proc(5)).
pub(in crate::monitor) fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut parts = field.split('\\');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

/// Reads a file lossily: names of other mounts and cgroups may be any bytes.
fn read(file: &Path) -> Result<String, CgroupError> {
    let bytes = fs::read(file).map_err(|error| CgroupError::Read(file.to_owned(), error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a file with one number; `max` is `u64::MAX`.
fn number(file: &Path, what: &'static str) -> Result<u64, CgroupError> {
    let text = read(file)?;
    let number = if text.trim() == "max" { Some(u64::MAX) } else { text.trim().parse().ok() };
    number.ok_or_else(|| CgroupError::Unexpected { file: file.to_owned(), what })
}

/// Reads a value by its key from a file of `key value` lines.
fn entry(file: &Path, name: &'static str) -> Result<u64, CgroupError> {
    let text = read(file)?;
    let value = text.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name);
    value
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| CgroupError::Unexpected { file: file.to_owned(), what: name })
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
