//! Scratch cgroups with a memory limit, for cgroup v1 and v2, and the kernel's OOM kill counters.
//!
//! The kernel's counter is part of the ground truth for the monitor. A scratch cgroup is a **sibling** of the
//! cgroup of the tests, not a child: a session in the tests' own cgroup monitors everything below it and would
//! report the kills of other tests.
//!
//! ```text
//! krunner-test-PID-N          the monitor; in version 2 the limit is here (below an inner cgroup with processes of its
//!   └ limited                 own there is no memory controller); the victims; in version 1 the limit is here
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use nix::sys::signal::Signal;

use crate::{proc, wait};

const MIB: u64 = 1 << 20;

const MEMORY_HIERARCHY: &str = "/sys/fs/cgroup/memory";
const UNIFIED_HIERARCHY: &str = "/sys/fs/cgroup";

/// The number of tests with real kills that run in parallel: each may use its memory limit and a core.
const AT_ONCE: u32 = 2;

/// Cgroup v2 charges the monitor to the limit as well. This is more than it ever uses.
const MONITOR_ROOM_BYTES: u64 = 24 * MIB;

/// The two layouts of the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Cgroup v1: the memory controller has a hierarchy of its own.
    One,
    /// Cgroup v2: the unified hierarchy.
    Two,
}

/// A scratch memory cgroup. Dropping it kills all processes in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    version: Version,
    limit_bytes: u64,
    /// The file with the kernel's counter.
    counter: PathBuf,
    slot: Option<Slot>,
}

impl Cgroup {
    /// Creates an empty cgroup without a limit. Waits until few enough other tests have one.
    pub fn scratch() -> Result<Self, String> {
        let (version, home) = hierarchy()?;
        Self::new(version, &home, Some(Slot::take()))
    }

    /// Creates a cgroup for a container, whose runtime creates a cgroup of the same path in every v1 hierarchy. It is at the top,
    /// because the runtime would not remove the parents that it creates.
    pub fn for_container() -> Result<Self, String> {
        let (version, home) = hierarchy()?;
        Self::new(
            version,
            if version == Version::One { Path::new(MEMORY_HIERARCHY) } else { &home },
            Some(Slot::take()),
        )
    }

    /// Creates a sibling in the same slot. Waiting for a second slot could deadlock with another test that does the same.
    pub fn beside(&self) -> Result<Self, String> {
        Self::new(self.version, self.path.parent().expect("it is below the mount"), None)
    }

    /// The same, named as Docker names the cgroup of a container. Returns the container's ID, too.
    pub fn of_docker_beside(&self) -> Result<(Self, String), String> {
        let id = format!("{:032x}{:032x}", std::process::id(), next_number());
        let home = self.path.parent().expect("it is below the mount");
        Ok((Self::named(self.version, home, &format!("docker-{id}.scope"), None)?, id))
    }

    /// The cgroup of a pod with this UID and of a container in it, named as the kubelet and containerd name them. Returns the
    /// container's ID, too. Drop the container first.
    pub fn of_pod_beside(&self, uid: &str) -> Result<(Self, Self, String), String> {
        let id = format!("{:032x}{:032x}", std::process::id(), next_number());
        let home = self.path.parent().expect("it is below the mount");
        let pod = Self::named(self.version, home, &format!("kubepods-pod{}.slice", uid.replace('-', "_")), None)?;
        let container = Self::named(self.version, &pod.path, &format!("cri-containerd-{id}.scope"), None)?;
        Ok((pod, container, id))
    }

    fn new(version: Version, home: &Path, slot: Option<Slot>) -> Result<Self, String> {
        Self::named(version, home, &format!("krunner-test-{}-{}", std::process::id(), next_number()), slot)
    }

    fn named(version: Version, home: &Path, name: &str, slot: Option<Slot>) -> Result<Self, String> {
        let path = home.join(name);
        fs::create_dir(&path).map_err(|error| format!("cannot make the cgroup {}: {error}", path.display()))?;
        let counter = path.join(counter_file(version));
        Ok(Self { path, version, limit_bytes: 0, counter, slot })
    }

    /// Creates a child with a limit. In cgroup v2 a scratch cgroup can have only one child with a limit.
    #[must_use]
    pub fn limited(&self, name: &str, limit_mib: u64) -> Self {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let limit_bytes = limit_mib * MIB;
        let (limit_file, limit, counter) = match self.version {
            Version::One => (path.join("memory.limit_in_bytes"), limit_bytes, path.join(counter_file(self.version))),
            Version::Two => (self.path.join("memory.max"), limit_bytes + MONITOR_ROOM_BYTES, self.counter.clone()),
        };
        fs::write(&limit_file, limit.to_string()).unwrap_or_else(|error| panic!("{}: {error}", limit_file.display()));
        Self { path, version: self.version, limit_bytes, counter, slot: None }
    }

    /// In cgroup v2, where the monitor is charged to the same limit, removes the limit. A starting monitor briefly uses more
    /// memory than later.
    pub fn lift(&self) {
        if let Some(file) = self.shared_limit() {
            fs::write(&file, "max").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }

    /// In cgroup v2, sets the limit to the current usage plus the requested limit.
    pub fn fit(&self) {
        let Some(file) = self.shared_limit() else { return };
        let usage_file = file.with_file_name("memory.current");
        let text = fs::read_to_string(&usage_file).unwrap_or_else(|error| panic!("{}: {error}", usage_file.display()));
        let usage: u64 = text.trim().parse().expect("a number");
        fs::write(&file, (usage + self.limit_bytes).to_string()).expect("the limit was written before");
    }

    fn shared_limit(&self) -> Option<PathBuf> {
        let above = self.path.parent().expect("it is below the mount");
        (self.version == Version::Two).then(|| above.join("memory.max"))
    }

    /// Sets `memory.oom.group`, which only cgroup v2 has.
    pub fn group(&self, together: bool) -> Result<(), String> {
        let limit = self.shared_limit().ok_or("cgroup v1 has no memory.oom.group")?;
        let file = limit.with_file_name("memory.oom.group");
        fs::write(&file, if together { "1" } else { "0" }).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Kills all processes in it.
    pub fn clear(&self) {
        wait::until_true("the cgroup is empty", || {
            let members = members(&self.path);
            for pid in &members {
                proc::signal(*pid, Signal::SIGKILL);
            }
            members.is_empty()
        });
    }

    /// The PIDs of the processes in it, in our namespace.
    pub fn members(&self) -> Vec<u32> {
        members(&self.path)
    }

    /// Cgroup v1: disables the OOM killer. A process that exceeds the limit blocks.
    pub fn disable_oom_killer(&self) -> Result<(), String> {
        if self.version == Version::Two {
            return Err("cgroup v2 has no oom_kill_disable".to_owned());
        }
        fs::write(&self.counter, "1").map_err(|error| format!("{}: {error}", self.counter.display()))
    }

    /// Cgroup v1: whether its members are blocked on memory.
    pub fn is_under_oom(&self) -> bool {
        fs::read_to_string(&self.counter).is_ok_and(|text| text.lines().any(|line| line == "under_oom 1"))
    }

    /// Cgroup v1: changes the limit.
    #[track_caller]
    pub fn raise(&self, limit_mib: u64) {
        let file = self.path.join("memory.limit_in_bytes");
        fs::write(&file, (limit_mib * MIB).to_string()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// The requested limit.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The current limit, of this cgroup in v1 and of its parent in v2; `None` without a limit.
    #[track_caller]
    pub fn limit_in_force(&self) -> Option<u64> {
        let file = self.shared_limit().unwrap_or_else(|| self.path.join("memory.limit_in_bytes"));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().parse().ok()
    }

    /// The maximum memory of all processes in it together.
    pub fn room_bytes(&self) -> u64 {
        match self.version {
            Version::One => self.limit_bytes,
            Version::Two => self.limit_bytes + MONITOR_ROOM_BYTES,
        }
    }

    /// Its folder in the cgroup file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path, as in `/proc/PID/cgroup`, of the cgroup that is charged: in v2 the nearest ancestor with the memory controller.
    #[must_use]
    pub fn charged_in_hierarchy(&self) -> PathBuf {
        let counts = |path: &Path| self.version == Version::One || path.join("memory.current").exists();
        let above = self.path.ancestors().position(counts).unwrap_or(0);
        let path = self.path_in_hierarchy();
        path.ancestors().nth(above).unwrap_or(&path).to_owned()
    }

    /// Its path as in `/proc/PID/cgroup`.
    pub fn path_in_hierarchy(&self) -> PathBuf {
        let mount = if self.version == Version::One { MEMORY_HIERARCHY } else { UNIFIED_HIERARCHY };
        Path::new("/").join(self.path.strip_prefix(mount).expect("it is below the mount"))
    }

    /// Which layout the memory controller has here.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A process enters the cgroup by writing 0 to this file.
    pub fn procs_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The number of OOM kills in it. Processes that died because they share a victim's memory are not counted.
    #[track_caller]
    pub fn oom_kills(&self) -> u64 {
        self.counter().oom_kills()
    }

    /// A handle to the kernel's counter that does not borrow the cgroup.
    pub fn counter(&self) -> Counter {
        Counter(self.counter.clone())
    }
}

/// The kernel's counter of OOM kills in a cgroup.
#[derive(Clone, Debug)]
pub struct Counter(PathBuf);

impl Counter {
    /// The current value.
    #[track_caller]
    pub fn oom_kills(&self) -> u64 {
        let text = fs::read_to_string(&self.0).expect("the cgroup's counter");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no oom_kill in {text:?}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Those below may have owners that go later: they find their own folder gone.
        let below = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.path());
        below.filter(|path| path.is_dir()).for_each(|path| remove(&path));
        remove(&self.path);
        self.slot = None;
    }
}

/// A number that no other cgroup of this process has in its name.
fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Kills the processes of a cgroup and removes it.
fn remove(path: &Path) {
    // A member may be forking while we look, and a dead one leaves when it is reaped: until the folder can go.
    let gone = wait::within(wait::PATIENCE, || {
        for pid in members(path) {
            proc::signal(pid, Signal::SIGKILL);
        }
        (fs::remove_dir(path).is_ok() || !path.exists()).then_some(())
    });
    if gone.is_none() {
        eprintln!("the cgroup {} cannot be removed; in it: {:?}", path.display(), members(path));
    }
}

fn members(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn counter_file(version: Version) -> &'static str {
    match version {
        Version::One => "memory.oom_control",
        Version::Two => "memory.events",
    }
}

/// The parent of scratch cgroups, which is also the parent of our own cgroup.
fn hierarchy() -> Result<(Version, PathBuf), String> {
    crate::host::root()?;
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("no cgroups: {error}"))?;
    let of = |is_it: fn(&str) -> bool| {
        own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            is_it(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let beside = |mount: &str, path: String| {
        let own = Path::new(mount).join(path);
        if own == Path::new(mount) { own } else { own.parent().expect("it is below the mount").to_owned() }
    };
    if let Some(path) = of(|controllers| controllers.split(',').any(|name| name == "memory")) {
        return Ok((Version::One, beside(MEMORY_HIERARCHY, path)));
    }
    let path = of(str::is_empty).ok_or("no memory cgroups")?;
    let home = beside(UNIFIED_HIERARCHY, path);
    let enabled = fs::read_to_string(home.join("cgroup.subtree_control")).unwrap_or_default();
    if enabled.split_whitespace().any(|name| name == "memory") {
        Ok((Version::Two, home))
    } else {
        Err(format!("no memory controller below {}", home.display()))
    }
}

/// A slot for a test with real OOM kills.
#[derive(Debug)]
struct Slot;

static TAKEN: Mutex<u32> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Slot {
    fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = FREED.wait_while(taken, |taken| *taken >= AT_ONCE).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

/// A cgroup of the v1 freezer. Even SIGKILL does not end a process that it has frozen.
#[derive(Debug)]
pub struct Freezer(PathBuf);

impl Freezer {
    /// Creates an empty one. In cgroup v2 SIGKILL does end frozen processes.
    pub fn scratch(beside: &Cgroup) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup/freezer");
        let name = beside.path().file_name().expect("a cgroup has a name");
        let path = root.join(name);
        fs::create_dir(&path).map_err(|error| format!("no freezer at {}: {error}", root.display()))?;
        Ok(Self(path))
    }

    /// Freezes this process.
    #[track_caller]
    pub fn freeze(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a process for the freezer");
        self.state("FROZEN");
        wait::until_true("the process is frozen", || {
            fs::read_to_string(self.0.join("freezer.state")).is_ok_and(|state| state.trim() == "FROZEN")
        });
    }

    fn state(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).expect("freezer.state");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.state("THAWED");
        if wait::within(wait::PATIENCE, || fs::remove_dir(&self.0).ok()).is_none() {
            eprintln!("the freezer {} cannot be removed", self.0.display());
        }
    }
}
