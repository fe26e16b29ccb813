//! Everything that can happen to a session.

use bytes::Bytes;

use super::oom::Told;
use super::start::Ready;
use crate::service;
use crate::user_input::InputWanted;

/// What the session's loop reacts to.
pub(super) enum Event {
    /// A message of the agent, as its frames.
    Message(Vec<Bytes>),
    /// Runtime and bootstrap script are through.
    Ready(Box<Ready>),
    /// The running step has ended.
    StepDone {
        /// For the agent.
        exit_code: i32,
    },
    /// A program asks for input.
    InputWanted(InputWanted),
    /// What the program had written when it asked is with the agent's replies.
    Settled {
        /// Which step that was in.
        step_number: u64,
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
