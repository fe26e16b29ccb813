//! `ZeroMQ` messages in and out, with bounded memory whatever the peer does.
//!
//! [`socket`] has the sockets of the `zeromq` crate and the relay in front of each:
//!
//! ```text
//! agent ── TCP ──▶ socket ──▶ pull ──▶ Inbound
//! agent ◀── TCP ── socket ◀── push ◀── ReplySender
//! typed ── TCP ──▶ socket ──▶ pull ──▶ Inbound
//! screen ◀─ TCP ──────────── publish ◀── Publisher
//! ```
//!
//! `push` keeps each reply until the network took it, and so knows what to resend to the next peer, and what to wait for
//! at shutdown.

mod client;
mod eviction;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod listener;
mod log_limit;
mod publish;
mod pull;
mod push;
mod reply_queue;
mod reply_sender;
mod socket;
#[cfg(test)]
mod testing;

pub(crate) use client::{RawReply, RunnerAddress, RunnerClient, RunnerClientError};
pub(crate) use publish::{Publisher, listen as listen_pub};
pub(crate) use pull::{Inbound, listen as listen_pull, subscribe as listen_sub};
pub(crate) use push::listen as listen_push;
pub(crate) use reply_sender::{ReplyReceiver, ReplySender};
