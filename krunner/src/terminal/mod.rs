//! A shell on a pseudoterminal, and the commands that a web terminal sends as `code`.
//!
//! ```text
//! typed ──▶ TerminalTransport ──▶ ┌─────┐ ──▶ shell, in a session of its own
//!                                 │ pty │
//! screen ◀─ TerminalTransport ◀── └─────┘ ◀── and the programs it runs
//! ```
//!
//! Does not know sockets: a [`TerminalTransport`] carries the bytes.

mod command;
mod graph;
mod pty;
mod shell;
mod window_size;

pub(crate) use command::{TerminalCommand, parse};
pub(crate) use graph::show as show_graph;
pub(crate) use shell::{Terminal, TerminalTransport};
