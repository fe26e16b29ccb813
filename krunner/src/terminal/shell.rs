//! The shell of a session: started, restarted when it ends, hung up on at the end.
//!
//! ```text
//!            ┌──────────── pause: none, or longer each time it ends at once ◀─┐
//!            ▼                                                                │
//! start ─▶ running ──exit──▶ draining: what it wrote last ────────────────────┘
//!            │ stop: our end of the terminal is closed, which is SIGHUP for its session
//!            └──────▶ gone
//! ```
//!
//! One task owns the terminal; a [`Terminal`] asks it. What is typed while there is no shell waits for the
//! next one. A new shell gets a new pseudoterminal, so that what the old one left running cannot type into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::pty::Pty;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Command, Launcher, spawn_on_terminal};
use crate::tasks::blocking;

/// Interactive shells, best first.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/ash", "/bin/sh", "/usr/bin/sh"];

/// A shell that has lived for so long is followed by the next without a pause.
const LONG_ENOUGH: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the shell's last words may take to be shown. They end with the shell, whoever else has the terminal
/// open: the kernel hangs it up when its session's leader goes (`disassociate_ctty`).
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// What is read from the terminal at once: the kernel hands over 4 KiB at most (`N_TTY_BUF_SIZE`).
const CHUNK_BYTES: usize = 4096;

/// Requests that wait: each is answered at once.
const QUEUED_REQUESTS: usize = 4;

/// Shown where the old shell's output ends.
const RESTARTING: &[u8] = b"Restarting...\r\n";

/// The wire at which people sit.
#[async_trait]
pub trait Line: Send + Sync {
    /// The next bytes that somebody has typed; empty when nobody ever will again.
    async fn typed(&self) -> Bytes;

    /// Shows bytes to whoever watches; returns when there is room for more.
    async fn show(&self, bytes: Bytes);
}

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Default for Size {
    /// What every terminal has been since the VT100.
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}

enum Request {
    Resize(Size, oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// A handle on the terminal.
#[derive(Clone)]
pub struct Terminal {
    requests: mpsc::Sender<Request>,
    shell: watch::Receiver<Option<Pid>>,
}

impl Terminal {
    /// Starts a shell on a terminal of its own, and keeps one there.
    pub fn start(launcher: &Launcher, env: ChildEnv, line: Arc<dyn Line>) -> Self {
        let (requests, asked) = mpsc::channel(QUEUED_REQUESTS);
        let (tell, shell) = watch::channel(None);
        let keeper = Keeper {
            launcher: launcher.clone(),
            env,
            line,
            desk: Desk { asked, size: Size::default() },
            tell,
            pause: Duration::ZERO,
        };
        launcher.tasks.spawn("terminal", keeper.run());
        Self { requests, shell }
    }

    /// Sets the size, for the shells to come as well.
    pub async fn resize(&self, size: Size) {
        self.ask(|done| Request::Resize(size, done)).await;
    }

    /// Where the shell is; `None` between two shells, and when the kernel does not say.
    pub async fn directory(&self) -> Option<PathBuf> {
        let pid = (*self.shell.borrow())?;
        blocking(move || std::fs::read_link(format!("/proc/{pid}/cwd"))).await.ok()
    }

    /// Hangs up on the shell, which is not restarted.
    pub async fn stop(&self) {
        self.ask(Request::Stop).await;
    }

    /// Asks the owner, and waits until it is done; one that is gone has nothing left to do.
    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> Request) {
        let (done, is_done) = oneshot::channel();
        if self.requests.send(request(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// Takes requests, whether there is a shell or not.
struct Desk {
    asked: mpsc::Receiver<Request>,
    size: Size,
}

impl Desk {
    /// Returns when the terminal is to stop.
    async fn serve(&mut self, pty: Option<&Pty>) -> Option<oneshot::Sender<()>> {
        loop {
            match self.asked.recv().await {
                Some(Request::Resize(size, done)) => {
                    self.size = size;
                    if let Some(Err(error)) = pty.map(|pty| pty.resize(size)) {
                        tracing::warn!("the terminal keeps its size: {error}");
                    }
                    let _ = done.send(());
                }
                Some(Request::Stop(done)) => return Some(done),
                None => return None,
            }
        }
    }
}

/// How a shell's time on the terminal ended.
enum End {
    Stopped(Option<oneshot::Sender<()>>),
    Exited,
    NotStarted(String),
}

struct Keeper {
    launcher: Launcher,
    env: ChildEnv,
    line: Arc<dyn Line>,
    desk: Desk,
    tell: watch::Sender<Option<Pid>>,
    /// Before the next start.
    pause: Duration,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            let end = self.one_shell().await;
            self.tell.send_replace(None);
            match end {
                // By now our end of the terminal is closed.
                End::Stopped(done) => return answer(done),
                End::Exited => self.line.show(Bytes::from_static(RESTARTING)).await,
                // Said once; the attempts go on.
                End::NotStarted(problem) if self.pause.is_zero() => {
                    tracing::error!("there is no shell on the terminal: {problem}");
                    self.line.show(Bytes::from(format!("There is no shell: {problem}\r\n"))).await;
                }
                End::NotStarted(_) => {}
            }
            self.pause = next_pause(self.pause, started.elapsed());
            let stopped = tokio::select! {
                done = self.desk.serve(None) => Some(done),
                () = sleep(self.pause) => None,
            };
            if let Some(done) = stopped {
                return answer(done);
            }
        }
    }

    /// From a start to its end.
    async fn one_shell(&mut self) -> End {
        let opened = Pty::open(self.desk.size).map_err(|error| format!("no pseudoterminal is to be had: {error}"));
        let (pty, other_end) = match opened {
            Ok(opened) => opened,
            Err(problem) => return End::NotStarted(problem),
        };
        let Some(shell) = SHELLS.into_iter().find(|shell| Path::new(shell).is_file()) else {
            return End::NotStarted(format!("none of {} exists", SHELLS.join(", ")));
        };
        let command = Command::argv([shell]);
        let mut running = match spawn_on_terminal(&self.launcher.reaper, &command, &self.env, &other_end) {
            Ok(running) => running,
            Err(error) => return End::NotStarted(chain(&error)),
        };
        drop(other_end);
        tracing::debug!("{shell} is process {} on the terminal", running.pid);
        self.tell.send_replace(Some(running.pid));

        let shown = show(&pty, &*self.line);
        tokio::pin!(shown);
        tokio::select! {
            done = self.desk.serve(Some(&pty)) => return End::Stopped(done),
            never = type_in(&pty, &*self.line) => match never {},
            // A shell that has closed its terminal and lives on is of no use to anybody.
            () = &mut shown => return End::Exited,
            _ = &mut running.exit => {}
        }
        let _ = timeout(DRAIN_PATIENCE, shown).await;
        End::Exited
    }
}

/// Tells whoever wanted the terminal to stop, if anybody did.
fn answer(done: Option<oneshot::Sender<()>>) {
    if let Some(done) = done {
        let _ = done.send(());
    }
}

/// Shows what is written, to its end.
async fn show(pty: &Pty, line: &dyn Line) {
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        match pty.read(&mut buffer).await {
            Ok(0) => return,
            // Copied, so that what waits for somebody slow costs its own length only.
            Ok(bytes) => line.show(Bytes::copy_from_slice(&buffer[..bytes])).await,
            Err(error) => return tracing::warn!("the terminal cannot be read: {error}"),
        }
    }
}

/// Passes on what is typed.
async fn type_in(pty: &Pty, line: &dyn Line) -> std::convert::Infallible {
    loop {
        let bytes = line.typed().await;
        if bytes.is_empty() {
            return std::future::pending().await;
        }
        if let Err(error) = pty.write_all(&bytes).await {
            tracing::debug!("what was typed is lost with its shell: {error}");
        }
    }
}

/// None after a shell that was used, longer and longer while they end at once.
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
