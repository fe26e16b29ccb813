//! One session: from bound sockets to the last flushed reply.
//!
//! ```text
//! start ──▶ serving ──────────────signal──────────────▶ stopping ──▶ gone
//!   │         │  ops are answered at once                 │  step: TERM, 2 s, KILL
//!   │         │  steps run one at a time, and wait        │  orphans: the same
//!   │         │  for init and bootstrap                   │  replies: flushed
//!   └ init, bootstrap (beside the ops)                    └ second signal: at once
//! ```
//!
//! [`Session`] owns the state. Its loop turns whatever happens into an `Event`, handles it without
//! waiting for anything, and lets tasks of their own do what takes time; these report with events.
//! This is also where domain values become replies: nothing below knows of the wire.

mod completion;
mod dispatch;
mod end_reason;
mod event;
mod intrinsic;
mod oom;
mod oom_log;
mod output;
mod queue;
mod reports;
mod services;
mod signals;
mod start;
mod stop;
mod terminal;
mod terminal_notice;
mod worker;

pub use dispatch::{Session, Settings};
pub use signals::Signals;
