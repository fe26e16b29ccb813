//! The agent's protocol as types: what it may ask ([`Op`]) and what it may be told ([`Reply`]).
//!
//! Pure: no sockets, no clock. A message is exactly two frames, `[type, payload]`, both ways. The
//! agent's read loop ends for good on a reply with another frame count, a non-ASCII type, or a
//! payload that is not UTF-8 in any type but `stdout` and `stderr`. A [`Message`] can only be made
//! from a [`Reply`], whose fields leave no room for any of those.

mod frame;
mod op;
mod payload;
mod reply;

pub use frame::{BadMessage, Message};
pub use op::{AgentEvent, Op, Step, StepKind};
pub use payload::{App, InputOptions, ModelServiceRequest, ModelStatus, ServiceOutcome, ServiceRequest};
pub use reply::{OutputStream, Reply};
