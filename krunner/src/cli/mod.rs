//! The command line: the only place that builds a runtime, prints to stdout, and turns errors into
//! exit codes.

mod args;
mod async_runtime;
mod completions;
mod doctor;
mod environment;
mod help;
mod languages;
mod main;
mod man;
mod monitor;
mod node;
mod oom;
mod run;
mod scratch;
mod selftest;
mod send;
mod services;
mod since;
mod stdout;

pub use main::main;
