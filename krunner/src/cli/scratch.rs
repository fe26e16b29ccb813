//! A runner in a temporary place of its own, for the self-test.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::monitor::tracer::LOADER_THREAD;
use crate::monitor::{Cgroup, CgroupRoot};
use crate::transport::RunnerAddress;

/// The contract's stop takes at most ten seconds.
const STOP_DEADLINE: Duration = Duration::from_secs(11);

/// The kernel's verifier takes ten seconds on an emulated processor.
const LOAD_DEADLINE: Duration = Duration::from_mins(1);

/// For the last of a killed process to be cleared away.
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// A runner process and its root folder; both are gone when this is dropped.
pub(super) struct Scratch {
    root: TempDir,
    runner: Child,
    pub(super) address: RunnerAddress,
}

impl Scratch {
    /// Starts this very program as a runner with free ports.
    pub(super) fn start(lang: &str, runtime_path: Option<&str>) -> anyhow::Result<Self> {
        let root = TempDir::with_prefix("krunner-selftest-").context("cannot make a temporary folder")?;
        for folder in ["home/work", "home/config", "tmp"] {
            fs::create_dir_all(root.path().join(folder))?;
        }
        let (in_port, out_port) = free_ports()?;
        let ports = json!({ "replin": in_port, "replout": out_port });
        fs::write(root.path().join("home/config/intrinsic-ports.json"), ports.to_string())?;
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let log = File::create(root.path().join("runner.log"))?;
        let runner = Command::new(own)
            .args(["--root".as_ref(), root.path().as_os_str(), lang.as_ref()])
            .args(runtime_path)
            .current_dir(root.path().join("home/work"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the runner")?;
        let address = RunnerAddress { host: Ipv4Addr::LOCALHOST.to_string(), in_port, out_port };
        Ok(Self { root, runner, address })
    }

    /// The user's folder.
    pub(super) fn work(&self) -> PathBuf {
        self.root.path().join("home/work")
    }

    /// What the runner wrote.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("runner.log")).unwrap_or_default()
    }

    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Waits until the runner has ended.
    pub(super) async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < STOP_DEADLINE {
            if let Some(status) = self.runner.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bail!("the runner has not stopped within {STOP_DEADLINE:?}")
    }

    /// Whether the runner's OOM tracer is attached, once that is decided.
    pub(super) async fn is_traced(&self) -> anyhow::Result<bool> {
        let of = |folder: &str| fs::read_dir(format!("/proc/{}/{folder}", self.runner.id()));
        let deadline = Instant::now() + LOAD_DEADLINE;
        loop {
            let comms = of("task")?.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            if !comms.into_iter().any(|comm| comm.trim() == LOADER_THREAD) {
                break;
            }
            if Instant::now() > deadline {
                bail!("the OOM tracer is still being loaded after {LOAD_DEADLINE:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let links = of("fd")?.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        Ok(links
            .into_iter()
            .any(|link| link.to_string_lossy().contains("bpf_link") || link.to_string_lossy().contains("bpf-link")))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.runner.id().cast_signed())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what they are for.
        let _ = self.runner.kill();
        let _ = self.runner.wait();
    }
}

/// A memory cgroup below our own; gone when this is dropped.
pub(super) struct ScratchCgroup {
    folder: PathBuf,
}

impl ScratchCgroup {
    /// Makes one with a limit; the error says why that cannot be done here.
    pub(super) fn make(limit_bytes: u64) -> anyhow::Result<Self> {
        let own = Cgroup::find(&CgroupRoot::default())?;
        let folder = own.dir.join(format!("krunner-selftest-{}", std::process::id()));
        let why = || format!("no memory cgroup can be made at {}", folder.display());
        fs::create_dir(&folder).with_context(why)?;
        let made = Self { folder: folder.clone() };
        let file = if own.version == 1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(folder.join(file), limit_bytes.to_string()).with_context(why)?;
        Ok(made)
    }

    /// The file that a process writes its id to, to be in it.
    pub(super) fn procs(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }
}

impl Drop for ScratchCgroup {
    fn drop(&mut self) {
        // Busy until the kernel is done with the last process in it.
        let deadline = Instant::now() + CGROUP_PATIENCE;
        while fs::remove_dir(&self.folder).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Two ports that were free a moment ago.
fn free_ports() -> io::Result<(u16, u16)> {
    let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (one, other) = (any()?, any()?);
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}
