//! The recipes of `krunner/dist`, read as container engines read them, and started without an engine.

mod agent;
mod docker;
pub mod dockerfile;
mod kubernetes;
mod rights;
mod seccomp;

pub use rights::{Engine, Recipe, folder, names, read};
