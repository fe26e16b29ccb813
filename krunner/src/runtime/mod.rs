//! Languages: what the three batch steps and a snippet of code mean for each.
//!
//! A runtime answers with a [`Plan`], which is data: the commands to run in order, or why there is
//! nothing to run. It starts nothing itself (but for probes in [`Runtime::init`]), so a plan can be
//! shown and tested without a compiler. The files that a snippet takes are made in a [`Scratch`], which
//! removes them. [`KINDS`] is the table of all languages; each is one file and one row.

mod app;
mod c;
mod cpp;
mod engine;
mod environment;
mod golang;
mod haskell;
mod java;
mod julia;
mod kind;
mod lua;
mod native;
mod nodejs;
mod octave;
mod php;
mod plan;
mod python;
mod r;
mod recipe;
mod rust;
mod scheme;
mod scratch;
mod sources;
mod toolchain;
mod traits;

#[cfg(test)]
mod languages_tests;
#[cfg(test)]
mod testing;

pub use engine::{Engine, Surroundings};
pub use kind::{KINDS, Kind};
pub use plan::{Plan, Severity};
pub use scratch::Scratch;
pub use traits::{InitContext, Runtime, make_or_build};
