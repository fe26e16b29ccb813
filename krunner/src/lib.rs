//! krunner: the process inside a Backend.AI container that executes the requests of the node's agent.
//!
//! The agent pushes ops over one `ZeroMQ` socket and pulls replies from another. A [`session`] connects the two: it
//! runs steps one at a time, answers all other ops at once, and shuts down cleanly. ARCHITECTURE.md describes the
//! modules and their dependencies.

#![deny(unsafe_code)]

mod cli;
mod config;
mod error;
mod exit;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod http_client;
mod jupyter;
mod logging;
mod monitor;
mod node;
mod process;
mod remove_tree;
mod runtime;
mod service;
mod session;
mod supervisor;
mod sys;
mod tasks;
mod terminal;
mod transport;
mod user_folder;
mod user_input;
mod wire;
mod writer;
mod zmtp;

pub use cli::main;

/// What the integration suites compare with the Python runner's own code.
pub mod compared {
    pub use crate::config::ChildEnv;
    pub use crate::service::{Definition, Syntax, UserOptions, Value, Variables, render, resolve};
}
