//! Services: programs with a port that the agent asks for by name.
//!
//! Knows nothing of the agent's messages: the session turns those into requests, and what is told here into replies.

pub mod intrinsic;
mod last_lines;
mod listeners;
mod supervised;

pub use supervised::{Ended, Launch, Phase, StartError, Supervised};
