//! Languages: what the three batch steps and a snippet of code mean for each.
//!
//! A runtime answers with a [`Plan`], which is data: the commands to run in order, or why there is
//! nothing to run. It starts nothing itself (but for probes in [`Runtime::init`]), so a plan can be
//! shown and tested without a compiler. [`KINDS`] is the table of all of them; a language is one file
//! and one row.

mod app;
mod c;
mod engine;
mod git;
mod h2o;
mod jupyter;
mod kind;
mod native;
mod plan;
#[cfg(feature = "polly")]
mod polly;
mod python;
mod r_server;
mod remote;
mod sources;
mod traits;
mod user_site;

pub use engine::{Engine, Surroundings};
pub use kind::{KINDS, Kind};
pub use plan::{Plan, Severity};
pub use traits::{InitContext, Runtime};
