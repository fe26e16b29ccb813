//! Query mode with Jupyter kernels. Every wait for a kernel has a deadline or ends with its process.
//!
//! ```text
//!              Kernel (a handle)              a job of the supervisor, KernelAttempt
//! runtime ──▶ run, complete, interrupt ──▶ starting ─▶ ready ─▶ dead ─▶ starting ...
//!                     │                               │
//!                     ▼                               ▼
//!             KernelClient: requests, who waits      Connection: five sockets, read and written here
//! ```
//!
//! Messages are `jupyter-protocol`'s. The sockets are our own (`frames.rs`, `channel.rs`): a kernel runs the user's code, and
//! neither a print of 100 MB nor a claimed length of 2^62 may cost more than a chunk of memory. Clients that return whole
//! messages cannot guarantee that.

mod attempt;
mod channel;
mod client;
mod connection;
mod execution;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeat;
mod kernel;
mod kernelspec;
mod long_text;
mod message;
mod raw_json;
mod raw_output;
mod ready_kernel;
mod render;
mod sockets;

pub(crate) use kernel::Kernel;
pub(crate) use kernelspec::Interpreter;
pub(crate) use message::hex;
pub(crate) use ready_kernel::KernelSettings;
