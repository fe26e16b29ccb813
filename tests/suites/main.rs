//! The integration suites: one binary, a module for each part of the contract.
//!
//! `conformance_*` drives the runner with the agent's own client, the others with bare connections where exact bytes,
//! frames or times matter. Every test has a session of its own, and may run beside any other.

#![forbid(unsafe_code)]

mod agents;
mod backpressure;
mod bad_input;
mod children;
mod cluster;
mod command_line;
mod conformance_batch;
mod conformance_input;
mod conformance_ops;
mod contained;
mod delivery;
mod doctor;
mod doctor_agent;
mod drawing;
mod environment;
mod faults;
mod garbage;
mod git_graph;
mod git_terminal;
mod h2o;
mod hostile_home;
mod hostile_peers;
mod hung_mount;
mod interrupt;
mod jupyter;
mod jupyter_faults;
mod jupyter_oom;
mod jupyter_output;
mod jupyter_r;
mod killed_runner;
mod lifecycle;
mod limited_session;
mod model;
mod no_threads;
mod node;
mod node_daemons;
mod node_events;
mod node_kills;
mod node_peers;
mod oom;
mod oom_burst;
mod oom_cgroups;
mod oom_containers;
mod oom_explain;
mod oom_explain_growth;
mod oom_journal;
mod oom_phrases;
mod oom_plot;
mod oom_privilege;
mod oom_proc_views;
mod oom_program_log;
mod oom_session;
mod oom_silence;
mod oom_tenants;
mod oom_without_bpf;
mod output;
mod pages;
mod polly;
mod queue;
mod r_server;
mod recipes;
mod reconnect;
mod recorder;
mod report_delivery;
mod report_order;
mod resource_limits;
mod runtimes;
mod schema;
mod service_definitions;
mod service_models;
mod service_oracle;
mod services;
mod services_bad_input;
mod sshd;
mod stalled_log;
mod startup;
mod stop;
mod survival;
mod templates;
mod ttyd;

use std::fmt::{Display, Write as _};
use std::path::Path;

use krunner_tests::{Agent, Runner, Setup};

/// The least that a session needs: command lines only.
fn app() -> Setup {
    Setup::new("app")
}

/// A session and the agent's client on it.
fn with_agent(python: &Path, setup: Setup) -> (Runner, Agent) {
    let runner = setup.start();
    let agent = Agent::connect(python, &runner);
    (runner, agent)
}

/// A text with a line for each item.
fn lines(items: impl Iterator<Item = impl Display>) -> String {
    items.fold(String::new(), |mut text, item| {
        writeln!(text, "{item}").expect("a string takes everything");
        text
    })
}

/// A shell fragment that waits until the test has put the file into the home folder.
fn wait_for_file(name: &str) -> String {
    format!("while [ ! -e {name} ]; do sleep 0.02; done")
}

/// A shell fragment that tells the test by a file that it is there.
fn announce(name: &str) -> String {
    format!("echo $$ > {name}")
}
