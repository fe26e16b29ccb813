//! Services that come with every session: the ssh server and the terminal in the browser.
//!
//! ```text
//!            keys in their places            port has a listener
//! planning ─────────────────────▶ Coming ────────────────────────▶ Open
//!    │                             ▲  │                             │
//!    │ a program is missing        │  │            its end          │
//!    │                             └──┴──── told, and a pause ◀─────┘
//!    └──────▶ Over ◀── too many ends in a row, or stopped
//! ```
//!
//! What is there, how it is called and what the user's files come to are pure (`sshd`, `ttyd`, `ssh_config`,
//! `authorized_keys`, `backoff`); `keys` and `home` carry it out, `kept` stays with the processes.

mod authorized_keys;
mod backoff;
mod home;
mod kept;
mod keys;
mod plan;
mod ssh_config;
mod sshd;
mod ttyd;

pub use kept::{Kept, Status};
pub use plan::{Planner, SSHD, TTYD};
