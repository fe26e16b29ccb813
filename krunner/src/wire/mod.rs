//! The agent's protocol as types: requests ([`Op`]) and replies ([`Reply`]).
//!
//! Pure: no sockets, no clock. A message is exactly two frames, `[type, payload]`, both ways. The agent's read loop
//! stops permanently on a reply with another frame count, a non-ASCII type, or a payload that is not UTF-8 in any type
//! but `stdout` and `stderr`. A [`ReplyMessage`] can only be created from a [`Reply`], whose fields make all of those
//! impossible.

mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod op;
mod payload;
mod reply;

pub(crate) use frame::ReplyMessage;
pub(crate) use op::{AT_ONCE, Op, Step, StepKind};
pub(crate) use payload::{AppEntry, InputOptions, ModelServiceRequest, ModelStatus, ServiceOutcome, ServiceRequest};
pub(crate) use reply::{Reply, Stream};
