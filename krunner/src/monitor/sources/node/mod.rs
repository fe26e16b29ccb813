//! The machine's tracer (`krunner node`) as a source: its socket delivers the OOM kills of this container, exactly, where eBPF is
//! refused here.
//!
//! ```text
//!  krunner node ═ unix socket ═▶ frame: length and JSON ─▶ protocol ─▶ client: greeting, back-off ─▶ NodeEvent
//! ```
//!
//! [`protocol`] and [`frame`] are used by both sides; the server is `crate::node`.

mod ask;
pub(in crate::monitor) mod client;
mod frame;
#[cfg(any(test, fuzzing))]
pub(in crate::monitor) mod fuzzing;
pub(in crate::monitor) mod protocol;

pub(crate) use ask::{greet, status};
pub(crate) use frame::{FrameBuffer, NodeFrameError, encode};
pub(crate) use protocol::{
    ALIVE_INTERVAL, FromNode, GREETING_PATIENCE, MAX_CMDLINE_BYTES, MAX_TO_NODE_BYTES, MAX_VICTIMS, NodeAncestor,
    NodeKill, NodeProcess, NodeStatus, NodeVictim, PeerStatus, SOCKET, ToNode, VERSION, Wants,
};
