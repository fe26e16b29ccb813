//! Our own memory cgroup: where it is, how much it may use, how many it has lost.
//!
//! Two versions (`Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`). A controller belongs to
//! one hierarchy at a time, so where a v1 hierarchy has `memory` it is the one, whatever v2 shows besides.
//!
//! `/proc/PID/cgroup` has a path, `/proc/self/mountinfo` what part of the hierarchy is mounted where. Both are
//! relative to our cgroup namespace, if we have one, and then go up with `..` for what is above it
//! (`cgroup_namespaces(7)`). Where the two do not fit, the mounted part is searched for a cgroup that lists us as
//! a member.
//!
//! Finding it may fail; after that, what cannot be read is a problem to mention ([`Reading::problems`]) and a
//! gap in the facts. Nothing here writes, waits, or decides what the facts mean.

pub(super) mod charge;
pub(super) mod counter;
pub(super) mod names;
mod uncounted;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::procfs::Fence;

/// From here on a limit is none: v1 says "no limit" as the largest multiple of a page in an `i64`
/// (`PAGE_COUNTER_MAX`, `include/linux/page_counter.h`), and no machine has 4 EiB.
const NO_LIMIT_BYTES: u64 = 1 << 62;

/// A search looks at no more folders: it is for containers, which see a few. A whole node has
/// thousands, and there the path is the right one.
const SEARCHED_MAX: usize = 4096;

/// The file system that cgroups are looked up in.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    root: PathBuf,
}

impl Default for CgroupRoot {
    fn default() -> Self {
        Self::below("/")
    }
}

impl CgroupRoot {
    /// This folder stands for `/`: it has a `proc`, and mount points are below it.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn proc(&self, file: &str) -> PathBuf {
        self.root.join("proc").join(file)
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        read(&self.proc(file))
    }
}

/// Why there is no cgroup, or no figure.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file says something else than it should.
    #[error("{} has no {what}", file.display())]
    Unexpected {
        /// Which file.
        file: PathBuf,
        /// What should be in there.
        what: &'static str,
    },
    /// The kernel has no memory cgroups, or their hierarchy is not mounted here.
    #[error("no hierarchy of memory cgroups is mounted")]
    NotMounted,
    /// The mounted part does not have our own cgroup.
    #[error("the memory cgroup {0} is not in what is mounted here")]
    Hidden(String),
    /// v2 without the memory controller here or above.
    #[error("the memory controller is off in {}", .0.display())]
    Off(PathBuf),
    /// v2's root cgroup.
    #[error("{} is the root cgroup, which has no memory.* files by design", .0.display())]
    IsRoot(PathBuf),
}

/// What is known of a memory cgroup at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFacts {
    /// As `/proc/PID/cgroup` has it: relative to our cgroup namespace.
    pub path: String,
    /// 1 or 2.
    pub version: u8,
    /// The smallest limit here or above; none if there is none.
    pub limit_bytes: Option<u64>,
    /// In use where that limit applies, else here.
    pub usage_bytes: Option<u64>,
    /// OOM kills so far. v1 counts those of the cgroup's own members; v2 those below, too.
    pub oom_kill_count: Option<u64>,
}

/// Facts, and why some are missing.
#[derive(Debug)]
pub struct Reading {
    /// What could be read.
    pub facts: CgroupFacts,
    /// What could not.
    pub problems: Vec<CgroupError>,
}

/// A memory cgroup, and the hierarchy as far as it is visible.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// As in `/proc/self/cgroup`.
    pub path: String,
    /// Its folder.
    pub dir: PathBuf,
    /// 1 or 2.
    pub version: u8,
    /// The kernel's own id of it (`cgroup_id`, include/linux/cgroup.h): its folder's inode number. Unique in
    /// its hierarchy.
    pub id: u64,
    mounts: Vec<Mount>,
    root: CgroupRoot,
}

impl Cgroup {
    /// The one of this process.
    pub fn find(root: &CgroupRoot) -> Result<Self, CgroupError> {
        let own = root.read("self/cgroup")?;
        let mounts = root.read("self/mountinfo")?;
        let (version, path) = own_path(&own).ok_or(CgroupError::NotMounted)?;
        let mounts: Vec<Mount> = mounts.lines().filter_map(|line| Mount::parse(line, version, root)).collect();
        if mounts.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        let dir = place(path, &mounts).or_else(|| search(root, &mounts));
        let dir = dir.ok_or_else(|| CgroupError::Hidden(path.to_owned()))?;
        let id = fs::metadata(&dir).map_err(|error| CgroupError::Read(dir.clone(), error))?.ino();
        Ok(Self { path: path.to_owned(), dir, version, id, mounts, root: root.clone() })
    }

    /// What is known of it now.
    #[must_use]
    pub fn facts(&self) -> CgroupFacts {
        self.read().facts
    }

    /// What is known of it now, and why not more.
    #[must_use]
    pub fn read(&self) -> Reading {
        self.read_at(&self.path, &self.dir)
    }

    /// Whether a kill in the cgroup with that path may be one of all of its members, or of one above it (`memory.oom.group`,
    /// `mem_cgroup_get_oom_group` in mm/memcontrol.c).
    #[must_use]
    pub(in crate::monitor) fn kills_groups_at(&self, path: &str) -> bool {
        let is_set = |level: PathBuf| number(&level.join(OOM_GROUP), "number").is_ok_and(|set| set == 1);
        let levels = || place(path, &self.mounts).map_or_else(Vec::new, |dir| self.levels(&dir));
        self.version == 2 && levels().into_iter().any(is_set)
    }

    fn read_at(&self, path: &str, dir: &Path) -> Reading {
        let files = Files::of(self.version);
        let mut levels = self.levels(dir);
        let mut problems = Vec::new();
        // In v2 the controller may be off here: then the next one above that has it is charged.
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
            return Reading { facts, problems: vec![Files::why_none(dir)] };
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

    /// The smallest limit here or above, and the folder of the cgroup that has it.
    fn limited_level(&self) -> Option<(u64, PathBuf)> {
        let files = Files::of(self.version);
        let mut levels = self.levels(&self.dir);
        levels.retain(|level| level.join(files.usage).exists());
        files.smallest_limit(&levels, &mut Vec::new())
    }

    /// Its folder and those above, as far as they are mounted; innermost first.
    #[must_use]
    pub fn visible(&self) -> Vec<PathBuf> {
        self.levels(&self.dir)
    }

    /// The folder and those above, as far as they are mounted; innermost first.
    fn levels(&self, dir: &Path) -> Vec<PathBuf> {
        let top = self.mounts.iter().map(|mount| &mount.point).find(|point| dir.starts_with(point));
        let above = top.map_or(0, |top| top.components().count());
        dir.ancestors().take_while(|level| level.components().count() >= above).map(Path::to_owned).collect()
    }
}

/// Version 2's file that says whether the members of a cgroup die together.
const OOM_GROUP: &str = "memory.oom.group";

/// What the files are called.
struct Files {
    limit: &'static str,
    usage: &'static str,
    events: &'static str,
    /// Where the kernel sums up the limits above, invisible ones included.
    sum: Option<&'static str>,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    events: "memory.oom_control",
    sum: Some("memory.stat"),
};

const V2: Files = Files { limit: "memory.max", usage: "memory.current", events: "memory.events", sum: None };

impl Files {
    const fn of(version: u8) -> &'static Self {
        if version == 1 { &V1 } else { &V2 }
    }

    /// Why a cgroup of version 2 has no files of the memory controller. The root has neither those nor `cgroup.type`, which
    /// all others have (`cgroup_base_files`, kernel/cgroup/cgroup.c).
    fn why_none(dir: &Path) -> CgroupError {
        let is_root = dir.join("cgroup.controllers").exists() && !dir.join("cgroup.type").exists();
        if is_root { CgroupError::IsRoot(dir.to_owned()) } else { CgroupError::Off(dir.to_owned()) }
    }

    /// The smallest limit and where it applies. A limit above what is visible is taken for one of the
    /// innermost, whose usage is all that can be read.
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
            // An extra: where it is missing, the limits themselves have told.
            if let Ok(bytes) = entry(&own.join(file), "hierarchical_memory_limit") {
                consider(bytes, own);
            }
        }
        smallest
    }
}

/// A part of the hierarchy that is mounted.
#[derive(Debug, Clone)]
struct Mount {
    /// Which part: the path of its topmost cgroup.
    top: String,
    /// Where.
    point: PathBuf,
    /// Each cgroup counts its own only (cgroup-v2.rst, `memory_localevents`).
    has_local_events: bool,
}

impl Mount {
    /// A line of `mountinfo` (proc(5)), if it is of that version and, in v1, the memory controller's.
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

/// What tells the processes of our own cgroup, and those below it, from others. Nothing needs to be mounted for that.
pub(super) fn own_fence(root: &CgroupRoot) -> Result<Fence, CgroupError> {
    let own = root.read("self/cgroup")?;
    let (version, path) = own_path(&own).ok_or(CgroupError::NotMounted)?;
    Ok(Fence::around(version, path))
}

/// In which version's hierarchy memory is counted, and where we are there.
fn own_path(own: &str) -> Option<(u8, &str)> {
    [1, 2].into_iter().find_map(|version| Some((version, path_in(own, version)?)))
}

/// The path in `/proc/PID/cgroup` (cgroups(7)): of the v1 hierarchy with the memory controller, or of v2.
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

/// The folder of the cgroup `path` in the first mount that has it.
fn place(path: &str, mounts: &[Mount]) -> Option<PathBuf> {
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

/// The folder whose members include this process, the mounts' tops first.
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

/// `mountinfo` writes blanks and the like as three octal digits after a backslash (proc(5)).
fn unescape(field: &str) -> String {
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

/// Other mounts and the names of others' cgroups may be any bytes.
fn read(file: &Path) -> Result<String, CgroupError> {
    let bytes = fs::read(file).map_err(|error| CgroupError::Read(file.to_owned(), error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A file with one number; `max` is the largest.
fn number(file: &Path, what: &'static str) -> Result<u64, CgroupError> {
    let text = read(file)?;
    let number = if text.trim() == "max" { Some(u64::MAX) } else { text.trim().parse().ok() };
    number.ok_or_else(|| CgroupError::Unexpected { file: file.to_owned(), what })
}

/// A number by its name, in a file with one a line.
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
