//! The shell of a session, as a job of the supervisor: restarted when it exits, hung up at the end.
//!
//! ```text
//!            ┌──────────── pause: none, or longer each time it ends at once ◀─┐
//!            ▼                                                                │
//! start ─▶ running ──exit──▶ draining: what it wrote last ────────────────────┘
//!            │ stop: our end of the terminal is closed, which is SIGHUP for its session
//!            └──────▶ gone
//! ```
//!
//! The attempt, [`ShellAttempt`], owns the terminal; [`Terminal`] is a handle on it. Input typed between two shells waits for
//! the next one. A new shell gets a new pseudoterminal, so that programs the old one left running cannot type into it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::unistd::Pid;
use tokio::time::timeout;

use super::pty::Pty;
use super::window_size::WindowSize;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Command, Launcher, SpawnError, spawn_on_terminal};
use crate::supervisor::{Attempt, AttemptEnd, Backoff, Job, JobState, Progress, RestartPolicy};
use crate::tasks::blocking;

/// Interactive shells, best first.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/ash", "/bin/sh", "/usr/bin/sh"];

/// A user who leaves a shell wants the next one at once.
const RESTARTS: RestartPolicy = RestartPolicy::Always(Backoff {
    healthy_after: Duration::from_secs(1),
    after_healthy: Duration::ZERO,
    first: Duration::from_millis(100),
    longest: Duration::from_secs(10),
    limit: None,
});

/// How long the shell's last output may take to be shown. It ends with the shell even if other processes have the terminal
/// open: the kernel hangs it up when the session leader exits (`disassociate_ctty`).
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// One read from the terminal: the kernel returns 4 KiB at most (`N_TTY_BUF_SIZE`).
const CHUNK_BYTES: usize = 4096;

/// Printed after the output of the old shell.
const RESTARTING: &[u8] = b"Restarting...\r\n";

/// Carries the bytes between the terminal and its users.
#[async_trait]
pub(crate) trait TerminalTransport: Send + Sync {
    /// The next typed bytes; empty when the transport is closed.
    async fn typed(&self) -> Bytes;

    /// Sends bytes to all viewers; returns when more can be sent.
    async fn show(&self, bytes: Bytes);
}

/// A handle on the terminal.
#[derive(Clone)]
pub(crate) struct Terminal {
    shell: Job<Pid, ()>,
    screen: Arc<Mutex<Screen>>,
}

/// The size of this shell's and all later terminals.
#[derive(Default)]
struct Screen {
    size: WindowSize,
    pty: Weak<Pty>,
}

impl Terminal {
    /// Starts a shell on a new terminal and restarts it when it exits.
    pub(crate) fn start(launcher: &Launcher, env: ChildEnv, transport: Arc<dyn TerminalTransport>) -> Self {
        let screen = Arc::default();
        let attempt =
            ShellAttempt { launcher: launcher.clone(), env, transport, screen: Arc::clone(&screen), has_failed: false };
        Self { shell: Job::spawn(&launcher.tasks, "terminal", "the terminal's shell", RESTARTS, attempt), screen }
    }

    /// Sets the size, for later shells too.
    pub(crate) fn resize(&self, size: WindowSize) {
        let mut screen = lock(&self.screen);
        screen.size = size;
        if let Some(Err(error)) = screen.pty.upgrade().map(|pty| pty.resize(size)) {
            tracing::warn!("cannot resize the terminal: {error}");
        }
    }

    /// The shell's working directory; `None` between two shells or if `/proc` cannot be read.
    pub(crate) async fn directory(&self) -> Option<PathBuf> {
        let JobState::Ready(pid) = self.shell.state() else { return None };
        blocking(move || std::fs::read_link(format!("/proc/{pid}/cwd"))).await.ok()
    }

    /// Hangs up the shell, which is not restarted.
    pub(crate) async fn stop(&self) {
        self.shell.stop();
        self.shell.stopped().await;
    }
}

fn lock(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

struct ShellAttempt {
    launcher: Launcher,
    env: ChildEnv,
    transport: Arc<dyn TerminalTransport>,
    screen: Arc<Mutex<Screen>>,
    /// The last shell could not be started, and the reason was shown.
    has_failed: bool,
}

impl Attempt for ShellAttempt {
    type Ready = Pid;
    type End = ();

    async fn run(&mut self, progress: &Progress<Pid, ()>) -> AttemptEnd<()> {
        tokio::select! {
            result = self.run_shell(progress) => match result {
                Ok(()) => {
                    self.has_failed = false;
                    progress.waits_for("its restart");
                    self.transport.show(Bytes::from_static(RESTARTING)).await;
                }
                // Logged once; the attempts continue.
                Err(problem) => if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::error!("cannot start a shell on the terminal: {problem}");
                    self.transport.show(Bytes::from(format!("Cannot start a shell: {problem}\r\n"))).await;
                },
            },
            // The master is closed with the future of the shell.
            () = progress.control().terminated() => {}
        }
        AttemptEnd::Ended(())
    }
}

impl ShellAttempt {
    /// Runs one shell from its start to its exit. The error is why none was started.
    async fn run_shell(&self, progress: &Progress<Pid, ()>) -> Result<(), ShellError> {
        let (pty, other_end) = self.open().map_err(ShellError::Pty)?;
        let shell = SHELLS.into_iter().find(|shell| Path::new(shell).is_file()).ok_or(ShellError::NoShell)?;
        let command = Command::argv([shell]);
        let mut running = spawn_on_terminal(&self.launcher.reaper, &command, &self.env, other_end).await?;
        tracing::debug!("{shell} is process {} on the terminal", running.pid);
        progress.ready(running.pid);

        let shown = show(&pty, &*self.transport);
        tokio::pin!(shown);
        tokio::select! {
            never = type_in(&pty, &*self.transport) => match never {},
            // A shell that closed its terminal cannot be used any more.
            () = &mut shown => return Ok(()),
            _ = &mut running.exit => {}
        }
        let _ = timeout(DRAIN_PATIENCE, shown).await;
        Ok(())
    }

    /// Opens a terminal, which [`Terminal::resize`] finds from now on.
    fn open(&self) -> io::Result<(Arc<Pty>, OwnedFd)> {
        let mut screen = lock(&self.screen);
        let (pty, other_end) = Pty::open(screen.size)?;
        let pty = Arc::new(pty);
        screen.pty = Arc::downgrade(&pty);
        Ok((pty, other_end))
    }
}

/// Why no shell was started. The texts contain their causes.
#[derive(Debug, thiserror::Error)]
enum ShellError {
    #[error("cannot open a pseudoterminal: {0}")]
    Pty(io::Error),
    #[error("none of {} exists", SHELLS.join(", "))]
    NoShell,
    #[error("{}", chain(.0))]
    Spawn(#[from] SpawnError),
}

/// Sends the terminal's output to the viewers until it ends.
async fn show(pty: &Pty, transport: &dyn TerminalTransport) {
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        match pty.read(&mut buffer).await {
            Ok(0) => return,
            // Copied, so that a chunk waiting for a slow viewer does not hold the whole buffer.
            Ok(bytes) => transport.show(Bytes::copy_from_slice(&buffer[..bytes])).await,
            Err(error) => return tracing::warn!("cannot read from the terminal: {error}"),
        }
    }
}

/// Writes typed bytes to the terminal.
async fn type_in(pty: &Pty, transport: &dyn TerminalTransport) -> std::convert::Infallible {
    loop {
        let bytes = transport.typed().await;
        if bytes.is_empty() {
            return std::future::pending().await;
        }
        if let Err(error) = pty.write_all(&bytes).await {
            tracing::debug!("typed input was lost when the shell exited: {error}");
        }
    }
}
