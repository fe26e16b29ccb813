//! Starting a child in a process group of its own, with two pipes and nothing else of ours; or on a terminal.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::command::Command;
use super::outcome::Exit;
use super::reaper::Reaper;
use super::spawn_limits;
use crate::config::ChildEnv;
use crate::sys;

/// A larger pipe means fewer switches between a fast writer and us. 1 MiB is what an unprivileged
/// process may ask for (`/proc/sys/fs/pipe-max-size`, pipe(7)); a quarter is where it stops paying.
const PIPE_BYTES: i32 = 256 * 1024;

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The runner's working directory was removed.
    #[error("the working directory is gone; create it again and restart the session")]
    WorkingDirectoryGone,
    /// The folder that it was to run in is not there.
    #[error("the folder {} does not exist", .0.display())]
    NoFolder(PathBuf),
    /// No such program.
    #[error("{} is not found{}", .0.display(), where_looked(.0))]
    NotFound(OsString),
    /// It is there, but not to be executed.
    #[error("{} cannot be executed", path.display())]
    NotExecutable {
        /// The program.
        path: OsString,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The kernel has no room for a process or a pipe.
    #[error("cannot start {}", path.display())]
    Refused {
        /// The program.
        path: OsString,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// Exit code for the agent: as a shell says it, or `-1` for what is not the program's fault.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable { .. } => 126,
            Self::WorkingDirectoryGone | Self::NoFolder(_) | Self::Refused { .. } => -1,
        }
    }
}

/// A bare name has been looked up.
fn where_looked(program: &OsStr) -> &'static str {
    if program.as_encoded_bytes().contains(&b'/') { "" } else { " in PATH" }
}

/// A process that runs.
pub(super) struct Spawned {
    /// Leader of its group.
    pub(super) pid: Pid,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    pub(super) exit: oneshot::Receiver<Exit>,
}

pub(super) fn spawn(reaper: &Reaper, command: &Command, env: &ChildEnv) -> Result<Spawned, SpawnError> {
    let started = working_directory().and_then(|_| {
        let mut std_command = command.to_std(env);
        std_command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, pid, exit) = reaper.spawn(&mut std_command)?;
        let pipes = receiver(child.stdout.take().map(OwnedFd::from))
            .and_then(|stdout| Ok((stdout, receiver(child.stderr.take().map(OwnedFd::from))?)));
        let (stdout, stderr) = pipes.inspect_err(|_| _ = killpg(pid, Signal::SIGKILL))?;
        Ok(Spawned { pid, stdout, stderr, exit })
    });
    started.map_err(|source| explain(source, command))
}

/// A process that leads a session on a terminal.
pub struct OnTerminal {
    /// Leader of its session and, at first, of the terminal's foreground group.
    pub pid: Pid,
    /// Its end.
    pub exit: oneshot::Receiver<Exit>,
}

/// Starts a program in a session of its own, on a terminal that becomes its controlling one.
///
/// # Errors
/// When it does not start.
pub fn spawn_on_terminal(
    reaper: &Reaper,
    command: &Command,
    env: &ChildEnv,
    terminal: impl AsFd,
) -> Result<OnTerminal, SpawnError> {
    let started = working_directory().and_then(|_| {
        let mut std_command = command.to_std(env);
        let stream = || Ok::<_, io::Error>(Stdio::from(terminal.as_fd().try_clone_to_owned()?));
        std_command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
        sys::lead_session_on_stdin(&mut std_command);
        let (_, pid, exit) = reaper.spawn(&mut std_command)?;
        Ok(OnTerminal { pid, exit })
    });
    started.map_err(|source| explain(source, command))
}

/// `getcwd` fails with ENOENT when the directory was removed (getcwd(2)).
fn working_directory() -> io::Result<PathBuf> {
    env::current_dir()
}

fn explain(source: io::Error, command: &Command) -> SpawnError {
    let path = command.executable();
    match source.kind() {
        io::ErrorKind::NotFound if working_directory().is_err() => SpawnError::WorkingDirectoryGone,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => match &command.directory {
            Some(folder) if !folder.is_dir() => SpawnError::NoFolder(folder.clone()),
            _ => SpawnError::NotFound(path),
        },
        io::ErrorKind::PermissionDenied => SpawnError::NotExecutable { path, source },
        _ if source.raw_os_error() == Some(nix::libc::ENOEXEC) => SpawnError::NotExecutable { path, source },
        _ => SpawnError::Refused { path, source: spawn_limits::explain(source) },
    }
}

fn receiver(pipe: Option<OwnedFd>) -> io::Result<pipe::Receiver> {
    let pipe = pipe.ok_or(io::ErrorKind::BrokenPipe)?;
    // Refused when the user's pipes hold too many pages already; the default size serves as well.
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    pipe::Receiver::from_owned_fd(pipe)
}
