//! The command line: the only place that builds a runtime, prints to stdout, and turns errors into
//! exit codes.

mod args;
mod doctor;
mod languages;
mod main;
mod monitor;
mod run;
mod scratch;
mod selftest;
mod send;
mod services;

pub use args::command;
pub use main::main;
