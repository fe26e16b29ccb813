//! `ZeroMQ` messages in and out, with bounded memory whatever the peer does.
//!
//! The `zeromq` crate implements the protocol. Each connection has its own socket of that crate and a [`relay`] between
//! that socket and the network:
//!
//! ```text
//! agent ── TCP ── relay ── unix socket ── PullSocket ──▶ pull ──▶ Inbound
//! agent ── TCP ── relay ── unix socket ── PushSocket ◀── push ◀── ReplySender
//! typed ── TCP ── relay ── unix socket ── SubSocket ──▶ pull ──▶ Inbound
//! screen ─ TCP ─────────────────────────────────────── publish ◀── Publisher
//! ```
//!
//! By itself the crate queues 100,000 messages per peer regardless of size, does not notice when the peer of a PUSH
//! socket disconnects, loses queued messages when that happens or when the socket is dropped, and allocates any length
//! that a frame header claims. The relay sees every byte: it rejects frames that are too long, notices a disconnect,
//! and counts the bytes that reached the network. From that count, `push` knows which messages to keep, to resend to
//! the next peer, and to wait for at shutdown.

mod client;
mod frames;
mod link;
mod listener;
mod publish;
mod pull;
mod push;
mod relay;
mod reply_queue;
mod reply_sender;
mod scanner;
#[cfg(test)]
mod testing;

pub(crate) use client::{RawReply, RunnerAddress, RunnerClient, RunnerClientError};
pub(crate) use publish::{Publisher, listen as listen_pub};
pub(crate) use pull::{Inbound, listen as listen_pull, subscribe as listen_sub};
pub(crate) use push::listen as listen_push;
pub(crate) use reply_sender::{ReplyReceiver, ReplySender};
