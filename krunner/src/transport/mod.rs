//! Messages in and out over `ZeroMQ`, bounded whatever the peer does.
//!
//! The `zeromq` crate speaks the protocol; a [`relay`] of ours stands between its sockets and the
//! network, one pair for each connection:
//!
//! ```text
//! agent ── TCP ── relay ── unix socket ── PullSocket ──▶ pull ──▶ Inbound
//! agent ── TCP ── relay ── unix socket ── PushSocket ◀── push ◀── Outbox
//! typed ── TCP ── relay ── unix socket ── SubSocket ──▶ pull ──▶ Inbound
//! screen ─ TCP ─────────────────────────────────────── publish ◀── Publisher
//! ```
//!
//! The crate alone queues 100,000 messages for a peer whatever their size, does not notice that the
//! peer of a PUSH socket has left, loses what is queued when it does or when the socket is dropped,
//! and allocates whatever length a frame header claims. The relay sees every byte: it refuses frames
//! that are too long, notices a peer that leaves, and counts what has reached the network. From that
//! count, `push` knows which messages to keep, to send again to the next peer, and to wait for at
//! shutdown.

mod client;
mod frames;
mod ledger;
mod link;
mod listener;
mod outbox;
mod publish;
mod pull;
mod push;
mod relay;
mod scanner;

pub use client::{Address, Client, ClientError, RawReply};
pub use outbox::{Outbox, Queue};
pub use publish::{Publisher, listen as listen_pub};
pub use pull::{Inbound, listen as listen_pull, subscribe as listen_sub};
pub use push::listen as listen_push;
