//! krunner: the process inside a Backend.AI container that takes orders from the node's agent.
//!
//! The agent pushes ops over one `ZeroMQ` socket and pulls replies from another. Between the two
//! stands a [`session`], which runs steps one at a time, answers everything else at once, and stops
//! cleanly. ARCHITECTURE.md has the map of the rooms and the arrows between them.

pub mod cli;
pub mod config;
pub mod error;
pub mod exit;
pub mod http_client;
pub mod jupyter;
pub mod logging;
pub mod monitor;
pub mod process;
pub mod runtime;
pub mod service;
pub mod session;
pub mod sys;
pub mod tasks;
pub mod terminal;
pub mod transport;
pub mod user_input;
pub mod wire;
pub mod writer;
pub mod zmtp;
