//! The environment in which runners and baselines run, and its teardown.
//!
//! Both runners get a fresh home, free ports, a short environment, and `/dev/null` as standard input, output and error. krunner
//! takes a root on its command line. The Python runner's paths are fixed, so it gets namespaces of its own, with that root
//! mounted over `/home` and `/tmp` and with only the requested Jupyter kernelspec visible, because it starts any kernel that it
//! finds. Both wait at a named pipe, so that the client times the start without the setup of the sandbox.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::venv;
use crate::workspace::root;

/// The runtime that both runners start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    /// Starts no kernel; its steps are shell lines.
    Shell,
    /// Starts the Python kernel of the environment.
    Jupyter,
}

/// krunner promises to stop within 10 s.
const STOP: Duration = Duration::from_secs(12);

/// Waits at the start barrier, then executes the runner.
const BEHIND_BARRIER: &str = r#"
start_barrier=$1; shift
read -r _ <"$start_barrier"
exec "$@" </dev/null >/dev/null 2>&1
"#;

/// The same inside fresh mount and PID namespaces. The runner's files may be below the folders that get mounted over, so they
/// are bind-mounted first.
const NAMESPACED: &str = r#"
set -e
sandbox=$1 venv=$2 base=$3 hidden=$4; shift 4
for keep in "$venv" "$base"; do
    case $keep in
    /home/*|/tmp/*) mkdir -p "$sandbox$keep"; mount --rbind "$keep" "$sandbox$keep" ;;
    esac
done
mount --rbind "$sandbox/home" /home
mount --rbind "$sandbox/tmp" /tmp
for specs in "$hidden" /usr/local/share/jupyter /usr/share/jupyter; do
    if [ -d "$specs" ]; then mount -t tmpfs none "$specs"; fi
done
cd /home/work
read -r _ </tmp/start-barrier
exec "$@" </dev/null >/dev/null 2>&1
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Implementation {
    Python,
    Krunner,
}

impl Implementation {
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
    /// Two ports that are unused at the moment.
    pub(super) fn free() -> Result<Self> {
        let [replin, replout, ..] = free_ports()?;
        Ok(Self { replin, replout })
    }
}

/// Ports that no other call has returned: the kernel chooses them at random, and of 800 that are free until the runners listen, some
/// would be the same.
fn free_ports() -> Result<[u16; 4]> {
    static RETURNED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut returned = RETURNED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = [0; 4];
    for port in &mut ports {
        *port = loop {
            let port = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?.local_addr()?.port();
            if returned.insert(port) {
                break port;
            }
        };
    }
    Ok(ports)
}

/// The programs that runners and baselines start.
pub(super) struct Programs {
    pub(super) krunner: PathBuf,
    /// A release build of this program: the copy-loop baseline.
    pub(super) xtask: PathBuf,
    /// The environment's Python.
    pub(super) python: PathBuf,
    /// The prefix of the Python installation behind the environment.
    base: PathBuf,
}

impl Programs {
    pub(super) fn new(krunner: PathBuf, xtask: PathBuf, python: PathBuf) -> Result<Self> {
        let output = Command::new(&python).args(["-c", "import sys; print(sys.base_prefix)"]).output()?;
        let base = String::from_utf8(output.stdout).context("python printed a prefix that is not UTF-8")?;
        Ok(Self { krunner, xtask, python, base: PathBuf::from(base.trim()) })
    }
}

/// A runner with its folder and namespaces. Dropping it removes all of them.
pub(super) struct Sandbox {
    implementation: Implementation,
    folder: TempDir,
    child: Child,
    pub(super) ports: Ports,
}

impl Sandbox {
    /// Creates a sandbox whose runner waits at the start barrier.
    pub(super) fn make(implementation: Implementation, runtime: Runtime, programs: &Programs) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("krunner-bench-").tempdir()?;
        let at = |path: &str| folder.path().join(path);
        let ports = make_home(folder.path())?;
        nix::unistd::mkfifo(&at("tmp/start-barrier"), Mode::S_IRUSR | Mode::S_IWUSR)?;

        let mut command = match implementation {
            Implementation::Krunner => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", BEHIND_BARRIER, "sh"]).arg(at("tmp/start-barrier"));
                command.arg(&programs.krunner).arg("--root").arg(folder.path());
                command.current_dir(at("home/work"));
                command
            }
            Implementation::Python => {
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
        command
            .env("HOME", if implementation == Implementation::Python { "/home/work".into() } else { at("home/work") });
        command.env("BACKENDAI_KERNEL_ID", "00000000-0000-4000-8000-000000000000");
        let child =
            command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {}", implementation.name()))?;
        Ok(Self { implementation, folder, child, ports })
    }

    /// The user's folder.
    pub(super) fn home(&self) -> PathBuf {
        self.folder.path().join("home/work")
    }

    /// Releases the start barrier and waits until the runner listens.
    pub(super) fn release_start(&self) -> Result<()> {
        fs::write(self.start_barrier(), "\n")?;
        let deadline = Instant::now() + STOP;
        while TcpStream::connect(("127.0.0.1", self.ports.replin)).is_err() {
            if Instant::now() > deadline {
                bail!("{} does not accept connections", self.implementation.name());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether krunner's OOM tracer is attached, in which case krunner holds its links.
    pub(super) fn is_traced(&self) -> bool {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.child.id())).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("bpf_link")).count() >= 5
    }

    /// The named pipe that the runner waits for.
    pub(super) fn start_barrier(&self) -> PathBuf {
        self.folder.path().join("tmp/start-barrier")
    }

    /// The runner's current resident memory.
    pub(super) fn rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmRSS:")
    }

    /// Resets [`Sandbox::peak_rss_mib`] (proc(5), `clear_refs`).
    pub(super) fn forget_peak_rss(&self) -> Result<()> {
        let pid = self.runner_pid().context("the runner is gone")?;
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot reset the peak")
    }

    /// The runner's peak resident memory.
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

    /// The runner's PID in our namespace: the child, or the child of `unshare`.
    pub(super) fn runner_pid(&self) -> Option<Pid> {
        let child = i32::try_from(self.child.id()).ok()?;
        match self.implementation {
            Implementation::Krunner => Some(Pid::from_raw(child)),
            Implementation::Python => child_of(child).map(Pid::from_raw),
        }
    }

    /// Stops the runner with SIGTERM. Fails if krunner takes too long; the Python runner is then killed with its namespace.
    pub(super) fn stop(mut self) -> Result<()> {
        let Some(pid) = self.runner_pid() else { bail!("{} exited on its own", self.implementation.name()) };
        kill(pid, Signal::SIGTERM).with_context(|| format!("{} exited on its own", self.implementation.name()))?;
        let deadline = Instant::now() + STOP;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline && self.implementation == Implementation::Krunner {
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

impl Drop for Sandbox {
    fn drop(&mut self) {
        // After `stop` the child is gone. A PID namespace ends with its init.
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(pid) = self.runner_pid() {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Makes the folders of a runner below this one, and the file with its ports.
pub(super) fn make_home(folder: &Path) -> Result<Ports> {
    for path in ["home/work", "home/config", "tmp"] {
        fs::create_dir_all(folder.join(path))?;
    }
    let [replin, replout, sshd, ttyd] = free_ports()?;
    let ports = serde_json::json!({"replin": replin, "replout": replout, "sshd": sshd, "ttyd": ttyd});
    fs::write(folder.join("home/config/intrinsic-ports.json"), ports.to_string())?;
    Ok(Ports { replin, replout })
}

/// The first child of a process.
pub(super) fn child_of(parent: i32) -> Option<i32> {
    let stat_parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The comm in parentheses may contain any byte; the parent is the second field after it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|&pid| stat_parent(pid) == Some(parent))
}

/// A baseline that runs as a process. Dropping it kills the process.
pub(super) struct Peer {
    child: Child,
    pub(super) ports: Ports,
}

impl Peer {
    pub(super) fn echo(programs: &Programs) -> Result<Self> {
        Self::start(&programs.python, &root().join("xtask/bench/echo.py"))
    }

    /// Starts the hidden task `bench-peer`.
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
