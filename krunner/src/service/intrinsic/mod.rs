//! Services that come with every session: the ssh server and the terminal in the browser.
//!
//! ```text
//! plan: keys installed, programs found ──▶ a job of the supervisor: restarted when it exits ──▶ stopped: too many exits, or asked
//!    └──── a program is missing ─────────▶ stopped
//! ```
//!
//! Choosing programs, command lines and file contents is pure (`sshd`, `ttyd`, `ssh_config`, `authorized_keys`);
//! `keys`, `home` and `host_key` do the I/O, `managed` runs the processes.

mod authorized_keys;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod home;
mod host_key;
mod keys;
mod managed;
mod missing_program;
mod plan;
mod plan_error;
mod ssh_config;
mod sshd;
mod ttyd;

pub(crate) use managed::{ManagedEnd, ManagedService, ManagedState, start_managed};
pub(crate) use plan::{Planner, SSHD, ServicePlan, TTYD};
pub(crate) use plan_error::PlanError;
