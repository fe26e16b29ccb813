//! Languages: what the batch steps and a snippet of code mean for each.
//!
//! A runtime returns a [`Plan`], which is data: the commands to run in order, or why there is nothing to run. It starts no
//! process itself (except probes in [`Runtime::init`]), so a plan can be shown and tested without a compiler. The files of a
//! snippet are created in [`ScratchFiles`], which removes them. [`LANGUAGES`] is the table of all languages; each is one file
//! and one row.

mod app;
mod c;
mod cpp;
mod engine;
mod environment;
mod git;
mod golang;
mod h2o;
mod haskell;
mod java;
mod julia;
mod jupyter;
mod language;
mod lua;
mod native;
mod nodejs;
mod octave;
mod php;
mod plan;
mod polly;
mod python;
mod r;
mod r_server;
mod recipe;
mod remote;
mod rust;
mod scheme;
mod scratch;
mod sigv4;
mod sources;
mod toolchain;
mod traits;
mod user_site;

#[cfg(test)]
mod languages_tests;
#[cfg(test)]
mod testing;

pub(crate) use engine::{Engine, EngineContext};
pub(crate) use language::{LANGUAGES, Language};
pub(crate) use plan::{Plan, Severity};
pub(crate) use scratch::ScratchFiles;
pub(crate) use traits::{InitContext, Runtime, make_or_build};
