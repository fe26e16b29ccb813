//! Spawns a child in its own process group with two pipes and no other descriptor of ours, or on a terminal.
//!
//! A program or its working directory may be on a mount that hangs, and `exec` with it. So spawns run on the threads for
//! blocking work. A caller that no longer waits drops the future; a child that starts after that is killed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::command::Command;
use super::early_pid::EarlyPid;
use super::outcome::ChildStatus;
use super::reaper::Reaper;
use super::spawn_limits;
use super::start_failure::{
    ExecInterpreter, Lookup, enter, interpreter, is_executable, look_up, without_carriage_return,
};
use crate::config::ChildEnv;
use crate::sys;
use crate::tasks::blocking;

/// A larger pipe means fewer context switches between a fast writer and us. An unprivileged process may request up to 1
/// MiB (`/proc/sys/fs/pipe-max-size`, pipe(7)); more than a quarter of that brings no further gain.
const PIPE_BYTES: i32 = 256 * 1024;

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The runner's working directory was removed.
    #[error("the working directory no longer exists; recreate it and restart the session")]
    WorkingDirectoryGone,
    /// The requested working directory does not exist.
    #[error("directory {} does not exist", .0.display())]
    NoFolder(PathBuf),
    /// This user may not enter the requested working directory.
    #[error("cannot enter directory {}", path.display())]
    ClosedFolder {
        /// The directory that was requested.
        path: PathBuf,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// The program does not exist.
    #[error("{} not found{}", .0.display(), where_looked(.0))]
    NotFound(OsString),
    /// The program was not found, but this user may not search part of `PATH`.
    #[error("{} not found in PATH ({} cannot be searched: Permission denied)", program.display(), listed(folders))]
    ClosedPath {
        /// The program that was requested.
        program: OsString,
        /// The directories of `PATH` that cannot be searched.
        folders: Vec<PathBuf>,
    },
    /// The interpreter of a script does not exist.
    #[error("cannot execute {}: {}", path.display(), missing(interpreter))]
    NoInterpreter {
        /// The script that was requested.
        path: PathBuf,
        /// The interpreter as the first line names it.
        interpreter: OsString,
    },
    /// The dynamic loader does not exist: the program was built for another libc.
    #[error("cannot execute {}: its dynamic loader was not found", .0.display())]
    NoLoader(PathBuf),
    /// The file exists, but cannot be executed.
    #[error("cannot execute {}", path.display())]
    NotExecutable {
        /// The program that was requested.
        path: OsString,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a process or a pipe.
    #[error("cannot start {}", path.display())]
    Refused {
        /// The program that was requested.
        path: OsString,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// Exit code for the agent: the shell's convention, or `-1` if the program is not at fault.
    #[must_use]
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::NotFound(_) | Self::ClosedPath { .. } | Self::NoInterpreter { .. } | Self::NoLoader(_) => 127,
            Self::NotExecutable { .. } => 126,
            Self::WorkingDirectoryGone | Self::NoFolder(_) | Self::ClosedFolder { .. } | Self::Refused { .. } => -1,
        }
    }
}

/// Only a bare name is looked up in `PATH`.
fn where_looked(program: &OsStr) -> &'static str {
    if program.as_encoded_bytes().contains(&b'/') { "" } else { " in PATH" }
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn missing(interpreter: &OsStr) -> String {
    match without_carriage_return(interpreter) {
        None => format!("interpreter {} not found", interpreter.display()),
        Some(name) => format!(
            "its #! line ends with a carriage return, which the kernel takes as part of the interpreter name ({}); \
             convert the line endings: sed -i 's/\\r$//'",
            name.display()
        ),
    }
}

/// A child that was started, with the guard that kills it unless the caller waits for it.
struct StartedChild {
    child: Child,
    pid: Pid,
    exit: oneshot::Receiver<ChildStatus>,
    guard: KillOnDrop,
}

/// Kills a process group on drop.
struct KillOnDrop(Option<Pid>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            signal_group(group, Signal::SIGKILL);
        }
    }
}

/// Kills a child on drop that hangs in `exec`, so that its spawn returns.
struct KillInExec(Option<Arc<EarlyPid>>);

impl KillInExec {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillInExec {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            pid.abandon();
        }
    }
}

/// Starts a child on a thread for blocking work. If the future is dropped, the child is killed, also in `exec`.
async fn start(
    reaper: &Reaper,
    command: &Command,
    env: &ChildEnv,
    set_up: impl FnOnce(&mut std::process::Command, &Command) -> io::Result<()> + Send + 'static,
) -> Result<StartedChild, SpawnError> {
    let (reaper, command, env) = (reaper.clone(), command.clone(), env.clone());
    // Without descriptors the spawn itself fails, and says so.
    let (early_pid, writer) = EarlyPid::pipe().ok().unzip();
    let hanging = KillInExec(early_pid.clone());
    let started = blocking(move || {
        let started = working_directory().and_then(|_| {
            let mut std_command = command.to_std(&env);
            set_up(&mut std_command, &command)?;
            if let Some(writer) = writer {
                writer.report(&mut std_command);
            }
            // After the report: entering it may hang.
            if let Some(directory) = &command.directory {
                sys::start_in(&mut std_command, directory)?;
            }
            reaper.spawn(&mut std_command, early_pid)
        });
        let (child, pid, exit) = started.map_err(|source| explain(source, &command, &env))?;
        Ok(StartedChild { child, pid, exit, guard: KillOnDrop(Some(pid)) })
    })
    .await;
    hanging.disarm();
    started
}

/// Sends a signal to a process group; no error if the group is gone.
pub(super) fn signal_group(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!("cannot send {signal} to process group {group}: {}", error.desc()),
    }
}

/// A child that was spawned with pipes.
pub(super) struct SpawnedChild {
    /// The leader of its process group.
    pub(super) pid: Pid,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    pub(super) exit: oneshot::Receiver<ChildStatus>,
}

/// Spawns a child with pipes. If the future is dropped, a child that starts after that is killed.
pub(super) async fn spawn(reaper: &Reaper, command: &Command, env: &ChildEnv) -> Result<SpawnedChild, SpawnError> {
    let started = start(reaper, command, env, |std_command, command| {
        std_command.process_group(0).stdin(command.stdin()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(())
    });
    let StartedChild { mut child, pid, exit, guard } = started.await?;
    let mut pipes = || {
        let stdout = receiver(child.stdout.take().map(OwnedFd::from))?;
        Ok((stdout, receiver(child.stderr.take().map(OwnedFd::from))?))
    };
    let (stdout, stderr) = pipes().map_err(|source| refused(command, source))?;
    guard.disarm();
    Ok(SpawnedChild { pid, stdout, stderr, exit })
}

/// A child that leads a session on a terminal.
pub(crate) struct TerminalChild {
    /// The leader of its session and, at first, of the terminal's foreground group.
    pub pid: Pid,
    /// Resolves when the child exits.
    pub exit: oneshot::Receiver<ChildStatus>,
}

/// Starts a program in its own session with `terminal` as its controlling terminal. If the future is dropped, a child
/// that starts after that is killed.
///
/// # Errors
/// If it cannot be started.
pub(crate) async fn spawn_on_terminal(
    reaper: &Reaper,
    command: &Command,
    env: &ChildEnv,
    terminal: OwnedFd,
) -> Result<TerminalChild, SpawnError> {
    let started = start(reaper, command, env, move |std_command, _| {
        let stream = || Ok::<_, io::Error>(Stdio::from(terminal.try_clone()?));
        std_command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
        sys::lead_session_on_stdin(std_command);
        Ok(())
    });
    let StartedChild { pid, exit, guard, .. } = started.await?;
    guard.disarm();
    Ok(TerminalChild { pid, exit })
}

/// `getcwd` fails with ENOENT if the directory was removed (getcwd(2)).
fn working_directory() -> io::Result<PathBuf> {
    env::current_dir()
}

fn explain(source: io::Error, command: &Command, env: &ChildEnv) -> SpawnError {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let path = command.executable();
    if source.kind() == NotFound && working_directory().is_err() {
        return SpawnError::WorkingDirectoryGone;
    } else if matches!(source.kind(), NotFound | NotADirectory | PermissionDenied)
        && let Some(problem) = command.directory.as_deref().and_then(closed_folder)
    {
        return problem;
    }
    let found = || look_up(&path, env.get(OsStr::new("PATH")).map(OsString::as_os_str), command.directory.as_deref());
    match source.kind() {
        NotFound | NotADirectory => not_found(&path, found()),
        PermissionDenied => not_allowed(&path, found(), source),
        _ if source.raw_os_error() == Some(nix::libc::ENOEXEC) => SpawnError::NotExecutable { path, source },
        _ => refused(command, source),
    }
}

fn refused(command: &Command, source: io::Error) -> SpawnError {
    SpawnError::Refused { path: command.executable(), source: spawn_limits::explain(source) }
}

fn closed_folder(folder: &Path) -> Option<SpawnError> {
    let source = enter(folder).err()?;
    Some(match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SpawnError::NoFolder(folder.to_owned()),
        _ => SpawnError::ClosedFolder { path: folder.to_owned(), source },
    })
}

fn not_found(program: &OsStr, found: Lookup) -> SpawnError {
    let Lookup::Found(file) = found else { return SpawnError::NotFound(program.to_owned()) };
    match interpreter(&file) {
        Some(ExecInterpreter::Script(name)) if Path::new(&name).exists() => SpawnError::NoLoader(name.into()),
        Some(ExecInterpreter::Script(name)) => SpawnError::NoInterpreter { path: file, interpreter: name },
        Some(ExecInterpreter::Loader) => SpawnError::NoLoader(file),
        None => SpawnError::NotFound(program.to_owned()),
    }
}

fn not_allowed(program: &OsStr, found: Lookup, source: io::Error) -> SpawnError {
    let path = match found {
        Lookup::Missing { closed } if !closed.is_empty() => {
            return SpawnError::ClosedPath { program: program.to_owned(), folders: closed };
        }
        Lookup::Found(file) if is_executable(&file) => match interpreter(&file) {
            Some(ExecInterpreter::Script(name)) => name,
            _ => program.to_owned(),
        },
        _ => program.to_owned(),
    };
    SpawnError::NotExecutable { path, source }
}

fn receiver(pipe: Option<OwnedFd>) -> io::Result<pipe::Receiver> {
    let pipe = pipe.ok_or(io::ErrorKind::BrokenPipe)?;
    // Fails if the user's pipes hold too many pages already; the default size works too.
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    pipe::Receiver::from_owned_fd(pipe)
}
