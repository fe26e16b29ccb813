//! Services that come with every session: the ssh server and the terminal in the browser.
//!
//! ```text
//!            keys installed                   port has a listener
//! planning ─────────────────────▶ Starting ───────────────────────▶ Ready
//!    │                             ▲  │                              │
//!    │ a program is missing        │  │            exit              │
//!    │                             └──┴──── logged, and a pause ◀────┘
//!    └──────▶ Stopped ◀── too many exits in a row, or stopped
//! ```
//!
//! Choosing programs, command lines and file contents is pure (`sshd`, `ttyd`, `ssh_config`, `authorized_keys`, `backoff`);
//! `keys`, `home` and `host_key` do the I/O, `managed` restarts the processes.

mod authorized_keys;
mod backoff;
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

pub(crate) use managed::{ManagedService, ManagedState};
pub(crate) use plan::{Planner, SSHD, TTYD};
