//! The unix socket where a program in batch mode asks for input.
//!
//! ```text
//! program connects ─▶ waiting its turn ─▶ asked (the session says `waiting-input`)
//!                                             │ text arrives: written, connection closed
//!                                             └ program gone: its turn is over, the text is kept
//! ```
//!
//! Text that arrives before anybody asks is kept for the next one who does, as a terminal keeps what
//! is typed ahead. One task owns all of this.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::tasks::TaskGroup;

/// Told to programs of a runtime that has no input.
const UNSUPPORTED: &str = "<user-input is unsupported>";

/// Programs that wait for input at the same time; more are turned away.
const MAX_WAITING: usize = 64;

/// Text typed ahead that is kept.
const MAX_TYPED_AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// What an entry of the queue costs beside its text.
const TEXT_OVERHEAD_BYTES: usize = 64;

/// Between two looks at whether a program that has closed its sending side is still there: the kernel
/// wakes us for the first only.
const HANG_UP_POLL: Duration = Duration::from_millis(50);

/// How long a program may take to read the text it asked for.
const WRITE_PATIENCE: Duration = Duration::from_mins(1);

/// Sent for each program that asks, when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputWanted;

/// The session's end: texts go in, requests come out.
pub struct UserInput {
    texts: mpsc::UnboundedSender<String>,
}

impl UserInput {
    /// Text for the pending prompt, or for the next one.
    pub fn answer(&self, text: String) {
        // Unbounded, and emptied at once by a task that counts what it keeps.
        let _ = self.texts.send(text);
    }
}

/// Opens the socket. With `supported` false, whoever asks is told so.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(
    path: &Path,
    supported: bool,
    wanted: mpsc::Sender<InputWanted>,
    tasks: &TaskGroup,
) -> io::Result<UserInput> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let (texts, typed) = mpsc::unbounded_channel();
    let desk = Desk {
        supported,
        wanted,
        waiting: VecDeque::new(),
        asked: false,
        typed_ahead: VecDeque::new(),
        typed_bytes: 0,
        tasks: tasks.clone(),
    };
    tasks.spawn("user input", desk.run(listener, typed));
    Ok(UserInput { texts })
}

struct Desk {
    supported: bool,
    wanted: mpsc::Sender<InputWanted>,
    waiting: VecDeque<UnixStream>,
    /// Whether the agent was told of the first in the queue.
    asked: bool,
    typed_ahead: VecDeque<String>,
    /// What `typed_ahead` costs.
    typed_bytes: usize,
    tasks: TaskGroup,
}

enum Event {
    Connected(io::Result<UnixStream>),
    Typed(String),
    FirstLeft,
    Closed,
}

impl Desk {
    async fn run(mut self, listener: UnixListener, mut typed: mpsc::UnboundedReceiver<String>) {
        loop {
            let event = tokio::select! {
                connection = listener.accept() => Event::Connected(connection.map(|(stream, _)| stream)),
                text = typed.recv() => text.map_or(Event::Closed, Event::Typed),
                () = gone(self.waiting.front_mut()) => Event::FirstLeft,
            };
            match event {
                Event::Connected(Ok(stream)) => self.connected(stream),
                Event::Connected(Err(error)) => {
                    tracing::warn!("cannot accept a request for input: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Event::Typed(text) => self.keep(text),
                Event::FirstLeft => {
                    self.waiting.pop_front();
                    self.asked = false;
                }
                Event::Closed => return,
            }
            self.serve_first().await;
        }
    }

    fn connected(&mut self, stream: UnixStream) {
        if !self.supported {
            self.hand_over(stream, UNSUPPORTED.to_owned());
        } else if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(stream);
        } else {
            tracing::warn!("more than {MAX_WAITING} programs wait for input; one more is turned away");
        }
    }

    fn keep(&mut self, text: String) {
        let cost = text.len() + TEXT_OVERHEAD_BYTES;
        if !self.supported {
            tracing::warn!("input arrived, but this runtime takes none");
        } else if self.typed_bytes + cost > MAX_TYPED_AHEAD_BYTES && !self.typed_ahead.is_empty() {
            tracing::warn!(
                "more than {MAX_TYPED_AHEAD_BYTES} bytes of input wait to be read; {} are dropped",
                text.len()
            );
        } else {
            self.typed_bytes += cost;
            self.typed_ahead.push_back(text);
        }
    }

    /// Announces the first in the queue, once, and gives it the text when there is one.
    async fn serve_first(&mut self) {
        while let Some(first) = self.waiting.front() {
            if has_left(first) {
                self.waiting.pop_front();
                self.asked = false;
                continue;
            }
            if !self.asked {
                self.asked = true;
                let _ = self.wanted.send(InputWanted).await;
            }
            let Some(text) = self.typed_ahead.pop_front() else { return };
            self.typed_bytes -= text.len() + TEXT_OVERHEAD_BYTES;
            if let Some(stream) = self.waiting.pop_front() {
                self.asked = false;
                self.hand_over(stream, text);
            }
        }
    }

    /// Writes and closes, beside the other requests: the program may read slowly.
    fn hand_over(&self, mut stream: UnixStream, text: String) {
        self.tasks.spawn("input text", async move {
            match timeout(WRITE_PATIENCE, stream.write_all(text.as_bytes())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("input could not be handed to the program: {error}"),
                Err(_) => {
                    tracing::warn!("a program did not read its input for {WRITE_PATIENCE:?}; the rest is dropped");
                }
            }
        });
    }
}

/// Resolves when the program at the head of the queue has closed its connection.
async fn gone(first: Option<&mut UnixStream>) {
    let Some(stream) = first else { return std::future::pending().await };
    let mut ignored = [0; 64];
    // What a program writes here has no meaning. At the end of it the program may still wait for its
    // text: `socat` with an empty stdin does.
    while stream.read(&mut ignored).await.is_ok_and(|bytes| bytes > 0) {}
    while !has_left(stream) {
        sleep(HANG_UP_POLL).await;
    }
}

/// Whether both directions are closed (POLLHUP, poll(2)).
fn has_left(stream: &UnixStream) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let hang_up = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut asked, PollTimeout::ZERO).is_ok() && asked[0].revents().is_some_and(|events| events.intersects(hang_up))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        input: UserInput,
        wanted: mpsc::Receiver<InputWanted>,
    }

    fn world(supported: bool) -> World {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        fs::write(&path, "left over").unwrap();
        let (tell, wanted) = mpsc::channel(1);
        let input = serve(&path, supported, tell, &TaskGroup::new()).unwrap();
        World { _folder: folder, path, input, wanted }
    }

    async fn read_all(mut stream: UnixStream) -> String {
        let mut text = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn each_asks_in_turn_and_gets_its_own_text() {
        let mut world = world(true);
        let first = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(world.wanted.recv().await, Some(InputWanted));
        let second = UnixStream::connect(&world.path).await.unwrap();
        let long = "ü".repeat(1_000_000);
        world.input.answer(long.clone());
        assert_eq!(read_all(first).await, long);
        assert_eq!(world.wanted.recv().await, Some(InputWanted));
        world.input.answer("b".into());
        assert_eq!(read_all(second).await, "b");
    }

    #[tokio::test]
    async fn text_typed_ahead_waits_and_a_program_that_left_takes_none() {
        let mut world = world(true);
        let left = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(world.wanted.recv().await, Some(InputWanted));
        drop(left);
        let next = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(world.wanted.recv().await, Some(InputWanted));
        world.input.answer("kept".into());
        assert_eq!(read_all(next).await, "kept");
        world.input.answer("ahead".into());
        assert_eq!(read_all(UnixStream::connect(&world.path).await.unwrap()).await, "ahead");
    }

    #[tokio::test]
    async fn a_program_that_only_listens_still_gets_its_text() {
        let mut world = world(true);
        let mut stream = UnixStream::connect(&world.path).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(world.wanted.recv().await, Some(InputWanted));
        sleep(3 * HANG_UP_POLL).await;
        world.input.answer("text".into());
        assert_eq!(read_all(stream).await, "text");
    }

    #[tokio::test]
    async fn without_support_the_program_is_told() {
        let world = world(false);
        let stream = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(read_all(stream).await, UNSUPPORTED);
        assert_eq!(fs::metadata(&world.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
