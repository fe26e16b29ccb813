//! Who asks the user for input: programs in batch mode, at a unix socket, and the engine of query mode.
//!
//! ```text
//! asks, or connects ─▶ waiting its turn ─▶ asked (the session says `waiting-input`)
//!                                             │ text arrives: handed over, connection closed
//!                                             └ asker gone: its turn is over, the text is kept
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
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::process::InputSource;
use crate::tasks::TaskGroup;

/// Told to programs of a runtime that has no input.
const UNSUPPORTED: &str = "<user-input is unsupported>";

/// Those that wait for input at the same time; more are turned away.
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

/// Sent for each that asks, when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputWanted {
    /// Whether what is typed should not be shown; programs at the socket cannot say.
    pub is_password: Option<bool>,
}

/// The session's end: texts go in, requests come out.
pub struct UserInput {
    texts: mpsc::UnboundedSender<String>,
    questions: mpsc::Sender<Question>,
}

/// An engine's request.
struct Question {
    is_password: bool,
    answer: oneshot::Sender<String>,
}

impl UserInput {
    /// Text for the pending prompt, or for the next one.
    pub fn answer(&self, text: String) {
        // Unbounded, and emptied at once by a task that counts what it keeps.
        let _ = self.texts.send(text);
    }

    /// The way to ask without the socket.
    #[must_use]
    pub fn source(&self) -> Arc<dyn InputSource> {
        Arc::new(Source(self.questions.clone()))
    }
}

struct Source(mpsc::Sender<Question>);

#[async_trait]
impl InputSource for Source {
    async fn ask(&self, is_password: bool) -> Option<String> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question { is_password, answer }).await.ok()?;
        answered.await.ok()
    }
}

/// Opens the socket; without it (which is told) only engines can ask. With `supported` false, whoever asks
/// is told so.
#[must_use]
pub fn serve(path: &Path, supported: bool, wanted: mpsc::Sender<InputWanted>, tasks: &TaskGroup) -> UserInput {
    let listener = bind(path)
        .inspect_err(|error| tracing::warn!("programs cannot ask for input: {}: {error}", path.display()))
        .ok();
    let (texts, typed) = mpsc::unbounded_channel();
    let (questions, asked) = mpsc::channel(1);
    let desk = Desk {
        supported,
        wanted,
        waiting: VecDeque::new(),
        asked: false,
        typed_ahead: VecDeque::new(),
        typed_bytes: 0,
        tasks: tasks.clone(),
    };
    tasks.spawn("user input", desk.run(listener, typed, asked));
    UserInput { texts, questions }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One that waits for text.
enum Asker {
    Program(UnixStream),
    Engine(Question),
}

impl Asker {
    fn has_left(&self) -> bool {
        match self {
            Self::Program(stream) => has_hung_up(stream),
            Self::Engine(question) => question.answer.is_closed(),
        }
    }

    fn wanted(&self) -> InputWanted {
        InputWanted {
            is_password: match self {
                Self::Program(_) => None,
                Self::Engine(question) => Some(question.is_password),
            },
        }
    }
}

struct Desk {
    supported: bool,
    wanted: mpsc::Sender<InputWanted>,
    waiting: VecDeque<Asker>,
    /// Whether the agent was told of the first in the queue.
    asked: bool,
    typed_ahead: VecDeque<String>,
    /// What `typed_ahead` costs.
    typed_bytes: usize,
    tasks: TaskGroup,
}

enum Event {
    Connected(io::Result<UnixStream>),
    Asked(Question),
    Typed(String),
    FirstLeft,
    Closed,
}

impl Desk {
    async fn run(
        mut self,
        listener: Option<UnixListener>,
        mut typed: mpsc::UnboundedReceiver<String>,
        mut asked: mpsc::Receiver<Question>,
    ) {
        loop {
            let event = tokio::select! {
                connection = accept(listener.as_ref()) => Event::Connected(connection),
                Some(question) = asked.recv() => Event::Asked(question),
                text = typed.recv() => text.map_or(Event::Closed, Event::Typed),
                () = gone(self.waiting.front_mut()) => Event::FirstLeft,
            };
            match event {
                Event::Connected(Ok(stream)) => self.line_up(Asker::Program(stream)),
                Event::Asked(question) => self.line_up(Asker::Engine(question)),
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

    fn line_up(&mut self, asker: Asker) {
        if !self.supported {
            self.hand_over(asker, UNSUPPORTED.to_owned());
        } else if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(asker);
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
            if first.has_left() {
                self.waiting.pop_front();
                self.asked = false;
                continue;
            }
            if !self.asked {
                self.asked = true;
                let _ = self.wanted.send(first.wanted()).await;
            }
            let Some(text) = self.typed_ahead.pop_front() else { return };
            self.typed_bytes -= text.len() + TEXT_OVERHEAD_BYTES;
            if let Some(asker) = self.waiting.pop_front() {
                self.asked = false;
                self.hand_over(asker, text);
            }
        }
    }

    /// Writes and closes, beside the other requests: the program may read slowly.
    fn hand_over(&self, asker: Asker, text: String) {
        let mut stream = match asker {
            Asker::Program(stream) => stream,
            // Fails when the engine has given up in this very moment; the text was meant for it.
            Asker::Engine(question) => {
                let _ = question.answer.send(text);
                return;
            }
        };
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

async fn accept(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Resolves when the one at the head of the queue no longer waits: a program when it has closed its connection.
async fn gone(first: Option<&mut Asker>) {
    let stream = match first {
        Some(Asker::Program(stream)) => stream,
        Some(Asker::Engine(question)) => return question.answer.closed().await,
        None => return std::future::pending().await,
    };
    let mut ignored = [0; 64];
    // What a program writes here has no meaning. At the end of it the program may still wait for its
    // text: `socat` with an empty stdin does.
    while stream.read(&mut ignored).await.is_ok_and(|bytes| bytes > 0) {}
    while !has_hung_up(stream) {
        sleep(HANG_UP_POLL).await;
    }
}

/// Whether both directions are closed (POLLHUP, poll(2)).
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let hang_up = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut asked, PollTimeout::ZERO).is_ok() && asked[0].revents().is_some_and(|events| events.intersects(hang_up))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: InputWanted = InputWanted { is_password: None };

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
        let input = serve(&path, supported, tell, &TaskGroup::new());
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
        assert_eq!(world.wanted.recv().await, Some(PROGRAM));
        let second = UnixStream::connect(&world.path).await.unwrap();
        let long = "ü".repeat(1_000_000);
        world.input.answer(long.clone());
        assert_eq!(read_all(first).await, long);
        assert_eq!(world.wanted.recv().await, Some(PROGRAM));
        world.input.answer("b".into());
        assert_eq!(read_all(second).await, "b");
    }

    #[tokio::test]
    async fn text_typed_ahead_waits_and_a_program_that_left_takes_none() {
        let mut world = world(true);
        let left = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(world.wanted.recv().await, Some(PROGRAM));
        drop(left);
        let next = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(world.wanted.recv().await, Some(PROGRAM));
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
        assert_eq!(world.wanted.recv().await, Some(PROGRAM));
        sleep(3 * HANG_UP_POLL).await;
        world.input.answer("text".into());
        assert_eq!(read_all(stream).await, "text");
    }

    #[tokio::test]
    async fn an_engine_may_give_up_and_its_text_is_kept() {
        let mut world = world(true);
        let source = world.input.source();
        assert!(timeout(Duration::from_millis(20), source.ask(true)).await.is_err(), "withdrawn");
        assert_eq!(world.wanted.recv().await, Some(InputWanted { is_password: Some(true) }));
        world.input.answer("kept".into());
        assert_eq!(source.ask(false).await.as_deref(), Some("kept"));
    }

    #[tokio::test]
    async fn without_a_socket_engines_can_ask() {
        let (tell, mut wanted) = mpsc::channel(1);
        let input = serve(Path::new("/nonexistent/socket"), true, tell, &TaskGroup::new());
        let source = input.source();
        let (typed, ()) = tokio::join!(source.ask(false), async {
            assert_eq!(wanted.recv().await, Some(InputWanted { is_password: Some(false) }));
            input.answer("text".into());
        });
        assert_eq!(typed.as_deref(), Some("text"));
    }

    #[tokio::test]
    async fn without_support_the_program_is_told() {
        let world = world(false);
        let stream = UnixStream::connect(&world.path).await.unwrap();
        assert_eq!(read_all(stream).await, UNSUPPORTED);
        assert_eq!(fs::metadata(&world.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
