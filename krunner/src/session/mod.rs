//! A session, from bound sockets to the last flushed reply.
//!
//! ```text
//! start ──▶ serving ──────────────signal──────────────▶ stopping ──▶ gone
//!   │         │  ops are answered at once                 │  step: TERM, 2 s, KILL
//!   │         │  steps run one at a time, and wait        │  orphans: the same
//!   │         │  for init and bootstrap                   │  replies: flushed
//!   └ init, bootstrap (beside the ops)                    └ second signal: at once
//! ```
//!
//! [`Session`] owns the state. Its loop receives every input as a `SessionEvent` and handles it without blocking; slow
//! work runs in separate tasks, which report back with events. Domain values are converted to replies here: no module
//! below depends on the wire format.

mod completion;
mod dispatch;
mod end_log;
mod event;
mod exit_reason;
mod intrinsic;
mod last_end;
mod oom;
mod output;
mod readiness;
mod report_delivery;
mod services;
mod signals;
mod start;
mod step_queue;
mod step_state;
mod stop;
mod terminal;
mod terminal_notice;
mod termination_message;
mod worker;

pub(crate) use dispatch::{Session, SessionConfig};
pub(crate) use signals::Signals;
