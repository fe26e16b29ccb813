//! The client that receives: passes each reply to the client that waits for it, and counts.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use krunner_tests::Message;
use krunner_tests::zmtp::Peer;

/// How long a connection for replies lasts.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(7);

/// Nothing from the runner for so long is a lost reply: `status` is asked for all the time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the clients and the receiver share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When each `status` was sent that is not answered.
    statuses: VecDeque<Instant>,
    latencies: Vec<Duration>,
    counts: BTreeMap<String, u64>,
    problems: Vec<String>,
    /// All clients but the one for `status` have ended.
    are_clients_done: bool,
    /// The last `status` was sent, and its reply is the last.
    is_ending: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A `status` is about to be sent; `true` if it is the last.
    pub(super) fn status_sent(&self) -> bool {
        let mut state = self.lock();
        state.statuses.push_back(Instant::now());
        state.is_ending = state.are_clients_done;
        state.is_ending
    }

    pub(super) fn statuses_owed(&self) -> usize {
        self.lock().statuses.len()
    }

    pub(super) fn clients_done(&self) {
        self.lock().are_clients_done = true;
    }

    pub(super) fn problem(&self, problem: String) {
        self.lock().problems.push(problem);
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.lock().problems.clone()
    }

    pub(super) fn take_latencies(&self) -> Vec<Duration> {
        mem::take(&mut self.lock().latencies)
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.lock().counts.clone()
    }

    /// Counts a reply; `true` if it is the last.
    fn received(&self, message: &Message) -> bool {
        let mut state = self.lock();
        *state.counts.entry(message.kind.clone()).or_default() += 1;
        if message.kind == "status" {
            match state.statuses.pop_front() {
                Some(sent) => state.latencies.push(message.at - sent),
                None => state.problems.push("a `status` reply without a request".to_owned()),
            }
        }
        state.is_ending && state.statuses.is_empty()
    }
}

/// The replies that a client waits for.
pub(super) struct Channels {
    pub(super) steps: Receiver<Message>,
    pub(super) services: Receiver<Message>,
}

/// Receives on connections that follow each other.
pub(super) struct ReplyReader {
    port: u16,
    steps: Sender<Message>,
    services: Sender<Message>,
}

impl ReplyReader {
    pub(super) fn new(port: u16) -> (Self, Channels) {
        let (steps, steps_received) = channel();
        let (services, services_received) = channel();
        (Self { port, steps, services }, Channels { steps: steps_received, services: services_received })
    }

    /// Receives until the last reply.
    pub(super) fn run(&self, shared: &Shared) {
        while self.run_connection(shared) {}
    }

    /// Receives from one connection, which then leaves in order; `false` after the last reply.
    fn run_connection(&self, shared: &Shared) -> bool {
        let peer = &mut Peer::connect(self.port, "PULL");
        peer.set_patience(PATIENCE);
        let deadline = Instant::now() + RECONNECT_INTERVAL;
        let mut is_leaving = false;
        while let Some(frames) = peer.recv() {
            let message = Message::new(frames);
            let is_last = shared.received(&message);
            self.pass_on(message);
            if is_last {
                return false;
            }
            if !is_leaving && Instant::now() >= deadline {
                peer.leave();
                is_leaving = true;
            }
        }
        if !is_leaving {
            shared.problem("the runner closed the connection for replies".to_owned());
        }
        is_leaving
    }

    /// A client that has ended takes none.
    fn pass_on(&self, message: Message) {
        let _ = match message.kind.as_str() {
            "status" => Ok(()),
            "service-result" | "apps-result" | "completion" => self.services.send(message),
            _ => self.steps.send(message),
        };
    }
}
