//! Maps the cgroup ids in the tracer's records to directories.
//!
//! An id is the inode number of a cgroup's directory (`cgroup_id()`, include/linux/cgroup.h) and is never reused, so a
//! mapping stays valid after the cgroup is removed. Mappings come from a walk of the mounted hierarchy when the tracer
//! starts, from a record of each cgroup that one of our processes creates, and from a new walk when an unknown id
//! occurs. A cgroup that is not mounted here, as a sibling in most containers, has no mapping: the result is `None`,
//! never our own cgroup.
//!
//! Bounded by [`MAX_NAMES`], [`MAX_WALKED`] and [`WALK_SHARE`]. Opens directories, so it must not be used right after
//! an OOM kill at our own limit, see `charge`.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use super::Cgroup;
use super::files::{folders, inode};
use super::usage::UsageFiles;
use crate::monitor::explain::{CgroupView, LimitScope, MemoryUsage};
use crate::monitor::model::cgroup::CgroupFacts;

/// Maximum number of mappings, about 100 bytes each; the oldest are evicted. A large node has 2,000 cgroups.
const MAX_NAMES: usize = 4096;

/// Maximum number of directories per walk, 10 to 20 us each.
const MAX_WALKED: usize = 4096;

/// Minimum time between walks in multiples of the last walk's duration: walks take at most 2 % of the time.
const WALK_SHARE: u32 = 50;

/// Directories of memory cgroups by their ids.
#[derive(Debug)]
pub(in crate::monitor) struct CgroupNames {
    cgroup: Cgroup,
    dirs: BTreeMap<u64, PathBuf>,
    /// Ids in insertion order.
    ids: VecDeque<u64>,
    next_walk: Option<Instant>,
}

impl CgroupNames {
    /// Creates a map with only our own cgroup, which is never evicted.
    pub(in crate::monitor) fn new(cgroup: Cgroup) -> Self {
        let dirs = BTreeMap::from([(cgroup.id, cgroup.dir.clone())]);
        Self { cgroup, dirs, ids: VecDeque::new(), next_walk: None }
    }

    /// Adds all visible cgroups; ours and its descendants first.
    pub(in crate::monitor) fn walk(&mut self) {
        let begun = Instant::now();
        let mut left = MAX_WALKED;
        let tops = self.cgroup.mounts.iter().map(|mount| mount.point.clone());
        let tops: Vec<PathBuf> = std::iter::once(self.cgroup.dir.clone()).chain(tops).collect();
        for top in tops {
            self.walk_from(top, &mut left);
        }
        self.next_walk = Some(Instant::now() + begun.elapsed() * WALK_SHARE);
    }

    fn walk_from(&mut self, top: PathBuf, left: &mut usize) {
        let id = inode(&top);
        let mut waiting = VecDeque::from([(top, id)]);
        while let Some((dir, id)) = waiting.pop_front() {
            let Some(rest) = left.checked_sub(1) else { return };
            *left = rest;
            waiting.extend(folders(&dir).into_iter().take(*left));
            if id != 0 {
                self.learn(id, dir);
            }
        }
    }

    /// Adds a cgroup that one of our processes created. `name` is its directory name, empty if unknown.
    pub(in crate::monitor) fn add_created(&mut self, id: u64, parent_id: u64, name: &[u8]) {
        let name = Path::new(OsStr::from_bytes(name));
        let is_name = matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if let Some(parent) = self.dirs.get(&parent_id).filter(|_| is_name) {
            self.learn(id, parent.join(name));
        }
    }

    fn learn(&mut self, id: u64, dir: PathBuf) {
        if self.dirs.contains_key(&id) {
            return;
        }
        if self.ids.len() >= MAX_NAMES
            && let Some(oldest) = self.ids.pop_front()
        {
            self.dirs.remove(&oldest);
        }
        self.ids.push_back(id);
        self.dirs.insert(id, dir);
    }

    /// Current facts of the cgroup with this id; of a removed one only the path.
    pub(in crate::monitor) fn facts(&mut self, id: u64) -> Option<CgroupFacts> {
        if !self.dirs.contains_key(&id) && self.next_walk.is_none_or(|at| at <= Instant::now()) {
            self.walk();
        }
        let dir = self.dirs.get(&id)?;
        let path = self.cgroup.path_of(dir)?;
        if inode(dir) == id {
            return Some(self.cgroup.read_at(&path, dir).facts);
        }
        let version = self.cgroup.version;
        Some(CgroupFacts { path, version, limit_bytes: None, usage_bytes: None, oom_kill_count: None })
    }

    /// Position of the limiting cgroup `id` relative to ours, for a victim in the cgroup `victim`. Opens no files.
    #[must_use]
    pub(in crate::monitor) fn view(&self, id: Option<u64>, victim: Option<u64>) -> CgroupView {
        if let Some(dir) = id.and_then(|id| self.dirs.get(&id)) {
            return CgroupView { scope: self.cgroup.scope_of(dir), path: self.cgroup.path_of(dir) };
        }
        // Not visible: either the victim's own cgroup, which is not ours, or an ancestor.
        let scope = match id {
            None => LimitScope::Unknown,
            _ if id == victim => LimitScope::Beside,
            _ => LimitScope::Above,
        };
        CgroupView { scope, path: None }
    }

    /// Current memory usage of the cgroup with this id. Opens files.
    #[must_use]
    pub(in crate::monitor) fn usage(&self, id: u64) -> Option<MemoryUsage> {
        let dir = self.dirs.get(&id)?;
        UsageFiles::open(dir, self.cgroup.version).filter(|files| files.id() == id)?.read()
    }

    /// Whether the cgroup with this id is ours or a descendant; `None` if unknown.
    #[must_use]
    pub(in crate::monitor) fn is_ours(&self, id: u64) -> Option<bool> {
        self.dirs.get(&id).map(|dir| dir.starts_with(&self.cgroup.dir))
    }
}

impl Cgroup {
    /// Facts of a cgroup below ours; empty for ours. `None` if the path leads elsewhere. With `may_open` false only its path.
    #[must_use]
    pub(in crate::monitor) fn facts_below(&self, below: &Path, may_open: bool) -> Option<CgroupFacts> {
        let path = self.path_below(below)?;
        let dir = self.dir.join(below);
        if may_open && dir.is_dir() {
            return Some(self.read_at(&path, &dir).facts);
        }
        let version = self.version;
        Some(CgroupFacts { path, version, limit_bytes: None, usage_bytes: None, oom_kill_count: None })
    }

    /// The path of a cgroup below ours as `/proc/PID/cgroup` shows it here; `None` if it leads elsewhere.
    #[must_use]
    pub(in crate::monitor) fn path_below(&self, below: &Path) -> Option<String> {
        let is_below = below.components().all(|step| matches!(step, Component::Normal(_)));
        is_below.then(|| self.path_of(&self.dir.join(below)))?
    }

    /// The path of a directory as in `/proc/PID/cgroup`: for ours and its descendants based on our own path, for others
    /// based on the mount.
    pub(super) fn path_of(&self, dir: &Path) -> Option<String> {
        let below = |top: &str, rest: &Path| {
            let rest = rest.to_string_lossy();
            let top = top.trim_end_matches('/');
            if rest.is_empty() && !top.is_empty() { top.to_owned() } else { format!("{top}/{rest}") }
        };
        if let Ok(rest) = dir.strip_prefix(&self.dir) {
            return Some(below(&self.path, rest));
        }
        self.mounts.iter().find_map(|mount| Some(below(&mount.top, dir.strip_prefix(&mount.point).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::super::CgroupRoot;
    use super::*;

    /// A hierarchy of version 1 that is mounted as a whole; `/own` is ours.
    fn tree() -> (TempDir, CgroupNames) {
        let folder = TempDir::new().unwrap();
        for dir in ["proc/self", "m/own/job", "m/beside/deep"] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        write("proc/self/cgroup", "4:memory:/own\n");
        write("proc/self/mountinfo", "33 31 0:29 / /m rw - cgroup cgroup rw,memory\n");
        for (dir, limit) in [("own", 900), ("own/job", 500), ("beside", 700)] {
            write(&format!("m/{dir}/memory.limit_in_bytes"), &format!("{limit}\n"));
            write(&format!("m/{dir}/memory.usage_in_bytes"), "7\n");
            write(&format!("m/{dir}/memory.oom_control"), "oom_kill 3\n");
        }
        let cgroup = Cgroup::find(&CgroupRoot::below(folder.path())).unwrap();
        (folder, CgroupNames::new(cgroup))
    }

    fn id(folder: &TempDir, dir: &str) -> u64 {
        inode(&folder.path().join(dir))
    }

    fn path_and_limit(facts: Option<CgroupFacts>) -> Option<(String, Option<u64>)> {
        facts.map(|facts| (facts.path, facts.limit_bytes))
    }

    #[test]
    fn each_cgroup_has_its_own_path_and_limit() {
        let (folder, mut names) = tree();
        let mut of = |dir: &str| path_and_limit(names.facts(id(&folder, dir)));
        assert_eq!(of("m/own"), Some(("/own".into(), Some(900))));
        assert_eq!(of("m/own/job"), Some(("/own/job".into(), Some(500))));
        assert_eq!(of("m/beside"), Some(("/beside".into(), Some(700))));
        assert_eq!(of("m").unwrap().0, "/");
        assert_eq!(of("proc"), None, "does not fall back to our own");
        let is_ours = |dir: &str| names.is_ours(id(&folder, dir));
        let ours = ["m/own", "m/own/job", "m/beside/deep", "proc"].map(is_ours);
        assert_eq!(ours, [Some(true), Some(true), Some(false), None]);
    }

    #[test]
    fn limit_of_a_cgroup_without_an_id_has_no_place() {
        let (folder, names) = tree();
        let scope = |id, victim| names.view(id, victim).scope;
        assert_eq!(scope(Some(id(&folder, "m/own")), None), LimitScope::Container);
        assert_eq!(scope(Some(5), Some(5)), LimitScope::Beside);
        assert_eq!(scope(Some(5), Some(6)), LimitScope::Above);
        assert_eq!(scope(None, None), LimitScope::Unknown, "not that of a sibling");
    }

    #[test]
    fn cgroup_that_is_gone_keeps_its_path_and_has_no_figures() {
        let (folder, mut names) = tree();
        names.walk();
        let job = id(&folder, "m/own/job");
        fs::rename(folder.path().join("m/own/job"), folder.path().join("gone")).unwrap();
        assert_eq!(path_and_limit(names.facts(job)), Some(("/own/job".into(), None)));
        fs::create_dir(folder.path().join("m/own/job")).unwrap();
        assert_eq!(path_and_limit(names.facts(job)), Some(("/own/job".into(), None)), "another one took its place");
    }

    #[test]
    fn short_lived_cgroup_is_named_by_its_mkdir_record() {
        let (folder, mut names) = tree();
        names.walk();
        let own = id(&folder, "m/own");
        names.add_created(1 << 40, own, b"short");
        names.add_created(2 << 40, 1 << 40, b"inner");
        names.add_created(3 << 40, 5, b"of a parent that is not visible");
        names.add_created(4 << 40, own, b"");
        names.add_created(5 << 40, own, b"..");
        assert_eq!(path_and_limit(names.facts(1 << 40)), Some(("/own/short".into(), None)));
        assert_eq!(path_and_limit(names.facts(2 << 40)), Some(("/own/short/inner".into(), None)));
        assert_eq!([names.facts(3 << 40), names.facts(4 << 40), names.facts(5 << 40)], [None, None, None]);
    }

    #[test]
    fn names_are_bounded_and_our_own_stays() {
        let (folder, mut names) = tree();
        names.walk();
        let own = id(&folder, "m/own");
        for made in 0..2 * MAX_NAMES as u64 {
            names.add_created((1 << 40) + made, own, b"job");
        }
        assert_eq!((names.dirs.len(), names.ids.len()), (MAX_NAMES + 1, MAX_NAMES));
        assert_eq!(path_and_limit(names.facts(own)), Some(("/own".into(), Some(900))));
        assert_eq!(names.facts(1 << 40), None, "the oldest");
    }

    #[test]
    fn walks_are_rare() {
        let (folder, mut names) = tree();
        names.walk();
        names.next_walk = Some(Instant::now() + Duration::from_secs(9));
        fs::create_dir(folder.path().join("m/own/new")).unwrap();
        let new = id(&folder, "m/own/new");
        assert_eq!(names.facts(new), None);
        names.next_walk = None;
        assert_eq!(names.facts(new).map(|facts| facts.path).as_deref(), Some("/own/new"));
    }

    #[test]
    fn own_cgroup_may_be_the_top_of_what_is_visible() {
        let folder = TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("proc/self")).unwrap();
        fs::create_dir_all(folder.path().join("m/pod/box")).unwrap();
        fs::write(folder.path().join("proc/self/cgroup"), "0::/\n").unwrap();
        let mounts = "33 31 0:29 /../.. /m rw - cgroup2 cgroup2 rw\n34 31 0:29 / /m/pod/box rw - cgroup2 cgroup2 rw\n";
        fs::write(folder.path().join("proc/self/mountinfo"), mounts).unwrap();
        let mut names = CgroupNames::new(Cgroup::find(&CgroupRoot::below(folder.path())).unwrap());
        let mut path = |dir: &str| names.facts(id(&folder, dir)).map(|facts| facts.path);
        assert_eq!(path("m/pod/box").as_deref(), Some("/"));
        assert_eq!(path("m/pod").as_deref(), Some("/../../pod"));
    }
}
