//! Child processes: started in a group of their own, their output pumped, ended, always reaped.
//!
//! ```text
//!           spawn            exit status            pipes at EOF, or left to a grandchild
//! Command ────────▶ running ────────────▶ draining ─────────────────────────▶ Outcome
//!                     │  ▲                  (at most LEAK_TIMEOUT)
//!      SIGINT to the group; or TERM ─ 2 s ─▶ KILL
//! ```
//!
//! Knows nothing of the agent: output goes to an [`OutputSink`], statuses to whoever waits.

mod command;
mod control;
mod end_reason;
mod launcher;
pub(crate) mod oom_score;
mod outcome;
mod pump;
mod reaper;
mod sink;
mod source;
mod spawn;
mod spawn_limits;
mod sweep;
mod tasklog;

pub use command::Command;
pub use control::{Asked, Asks, Control};
pub use end_reason::{EndReason, ExplainEnd, PuzzlingEnd, Unexplained};
pub use launcher::{Collected, Console, ExplainedEnd, Launcher, Running};
pub use oom_score::OomRank;
pub use outcome::{Exit, Outcome};
pub use reaper::{Reaper, Witness};
pub use sink::{OutputSink, Rich, Stream};
pub use source::InputSource;
pub use spawn::{OnTerminal, SpawnError, spawn_on_terminal};
pub(crate) use spawn_limits::PidsLimit;
pub use sweep::{end_adopted_children, kill_children};
