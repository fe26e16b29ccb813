//! What runners and yardsticks run in, and their end.
//!
//! Both runners get the same: a fresh home, free ports, a short environment, nothing on standard
//! input, output and error. krunner takes a root on its command line. The Python runner's paths are
//! fixed, so it gets namespaces of its own in which that root is laid over `/home` and `/tmp`, and
//! in which no Jupyter kernelspec is found but the wanted one, for it would start any kernel that it
//! sees. Both wait behind a named pipe, so that the client can time the start without the making of the world.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::venv;
use crate::workspace::root;

/// The runtime that both are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    /// It starts no kernel, and its steps are plain shell lines.
    Shell,
    /// Python, in the kernel of the environment.
    Jupyter,
}

/// krunner promises to stop within 10 s.
const STOP: Duration = Duration::from_secs(12);

/// Waits at the gate, then becomes the runner.
const GATED: &str = r#"
gate=$1; shift
read -r _ <"$gate"
exec "$@" </dev/null >/dev/null 2>&1
"#;

/// The same inside fresh mount and pid namespaces. What the runner is made of may lie below the
/// folders that are covered, so it is carried over first.
const NAMESPACED: &str = r#"
set -e
world=$1 venv=$2 base=$3 hidden=$4; shift 4
for keep in "$venv" "$base"; do
    case $keep in
    /home/*|/tmp/*) mkdir -p "$world$keep"; mount --rbind "$keep" "$world$keep" ;;
    esac
done
mount --rbind "$world/home" /home
mount --rbind "$world/tmp" /tmp
for specs in "$hidden" /usr/local/share/jupyter /usr/share/jupyter; do
    if [ -d "$specs" ]; then mount -t tmpfs none "$specs"; fi
done
cd /home/work
read -r _ </tmp/gate
exec "$@" </dev/null >/dev/null 2>&1
"#;

/// Which runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Python,
    Krunner,
}

impl Who {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Python => "the Python runner",
            Self::Krunner => "krunner",
        }
    }
}

/// The two ports of the protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) replin: u16,
    pub(super) replout: u16,
}

impl Ports {
    /// Two that nobody listens on right now.
    pub(super) fn free() -> Result<Self> {
        let [replin, replout, ..] = free_ports()?;
        Ok(Self { replin, replout })
    }
}

/// All four are held until all are known, so that they differ.
fn free_ports() -> Result<[u16; 4]> {
    let mut listeners = Vec::new();
    let mut ports = [0; 4];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// What runners are made from.
pub(super) struct Programs {
    pub(super) krunner: PathBuf,
    /// This program, built in release: the copy-loop yardstick.
    pub(super) xtask: PathBuf,
    /// The environment's Python.
    pub(super) python: PathBuf,
    /// Where that Python's own library is.
    base: PathBuf,
}

impl Programs {
    pub(super) fn new(krunner: PathBuf, xtask: PathBuf, python: PathBuf) -> Result<Self> {
        let output = Command::new(&python).args(["-c", "import sys; print(sys.base_prefix)"]).output()?;
        let base = String::from_utf8(output.stdout).context("a strange Python")?;
        Ok(Self { krunner, xtask, python, base: PathBuf::from(base.trim()) })
    }
}

/// A runner and all that belongs to it; dropping it leaves nothing behind.
pub(super) struct World {
    who: Who,
    folder: TempDir,
    child: Child,
    pub(super) ports: Ports,
}

impl World {
    /// Makes a world whose runner waits at the gate.
    pub(super) fn make(who: Who, runtime: Runtime, programs: &Programs) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("krunner-bench-").tempdir()?;
        let at = |path: &str| folder.path().join(path);
        for path in ["home/work", "home/config", "tmp"] {
            fs::create_dir_all(at(path))?;
        }
        let [replin, replout, sshd, ttyd] = free_ports()?;
        let ports = serde_json::json!({"replin": replin, "replout": replout, "sshd": sshd, "ttyd": ttyd});
        fs::write(at("home/config/intrinsic-ports.json"), ports.to_string())?;
        nix::unistd::mkfifo(&at("tmp/gate"), Mode::S_IRUSR | Mode::S_IWUSR)?;

        let mut command = match who {
            Who::Krunner => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", GATED, "sh"]).arg(at("tmp/gate"));
                command.arg(&programs.krunner).arg("--root").arg(folder.path());
                command.current_dir(at("home/work"));
                command
            }
            Who::Python => {
                let mut command = Command::new("unshare");
                command.args([
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "/bin/sh",
                    "-c",
                    NAMESPACED,
                ]);
                let venv = venv::folder_of(&programs.python);
                let hidden = match runtime {
                    Runtime::Shell => venv.join("share/jupyter"),
                    Runtime::Jupyter => PathBuf::from("/usr/share/jupyter"),
                };
                command.arg("sh").arg(folder.path()).arg(venv).arg(&programs.base).arg(hidden);
                command.arg(&programs.python).args(["-s", "-m", "ai.backend.kernel"]);
                command
            }
        };
        match runtime {
            Runtime::Shell => command.args(["c", "/usr/bin/gcc"]),
            Runtime::Jupyter => command.arg("python").arg(&programs.python),
        };
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
        command.env("HOME", if who == Who::Python { "/home/work".into() } else { at("home/work") });
        command.env("BACKENDAI_KERNEL_ID", "00000000-0000-4000-8000-000000000000");
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {}", who.name()))?;
        Ok(Self { who, folder, child, ports: Ports { replin, replout } })
    }

    /// The user's folder.
    pub(super) fn home(&self) -> PathBuf {
        self.folder.path().join("home/work")
    }

    /// Lets the runner start, and waits until it listens.
    pub(super) fn open_gate(&self) -> Result<()> {
        fs::write(self.gate(), "\n")?;
        let deadline = Instant::now() + STOP;
        while TcpStream::connect(("127.0.0.1", self.ports.replin)).is_err() {
            if Instant::now() > deadline {
                bail!("{} does not listen", self.who.name());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether the OOM tracer of krunner is attached: it holds its links.
    pub(super) fn is_traced(&self) -> bool {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.child.id())).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("bpf_link")).count() >= 5
    }

    /// The named pipe that the runner waits for.
    pub(super) fn gate(&self) -> PathBuf {
        self.folder.path().join("tmp/gate")
    }

    /// The runner's resident memory now.
    pub(super) fn rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmRSS:")
    }

    /// Has [`World::peak_rss_mib`] start again (proc(5), `clear_refs`).
    pub(super) fn forget_peak_rss(&self) -> Result<()> {
        let pid = self.runner_pid().context("the runner is gone")?;
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot reset the peak")
    }

    /// The most resident memory that the runner had since.
    pub(super) fn peak_rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmHWM:")
    }

    fn memory_mib(&self, field: &str) -> Result<f64> {
        let pid = self.runner_pid().context("the runner is gone")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the runner is gone")?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("the runner is a zombie")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// The runner's pid in our namespace: the child, or what `unshare` forked.
    pub(super) fn runner_pid(&self) -> Option<Pid> {
        let child = i32::try_from(self.child.id()).ok()?;
        match self.who {
            Who::Krunner => Some(Pid::from_raw(child)),
            Who::Python => child_of(child).map(Pid::from_raw),
        }
    }

    /// Ends the runner by its own way of stopping. For krunner it is an error to take too long; the
    /// Python runner is then killed with its namespace.
    pub(super) fn stop(mut self) -> Result<()> {
        let Some(pid) = self.runner_pid() else { bail!("{} ended by itself", self.who.name()) };
        kill(pid, Signal::SIGTERM).with_context(|| format!("{} ended by itself", self.who.name()))?;
        let deadline = Instant::now() + STOP;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline && self.who == Who::Krunner {
                bail!("krunner did not stop within {STOP:?} of SIGTERM");
            }
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // After `stop` all of this finds nobody. With its init gone, a pid namespace is empty.
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(pid) = self.runner_pid() {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The first child of a process.
fn child_of(parent: i32) -> Option<i32> {
    let stat_parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the parent is the second field after it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|&pid| stat_parent(pid) == Some(parent))
}

/// A yardstick that runs as a process; dropping it ends it.
pub(super) struct Peer {
    child: Child,
    pub(super) ports: Ports,
}

impl Peer {
    /// `xtask/bench/echo.py`.
    pub(super) fn echo(programs: &Programs) -> Result<Self> {
        Self::start(&programs.python, &root().join("xtask/bench/echo.py"))
    }

    /// The hidden task `bench-peer`.
    pub(super) fn copy_loop(programs: &Programs) -> Result<Self> {
        Self::start(&programs.xtask, Path::new("bench-peer"))
    }

    fn start(program: &Path, first: &Path) -> Result<Self> {
        let ports = Ports::free()?;
        let mut command = Command::new(program);
        command.arg(first).args([ports.replin, ports.replout].map(|port| port.to_string()));
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("no {}", first.display()))?;
        Ok(Self { child, ports })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
