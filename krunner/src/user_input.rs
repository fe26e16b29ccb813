//! Input from the user: programs in batch mode request it at a unix socket, the engine of query mode by a call.
//!
//! ```text
//! asks, or connects ─▶ waiting its turn ─▶ asked (the session says `waiting-input`)
//!                                             │ text arrives: handed over, connection closed
//!                                             └ requester gone: its turn is over, the text is kept
//! ```
//!
//! While a step runs, programs that an earlier step left behind wait: the text is for the step (`left_behind.rs`).
//!
//! Text that arrives before a request is kept for the next one, as a terminal keeps type-ahead. One task, [`InputBroker`],
//! owns this state.

mod left_behind;
mod socket;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

pub(crate) use self::left_behind::IsOwnChild;
use self::left_behind::orphan_start;
use self::socket::InputSocket;
use crate::config::{ChildEnv, INPUT_SOCKET_VARIABLE};
use crate::process::InputSource;
use crate::tasks::TaskGroup;

/// Sent to programs of a runtime without user input.
const UNSUPPORTED: &str = "<user-input is unsupported>";

/// Requests that may wait at the same time; more are rejected.
const MAX_WAITING: usize = 64;

/// Limit of the type-ahead text.
const MAX_TYPED_AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// Charged for each queued text beside its length.
const TEXT_OVERHEAD_BYTES: usize = 64;

/// Interval of polling whether a program that shut down its sending side closed the connection: the kernel reports only
/// the first of the two.
const HANG_UP_POLL: Duration = Duration::from_millis(50);

/// How long a program may take to read the text it requested.
const WRITE_PATIENCE: Duration = Duration::from_mins(1);

/// Sent to the session when a request becomes the first in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InputWanted {
    /// Whether the typed text should be hidden. `None` for programs at the socket, which cannot say.
    pub is_password: Option<bool>,
}

/// The session's handle on the broker.
pub(crate) struct UserInput {
    texts: mpsc::UnboundedSender<String>,
    requests: mpsc::Sender<InputRequest>,
    /// When the running step started; `None` between steps.
    step: watch::Sender<Option<u64>>,
    /// The socket's path, if it is not the usual one.
    elsewhere: Option<PathBuf>,
}

/// A request of an engine.
struct InputRequest {
    is_password: bool,
    answer: oneshot::Sender<String>,
}

impl UserInput {
    /// Passes on text for the pending request, or for the next one.
    pub(crate) fn answer(&self, text: String) {
        // Unbounded, but the broker drains it at once and bounds what it keeps.
        let _ = self.texts.send(text);
    }

    /// A step starts: programs that are left of earlier ones wait until it is over.
    pub(crate) fn step_started(&self) {
        self.step.send_replace(left_behind::now());
    }

    /// No step runs.
    pub(crate) fn step_ended(&self) {
        self.step.send_replace(None);
    }

    /// Sets the socket's path in the environment of programs if it is not the usual one. The variable of an outer runner is
    /// removed.
    pub(crate) fn add_variable(&self, env: &mut ChildEnv) {
        match &self.elsewhere {
            Some(path) => env.insert(INPUT_SOCKET_VARIABLE.into(), path.into()),
            None => env.remove(OsStr::new(INPUT_SOCKET_VARIABLE)),
        };
    }

    /// A source for engines, which do not use the socket.
    #[must_use]
    pub(crate) fn source(&self) -> Arc<dyn InputSource> {
        Arc::new(BrokerSource(self.requests.clone()))
    }
}

struct BrokerSource(mpsc::Sender<InputRequest>);

#[async_trait]
impl InputSource for BrokerSource {
    async fn ask(&self, is_password: bool) -> Option<String> {
        let (answer, answered) = oneshot::channel();
        self.0.send(InputRequest { is_password, answer }).await.ok()?;
        answered.await.ok()
    }
}

/// Opens the socket and starts the broker. If the socket cannot be opened, a warning is logged and only engines can request
/// input. With `supported` false every request is answered with [`UNSUPPORTED`].
#[must_use]
pub(crate) fn serve(
    path: &Path,
    supported: bool,
    wanted: mpsc::Sender<InputWanted>,
    is_own_child: IsOwnChild,
    tasks: &TaskGroup,
) -> UserInput {
    let socket = InputSocket::open(path);
    let elsewhere = socket.as_ref().and_then(InputSocket::elsewhere).map(Path::to_owned);
    let (texts, typed) = mpsc::unbounded_channel();
    let (requests, asked) = mpsc::channel(1);
    let step = watch::Sender::new(None);
    let broker = InputBroker {
        supported,
        wanted,
        waiting: VecDeque::new(),
        is_announced: false,
        typed_ahead: VecDeque::new(),
        typed_bytes: 0,
        step: step.subscribe(),
        is_own_child,
        tasks: tasks.clone(),
    };
    tasks.spawn("user input", broker.run(socket, typed, asked));
    UserInput { texts, requests, step, elsewhere }
}

/// The sender of a queued request.
enum Requester {
    Program(UnixStream),
    Engine(InputRequest),
}

impl Requester {
    fn has_left(&self) -> bool {
        match self {
            Self::Program(stream) => has_hung_up(stream),
            Self::Engine(request) => request.answer.is_closed(),
        }
    }

    fn wanted(&self) -> InputWanted {
        InputWanted {
            is_password: match self {
                Self::Program(_) => None,
                Self::Engine(request) => Some(request.is_password),
            },
        }
    }
}

struct InputBroker {
    supported: bool,
    wanted: mpsc::Sender<InputWanted>,
    waiting: VecDeque<Requester>,
    /// Whether the agent was notified about the first in the queue.
    is_announced: bool,
    typed_ahead: VecDeque<String>,
    /// Cost of `typed_ahead`; see [`TEXT_OVERHEAD_BYTES`].
    typed_bytes: usize,
    step: watch::Receiver<Option<u64>>,
    is_own_child: IsOwnChild,
    tasks: TaskGroup,
}

enum BrokerEvent {
    Connected(io::Result<UnixStream>),
    Requested(InputRequest),
    Typed(String),
    FirstLeft,
    /// A step started or ended.
    StepChanged,
    /// The session can take another [`InputWanted`].
    CanAnnounce(mpsc::OwnedPermit<InputWanted>),
    Closed,
}

impl InputBroker {
    async fn run(
        mut self,
        mut socket: Option<InputSocket>,
        mut typed: mpsc::UnboundedReceiver<String>,
        mut asked: mpsc::Receiver<InputRequest>,
    ) {
        loop {
            let event = tokio::select! {
                connection = accept(socket.as_mut()) => BrokerEvent::Connected(connection),
                Some(request) = asked.recv() => BrokerEvent::Requested(request),
                text = typed.recv() => text.map_or(BrokerEvent::Closed, BrokerEvent::Typed),
                // While the session is busy, connections and texts are still taken.
                Ok(permit) = self.wanted.clone().reserve_owned(), if self.has_to_announce() => BrokerEvent::CanAnnounce(permit),
                Ok(()) = self.step.changed() => BrokerEvent::StepChanged,
                () = gone(self.waiting.front_mut()) => BrokerEvent::FirstLeft,
            };
            match event {
                BrokerEvent::Connected(Ok(stream)) => self.enqueue(Requester::Program(stream)),
                BrokerEvent::Requested(request) => self.enqueue(Requester::Engine(request)),
                BrokerEvent::Connected(Err(error)) => {
                    tracing::warn!("cannot accept a request for input: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                BrokerEvent::Typed(text) => self.keep(text),
                BrokerEvent::FirstLeft => {
                    self.waiting.pop_front();
                    self.is_announced = false;
                }
                BrokerEvent::StepChanged => {}
                BrokerEvent::CanAnnounce(permit) => self.announce(permit),
                BrokerEvent::Closed => return,
            }
            self.serve_first();
        }
    }

    fn has_to_announce(&self) -> bool {
        !self.is_announced && self.waiting.front().is_some_and(|first| !self.is_left_behind(first))
    }

    /// Asked each time: a program becomes an orphan when its step ends.
    fn is_left_behind(&self, requester: &Requester) -> bool {
        let Requester::Program(stream) = requester else { return false };
        let is_older = |step_start| orphan_start(stream, &self.is_own_child).is_some_and(|start| start < step_start);
        self.step.borrow().is_some_and(is_older)
    }

    /// Puts a request of the running step before those of programs that were left behind.
    fn order(&mut self) {
        if self.waiting.front().is_none_or(|first| !self.is_left_behind(first)) {
            return;
        }
        self.is_announced = false;
        let next = self.waiting.iter().position(|requester| !self.is_left_behind(requester));
        if let Some(requester) = next.and_then(|at| self.waiting.remove(at)) {
            self.waiting.push_front(requester);
        }
    }

    fn announce(&mut self, permit: mpsc::OwnedPermit<InputWanted>) {
        if let Some(first) = self.waiting.front() {
            permit.send(first.wanted());
            self.is_announced = true;
        }
    }

    fn enqueue(&mut self, requester: Requester) {
        if !self.supported {
            self.hand_over(requester, UNSUPPORTED.to_owned());
        } else if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(requester);
        } else {
            tracing::warn!("too many programs are waiting for input (limit {MAX_WAITING}); rejecting one");
        }
    }

    fn keep(&mut self, text: String) {
        let cost = text.len() + TEXT_OVERHEAD_BYTES;
        if !self.supported {
            tracing::warn!("ignoring input: this runtime does not take any");
        } else if self.typed_bytes + cost > MAX_TYPED_AHEAD_BYTES && !self.typed_ahead.is_empty() {
            tracing::warn!(
                "too much unread input (limit {MAX_TYPED_AHEAD_BYTES} bytes); dropping {} bytes",
                text.len()
            );
        } else {
            self.typed_bytes += cost;
            self.typed_ahead.push_back(text);
        }
    }

    /// Answers the first in the queue if the session was notified about it and text is available.
    fn serve_first(&mut self) {
        loop {
            self.order();
            let Some(first) = self.waiting.front() else { return };
            if first.has_left() {
                self.waiting.pop_front();
                self.is_announced = false;
                continue;
            }
            if !self.is_announced {
                return;
            }
            let Some(text) = self.typed_ahead.pop_front() else { return };
            self.typed_bytes -= text.len() + TEXT_OVERHEAD_BYTES;
            if let Some(requester) = self.waiting.pop_front() {
                self.is_announced = false;
                self.hand_over(requester, text);
            }
        }
    }

    /// Writes and closes in a task of its own, because the program may read slowly.
    fn hand_over(&self, requester: Requester, text: String) {
        let mut stream = match requester {
            Requester::Program(stream) => stream,
            // Fails if the engine gave up in this moment. The text was meant for it and is dropped.
            Requester::Engine(request) => {
                let _ = request.answer.send(text);
                return;
            }
        };
        self.tasks.spawn("input text", async move {
            let written = async {
                stream.write_all(text.as_bytes()).await?;
                // A close alone does not end the stream while a child that hangs in `execve` has a copy of it.
                stream.shutdown().await
            };
            match timeout(WRITE_PATIENCE, written).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("cannot send input to the program: {error}"),
                Err(_) => {
                    tracing::warn!("a program did not read its input for {WRITE_PATIENCE:?}; dropping the rest");
                }
            }
        });
    }
}

async fn accept(socket: Option<&mut InputSocket>) -> io::Result<UnixStream> {
    match socket {
        Some(socket) => socket.accept().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the first in the queue no longer waits, for a program when it closed its connection.
async fn gone(first: Option<&mut Requester>) {
    let stream = match first {
        Some(Requester::Program(stream)) => stream,
        Some(Requester::Engine(request)) => return request.answer.closed().await,
        None => return std::future::pending().await,
    };
    let mut ignored = [0; 64];
    // Whatever a program writes is ignored. It may still wait for its text after its end of file: `socat` with an empty
    // stdin does.
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
#[path = "user_input/user_input_tests.rs"]
mod tests;
