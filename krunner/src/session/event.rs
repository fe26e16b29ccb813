//! Everything that can happen to a session.

use bytes::Bytes;

use super::oom::Told;
use super::start::Prepared;
use crate::service;
use crate::user_input::InputWanted;

/// What the session's loop reacts to.
pub(super) enum Event {
    /// A message of the agent, as its frames.
    Message(Vec<Bytes>),
    /// Runtime and bootstrap script are through; steps may run with what they have made.
    Ready(Box<Prepared>),
    /// Suggestions for the oldest completion request.
    Completed(Vec<String>),
    /// The running step has ended.
    StepDone {
        /// For the agent.
        exit_code: i32,
    },
    /// Reports that were kept can go to the agent.
    RoomForReports,
    /// The end of a step has waited long enough for reports of kills.
    Overdue,
    /// A program or the engine asks for input.
    InputWanted(InputWanted),
    /// What the program had written when it asked is with the agent's replies.
    Settled {
        /// Which step that was in.
        step_number: u64,
        /// What it asks for.
        wanted: InputWanted,
    },
    /// An answer about services, or news of a model service.
    Service(service::Event),
    /// About kills for memory.
    Oom(Told),
    /// SIGINT or SIGTERM.
    Signal,
    /// One of our tasks panicked.
    TaskPanicked(&'static str),
}

/// Whether the loop goes on.
#[must_use]
pub(super) enum Response {
    Continue,
    Stop,
    Fail(&'static str),
}
