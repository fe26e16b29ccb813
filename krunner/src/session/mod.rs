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

mod attribution;
mod completion;
mod dispatch;
mod end_log;
mod event;
mod exit_reason;
mod intrinsic;
mod last_end;
mod oom;
mod output;
mod preparation;
mod readiness;
mod report_delivery;
mod service_replies;
mod services;
mod signals;
mod startup;
mod step_queue;
mod steps;
mod stop;
mod terminal;
mod terminal_notice;
mod termination_message;
mod worker;

pub(crate) use dispatch::Session;
pub(crate) use signals::Signals;
pub(crate) use startup::SessionConfig;
