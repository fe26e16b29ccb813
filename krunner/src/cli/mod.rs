//! The command line: the only place that builds a runtime, prints to stdout, and turns errors into
//! exit codes.

mod args;
mod completions;
mod doctor;
mod languages;
mod main;
mod man;
mod monitor;
mod run;
mod scratch;
mod selftest;
mod send;
mod services;
mod stdout;

pub use args::command;
pub use main::main;
