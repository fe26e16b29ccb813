//! Scratch cgroups with a limit of processes and threads.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;

use crate::{host, proc, wait};

const HIERARCHY: &str = "/sys/fs/cgroup/pids";

/// Names of threads that are started for a piece of work and end when they are idle, of krunner and of tokio.
const WORKERS: [&str; 2] = ["blocking", "tokio-rt-worker"];

/// krunner keeps so many of these.
const KEPT_WORKERS: usize = 2;

/// A cgroup of the `pids` controller; ended with all processes in it.
#[derive(Debug)]
pub struct PidsCgroup(PathBuf);

impl PidsCgroup {
    /// An empty one without a limit.
    pub fn scratch() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        host::root()?;
        let name = format!("krunner-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(HIERARCHY).join(name);
        fs::create_dir(&path).map_err(|error| format!("no cgroup v1 with the pids controller: {error}"))?;
        Ok(Self(path))
    }

    /// A command that enters it and `exec`s its arguments.
    pub fn enter(&self) -> [String; 4] {
        let procs = self.0.join("cgroup.procs").display().to_string();
        ["sh".into(), "-c".into(), "echo 0 > \"$0\" && exec \"$@\"".into(), procs]
    }

    /// Waits until that process has no idle threads that are about to end, then leaves no room for a further one, even
    /// when so many have ended: returns the limit.
    #[track_caller]
    pub fn fill(&self, pid: u32, ending: u64) -> u64 {
        wait::until_true("idle threads have ended", || {
            let threads = proc::threads(pid);
            let workers = WORKERS.map(|name| threads.iter().filter(|thread| *thread == name).count());
            workers[0] <= KEPT_WORKERS && workers[1] == 0
        });
        let current: u64 = self.read("pids.current").parse().expect("a number");
        let limit = current - ending;
        self.limit(limit);
        limit
    }

    /// Sets the limit.
    pub fn limit(&self, max: u64) {
        self.write("pids.max", &max.to_string());
    }

    /// Takes the limit away.
    pub fn lift(&self) {
        self.write("pids.max", "max");
    }

    #[track_caller]
    fn read(&self, file: &str) -> String {
        let text = fs::read_to_string(self.0.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        text.trim().to_owned()
    }

    #[track_caller]
    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

impl Drop for PidsCgroup {
    fn drop(&mut self) {
        let members = || fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        let gone = wait::within(wait::PATIENCE, || {
            members().lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| proc::signal(pid, Signal::SIGKILL));
            fs::remove_dir(&self.0).ok()
        });
        if gone.is_none() {
            eprintln!("the cgroup {} cannot be removed; in it: {}", self.0.display(), members());
        }
    }
}
