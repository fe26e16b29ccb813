//! Children that live longer than a step: started, watched, restarted, stopped.
//!
//! Services, sshd and ttyd, the terminal's shell and Jupyter kernels are all a [`Job`]. What one attempt to run the child is,
//! from its preparation to its end, each of them says by an [`Attempt`]; when the next attempt follows, by a [`RestartPolicy`].
//!
//! ```text
//!                   ready                   stop
//! Starting ─────────────────────▶ Ready ───────────▶ Stopping
//!   ▲  │ ▲  attempt ends, restart   │                   │ attempt ends
//!   │  │ └──────────────────────────┘                   ▼
//!   │  └── attempt ends, no restart; or stop ───────▶ Stopped
//!   │                                                   │
//!   └─────────────────────── start ─────────────────────┘   not after stop
//! ```
//!
//! One task owns the child and publishes the state; a [`Job`] is a handle on it, and dropping the handle stops nothing.
//! A restart waits for the pause of its [`Backoff`]. [`Job::stop`] is final: it terminates the attempt's [`Control`].
//!
//! [`Program`] is the usual child: one process whose output goes to the log and whose last lines explain its exit.
//!
//! [`Control`]: crate::process::Control

mod job;
mod last_lines;
mod listeners;
mod program;
mod readiness;
mod restart;

pub(crate) use job::{Attempt, AttemptEnd, Job, JobState, Progress, StartStage};
pub(crate) use listeners::{
    PortOwner, is_open_in_session, port_owner, session_listener, wait_until, wait_until_in_session,
};
pub(crate) use program::{ProgramExit, ProgramLaunch, ProgramStartError, SupervisedProgram};
pub(crate) use readiness::{ChildReadiness, PortReadiness, PortTaken};
pub(crate) use restart::{Backoff, RestartPolicy};
