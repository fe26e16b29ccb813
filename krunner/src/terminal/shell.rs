//! The shell of a session: started, restarted when it exits, hung up at the end.
//!
//! ```text
//!            ┌──────────── pause: none, or longer each time it ends at once ◀─┐
//!            ▼                                                                │
//! start ─▶ running ──exit──▶ draining: what it wrote last ────────────────────┘
//!            │ stop: our end of the terminal is closed, which is SIGHUP for its session
//!            └──────▶ gone
//! ```
//!
//! One task, [`ShellOwner`], owns the terminal; [`Terminal`] is a handle on it. Input typed between two shells waits for the
//! next one. A new shell gets a new pseudoterminal, so that programs the old one left running cannot type into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::pty::Pty;
use super::window_size::WindowSize;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Command, Launcher, spawn_on_terminal};
use crate::tasks::blocking;

/// Interactive shells, best first.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/ash", "/bin/sh", "/usr/bin/sh"];

/// A shell that ran this long is restarted without a pause.
const LONG_ENOUGH: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the shell's last output may take to be shown. It ends with the shell even if other processes have the terminal
/// open: the kernel hangs it up when the session leader exits (`disassociate_ctty`).
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// One read from the terminal: the kernel returns 4 KiB at most (`N_TTY_BUF_SIZE`).
const CHUNK_BYTES: usize = 4096;

/// Queued requests; each is answered at once.
const QUEUED_REQUESTS: usize = 4;

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

enum ShellRequest {
    Resize(WindowSize, oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// A handle on the terminal.
#[derive(Clone)]
pub(crate) struct Terminal {
    requests: mpsc::Sender<ShellRequest>,
    shell: watch::Receiver<Option<Pid>>,
}

impl Terminal {
    /// Starts a shell on a new terminal and restarts it when it exits.
    pub(crate) fn start(launcher: &Launcher, env: ChildEnv, transport: Arc<dyn TerminalTransport>) -> Self {
        let (requests, asked) = mpsc::channel(QUEUED_REQUESTS);
        let (tell, shell) = watch::channel(None);
        let owner = ShellOwner {
            launcher: launcher.clone(),
            env,
            transport,
            handler: RequestHandler { asked, size: WindowSize::default() },
            tell,
            pause: Duration::ZERO,
        };
        launcher.tasks.spawn("terminal", owner.run());
        Self { requests, shell }
    }

    /// Sets the size, for later shells too.
    pub(crate) async fn resize(&self, size: WindowSize) {
        self.ask(|done| ShellRequest::Resize(size, done)).await;
    }

    /// The shell's working directory; `None` between two shells or if `/proc` cannot be read.
    pub(crate) async fn directory(&self) -> Option<PathBuf> {
        let pid = (*self.shell.borrow())?;
        blocking(move || std::fs::read_link(format!("/proc/{pid}/cwd"))).await.ok()
    }

    /// Hangs up the shell, which is not restarted.
    pub(crate) async fn stop(&self) {
        self.ask(ShellRequest::Stop).await;
    }

    /// Sends a request and waits until it is done; returns at once if the owner's task ended.
    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> ShellRequest) {
        let (done, is_done) = oneshot::channel();
        if self.requests.send(request(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// Serves requests, also between two shells.
struct RequestHandler {
    asked: mpsc::Receiver<ShellRequest>,
    size: WindowSize,
}

impl RequestHandler {
    /// Returns when the terminal has to stop.
    async fn serve(&mut self, pty: Option<&Pty>) -> Option<oneshot::Sender<()>> {
        loop {
            match self.asked.recv().await {
                Some(ShellRequest::Resize(size, done)) => {
                    self.size = size;
                    if let Some(Err(error)) = pty.map(|pty| pty.resize(size)) {
                        tracing::warn!("cannot resize the terminal: {error}");
                    }
                    let _ = done.send(());
                }
                Some(ShellRequest::Stop(done)) => return Some(done),
                None => return None,
            }
        }
    }
}

/// How a shell's time on the terminal ended.
enum ShellEnd {
    Stopped(Option<oneshot::Sender<()>>),
    Exited,
    NotStarted(String),
}

struct ShellOwner {
    launcher: Launcher,
    env: ChildEnv,
    transport: Arc<dyn TerminalTransport>,
    handler: RequestHandler,
    tell: watch::Sender<Option<Pid>>,
    /// Before the next start.
    pause: Duration,
}

impl ShellOwner {
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            let end = self.one_shell().await;
            self.tell.send_replace(None);
            match end {
                // The master is closed by now.
                ShellEnd::Stopped(done) => return answer(done),
                ShellEnd::Exited => self.transport.show(Bytes::from_static(RESTARTING)).await,
                // Logged once; the attempts continue.
                ShellEnd::NotStarted(problem) if self.pause.is_zero() => {
                    tracing::error!("cannot start a shell on the terminal: {problem}");
                    self.transport.show(Bytes::from(format!("Cannot start a shell: {problem}\r\n"))).await;
                }
                ShellEnd::NotStarted(_) => {}
            }
            self.pause = next_pause(self.pause, started.elapsed());
            let stopped = tokio::select! {
                done = self.handler.serve(None) => Some(done),
                () = sleep(self.pause) => None,
            };
            if let Some(done) = stopped {
                return answer(done);
            }
        }
    }

    /// Runs one shell from its start to its exit.
    async fn one_shell(&mut self) -> ShellEnd {
        let opened = Pty::open(self.handler.size).map_err(|error| format!("cannot open a pseudoterminal: {error}"));
        let (pty, other_end) = match opened {
            Ok(opened) => opened,
            Err(problem) => return ShellEnd::NotStarted(problem),
        };
        let Some(shell) = SHELLS.into_iter().find(|shell| Path::new(shell).is_file()) else {
            return ShellEnd::NotStarted(format!("none of {} exists", SHELLS.join(", ")));
        };
        let command = Command::argv([shell]);
        let mut running = tokio::select! {
            started = spawn_on_terminal(&self.launcher.reaper, &command, &self.env, other_end) => match started {
                Ok(running) => running,
                Err(error) => return ShellEnd::NotStarted(chain(&error)),
            },
            done = self.handler.serve(Some(&pty)) => return ShellEnd::Stopped(done),
        };
        tracing::debug!("{shell} is process {} on the terminal", running.pid);
        self.tell.send_replace(Some(running.pid));

        let shown = show(&pty, &*self.transport);
        tokio::pin!(shown);
        tokio::select! {
            done = self.handler.serve(Some(&pty)) => return ShellEnd::Stopped(done),
            never = type_in(&pty, &*self.transport) => match never {},
            // A shell that closed its terminal cannot be used any more.
            () = &mut shown => return ShellEnd::Exited,
            _ = &mut running.exit => {}
        }
        let _ = timeout(DRAIN_PATIENCE, shown).await;
        ShellEnd::Exited
    }
}

/// Acknowledges a stop request, if there was one.
fn answer(done: Option<oneshot::Sender<()>>) {
    if let Some(done) = done {
        let _ = done.send(());
    }
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

/// Zero after a shell that ran for a while; doubles while shells exit at once.
fn next_pause(last: Duration, lived: Duration) -> Duration {
    if lived >= LONG_ENOUGH { Duration::ZERO } else { (last * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_that_end_at_once_are_restarted_less_and_less_often() {
        let mut pause = Duration::ZERO;
        let mut seen = Vec::new();
        for _ in 0..10 {
            pause = next_pause(pause, Duration::ZERO);
            seen.push(pause.as_millis());
        }
        assert_eq!(seen, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(next_pause(pause, LONG_ENOUGH), Duration::ZERO);
    }
}
