//! A shell on a pseudoterminal, and the commands beside it that a web terminal sends as `code`.
//!
//! ```text
//! typed ──▶ Line ──▶ ┌─────┐ ──▶ shell, in a session of its own
//!                    │ pty │
//! screen ◀─ Line ◀── └─────┘ ◀── and whatever it runs
//! ```
//!
//! Knows nothing of sockets: a [`Line`] carries the bytes.

mod command;
mod graph;
mod pty;
mod shell;

pub use command::{Order, parse};
pub use graph::{Graph, GraphError, show as show_graph};
pub use shell::{Line, Size, Terminal};
