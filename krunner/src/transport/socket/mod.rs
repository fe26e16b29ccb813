//! Connections with the sockets of the `zeromq` crate, made safe. Nothing outside of this folder knows the crate.
//!
//! ```text
//!                     ┌──────────── one connection ─────────────┐
//! peer ── TCP ──▶ relay ── unix socket ──▶ PullSocket, SubSocket ──▶ receive
//! peer ◀── TCP ── relay ◀── unix socket ── PushSocket ◀──────────── MessageSender
//!                   ▲ scanner, budget, heartbeat
//! ```
//!
//! The crate (0.7) implements the protocol, and each of these faults of it would harm a session:
//!
//! | the crate | what we do about it |
//! |---|---|
//! | allocates the length that a frame header claims | `scanner` refuses a long message at its header; `link` lets nobody else connect to the crate's socket |
//! | keeps the largest receive buffer of a connection | `budget` counts it until the connection closes |
//! | closes a connection at a PING | `scanner` takes commands out of the stream, `relay` answers them |
//! | queues 100,000 messages of any size for a peer | the reply queue hands over one window at a time |
//! | notices late that the peer of a PUSH socket left, and loses what is queued for it | `relay` sees the end, and counts what the network took |
//! | accepts in tasks of its own, which keep a connection that ended during the handshake | `link` has it connect instead, and shuts it down |
//! | loses queued messages when a socket is dropped | the same count tells when everything was sent |
//!
//! The relay can go, and its unix sockets with it, when the crate has: a limit for the length of a message, checked at
//! the frame header; a hook that reports the bytes written for each peer; a way to adopt a connected stream; a disconnect event for PUSH peers without a
//! write; an answer to PING; a receive buffer that shrinks. `MessageSender` and [`receive()`] are what would remain.

mod budget;
#[cfg(any(test, fuzzing))]
mod fuzzing;
mod heartbeat;
mod link;
mod progress;
mod receive;
mod relay;
mod scanner;
mod send;
mod splice;

pub(super) use budget::ReceiveLimits;
#[cfg(any(test, fuzzing))]
pub(crate) use fuzzing::scanner as fuzz_scanner;
pub(super) use link::{ConnectionLost, LinkError};
pub(super) use receive::{MessageReceiver, SocketType, open_receiver, receive};
pub(super) use scanner::FrameLimits;
pub(super) use send::{MessageSender, framed_bytes, open_sender};
