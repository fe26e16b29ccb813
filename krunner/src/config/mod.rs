//! Where things are, which ports are ours, and what environment children get.
//!
//! Everything is read once, at start. A file that is missing is fine; one that is malformed yields a
//! [`Warning`] that names it and the line, and the defaults stand.

mod environ;
mod paths;
mod ports;
mod warning;

pub use environ::{ChildEnv, agent_env, child_env, promote};
pub use paths::Paths;
pub use ports::Ports;
pub use warning::Warning;
