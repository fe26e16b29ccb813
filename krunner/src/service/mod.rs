//! Services: programs with a port that the agent asks for by name.
//!
//! [`Services`] is the one owner, behind a bounded channel; what it decides by is plain and pure: templates, definitions,
//! launches, health. Knows nothing of the agent's messages: the session turns those into orders, and events into replies.

mod action;
mod catalogue;
mod daemon;
mod definition;
mod desk;
mod fallback;
pub mod intrinsic;
mod job;
mod last_lines;
mod launch;
mod listeners;
mod model;
mod order;
mod preview;
mod probe;
mod supervised;
mod template;
mod watcher;

pub use catalogue::Catalogue;
pub use definition::Definition;
pub use desk::{Busy, Services, Setting};
pub use fallback::{fallback, offered};
pub use launch::{Assembled, Chosen, LaunchError, assemble, check};
pub use order::{AppInfo, Event, ModelOrder, Order, Outcome, ServiceOrder};
pub use preview::preview;
pub use supervised::{Ended, Launch, Phase, StartError, Supervised};
pub use template::{Shell, TemplateError, Value, Variables, names, render};
