//! Child processes: spawned in their own process group, output pumped, terminated, always reaped.
//!
//! ```text
//!           spawn            exit status            pipes at EOF, or left to a grandchild
//! Command ────────▶ running ────────────▶ draining ─────────────────────────▶ CommandOutcome
//!                     │  ▲                  (at most LEAK_TIMEOUT)
//!      SIGINT to the group; or TERM ─ 2 s ─▶ KILL
//! ```
//!
//! Independent of the agent: output goes to an [`OutputSink`], exit statuses to the task that waits for them.

mod command;
mod control;
mod early_pid;
mod exit_reason;
mod hook;
mod launcher;
pub(crate) mod oom_score;
mod outcome;
mod pump;
mod reaper;
mod sink;
mod source;
mod spawn;
mod spawn_limits;
mod start_failure;
mod sweep;
mod tasklog;
#[cfg(test)]
mod testing;

pub(crate) use crate::wire::Stream;
pub(crate) use command::Command;
pub(crate) use control::{Control, ControlReceiver, ControlRequest};
#[cfg(test)]
pub(crate) use exit_reason::NoExplanation;
pub(crate) use exit_reason::{ExitExplainer, ExitReason, UnexplainedExit};
pub(crate) use hook::Hook;
pub(crate) use launcher::{
    CaptureError, CollectedOutput, Console, ExplainedOutcome, Launcher, RunningChild, until_stopped,
};
pub(crate) use oom_score::OomScorePolicy;
pub(crate) use outcome::{ChildStatus, CommandOutcome};
pub(crate) use reaper::{ExitObserver, Reaper};
pub(crate) use sink::{OutputSink, RichOutput};
pub(crate) use source::InputSource;
pub(crate) use spawn::{SpawnError, spawn_on_terminal};
pub(crate) use spawn_limits::{PidsLimit, explain as explain_limit};
pub(crate) use start_failure::{enter, is_executable};
pub(crate) use sweep::{kill_children, terminate_orphans};
