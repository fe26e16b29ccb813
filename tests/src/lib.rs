//! The harness of the integration suites: a runner in a folder of its own, the agent's unmodified client, a bare ZMTP
//! peer, and shared functions that wait for conditions.
//!
//! The harness knows the wire contract and nothing else: it links no krunner crate, so what the suites see is what an
//! agent would see. A harness call that fails panics with the reason, because only tests call it, and a
//! panic is what makes [`Runner`] print the captured output of the failed session.

#![deny(unsafe_code)]
#![expect(clippy::missing_panics_doc, reason = "every harness call may panic: that is how a test fails")]
#![expect(clippy::must_use_candidate, reason = "most calls here are waited for, and the value may be left")]

mod agent;
pub mod cgroup;
pub mod container;
pub mod flaky;
pub mod host;
pub mod http;
mod launch;
pub mod machine_checks;
mod monitor;
mod mounts;
pub mod node;
pub mod node_vm;
pub mod oom_matrix;
pub mod pids;
mod ports;
pub mod proc;
pub mod prometheus;
mod raw;
mod runner;
pub mod schema;
mod server;
mod setup;
mod terminal;
mod tty;
pub mod wait;
pub mod zmtp;

pub use agent::{Agent, Pending, Run, StepResult, Steps, child_lines};
pub use launch::{LaunchMethod, Sandbox};
pub use monitor::{Monitor, Scenario, ScenarioOutput};
pub use mounts::Mounts;
pub use ports::free_port;
pub use raw::{Message, Raw, Transcript};
pub use runner::Runner;
pub use server::Server;
pub use setup::{KERNEL_ID, Setup, WORK, binary};
pub use terminal::Terminal;
pub use tty::Tty;
