//! Paths, ports, and the environment of children.
//!
//! All configuration is read once, at start. A missing file is not an error. A malformed one yields a [`ConfigWarning`]
//! with file and line, and the defaults apply.

mod agent_version;
mod environ;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod home;
mod limits;
mod memory;
mod paths;
mod ports;
mod switch;
mod warning;

pub(crate) use agent_version::AgentVersion;
pub use environ::ChildEnv;
pub(crate) use environ::{agent_env, child_env, promote};
pub(crate) use file::read_regular;
pub(crate) use home::foreign_home;
pub(crate) use limits::{LowLimit, low_limits, require_for_session, require_stack};
pub(crate) use memory::{MemoryHook, MemorySettings};
pub(crate) use paths::{INPUT_SOCKET_VARIABLE, Paths};
pub(crate) use ports::Ports;
pub(crate) use switch::allows_ssh_password;
pub(crate) use warning::ConfigWarning;
