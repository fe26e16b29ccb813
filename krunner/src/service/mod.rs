//! Services: programs with a port that the agent starts by name.
//!
//! [`Services`] is a handle on the task that owns them, behind a bounded channel. Templates, definitions, command lines and
//! health are pure. The session passes the agent's requests on as [`ServiceCommand`]s and makes replies of [`ServiceEvent`]s.

mod action;
mod braces;
mod catalogue;
mod command;
mod daemon;
mod definition;
mod fallback;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod intrinsic;
mod job;
mod launch;
mod manager;
mod model;
mod preview;
mod probe;
mod response_queue;
mod response_timeout;
mod start_error;
mod startup;
mod template;
mod template_error;
mod watcher;

pub use braces::Syntax;
pub(crate) use catalogue::Catalogue;
pub(crate) use command::{ServiceCommand, ServiceEvent, StartModel, StartService};
pub use definition::Definition;
pub(crate) use fallback::{fallback, offered};
pub(crate) use launch::ResolvedCommand;
pub use launch::{UserOptions, resolve};
pub(crate) use manager::{Services, ServicesBusy, ServicesConfig};
pub(crate) use preview::preview;
pub(crate) use response_timeout::DEFAULT_RESPONSE_TIMEOUT;
pub(crate) use startup::{StartProgress, StartPublisher};
pub use template::{Value, Variables, render};
