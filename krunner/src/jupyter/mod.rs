//! Query mode through Jupyter kernels: found, started, watched, asked, and never waited for without an end.
//!
//! ```text
//!              Kernel (a handle)              one task, Supervisor
//! runtime ──▶ run, complete, interrupt ──▶ starting ─▶ ready ─▶ dead ─▶ starting ...
//!                     │                               │
//!                     ▼                               ▼
//!             Client: requests, who waits      Connection: five sockets, read and written here
//! ```
//!
//! Messages are `jupyter-protocol`'s. The sockets are ours (`frames.rs`, `channel.rs`): a kernel runs the
//! user's code, and neither one print of 100 MB nor a length of 2^62 may cost us more than a chunk of memory,
//! which a client that hands out whole messages cannot promise.

mod channel;
mod client;
mod connection;
mod execution;
mod frames;
mod kernel;
mod kernelspec;
mod long_text;
mod message;
mod pulse;
mod raw_output;
mod render;
mod sockets;
mod supervisor;

pub use kernel::{Kernel, KernelSettings};
pub use kernelspec::Interpreter;
