//! A runner that was killed and started again: what its services left behind is not taken for new ones.

use std::net::TcpStream;
use std::path::Path;

use krunner_tests::{Agent, Setup, free_port, host, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::services::{defined, request};
use crate::{app, with_agent};

/// Listens on its port, writes its pid, and takes 1.3 s to end after SIGTERM, as servers do that finish their requests.
const SLOW_TO_END: &str = "\
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.3), os._exit(0)))
listener = socket.create_server(('', int(sys.argv[1])))
open('pid', 'w').write(f'{os.getpid()}\\n')
while True: time.sleep(60)
";

fn slow(python: &Path) -> Setup {
    let setup = app().file("home/work/slow.py", SLOW_TO_END);
    defined(setup, "slow", &json!({ "command": [python, "slow.py", "{ports[0]}"] }))
}

#[test]
fn service_of_a_killed_runner_that_is_ending_is_not_taken_for_the_new_one() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let (mut runner, agent) = with_agent(&client, slow(&python));
    let port = free_port();
    assert_eq!(agent.start_service(&request("slow", port)), json!({ "status": "started" }));
    let old: u32 = runner.wait_for("pid").trim().parse().expect("a pid");
    drop(agent);

    runner.signal(Signal::SIGKILL);
    runner.wait_exit();
    runner.start_again();
    let agent = Agent::connect(&client, &runner);
    proc::signal(old, Signal::SIGTERM);
    let answer = agent.start_service(&request("slow", port));

    assert_eq!(answer, json!({ "status": "started" }));
    let new: u32 = wait::until("the new service", || {
        let pid = runner.read("pid")?.trim().parse().ok()?;
        (pid != old).then_some(pid)
    });
    assert!(proc::is_alive(new) && !proc::is_alive(old));
    TcpStream::connect(("127.0.0.1", port)).expect("the new service listens");
}

#[test]
fn service_of_a_killed_runner_that_stays_is_the_service() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let (mut runner, agent) = with_agent(&client, slow(&python));
    let port = free_port();
    assert_eq!(agent.start_service(&request("slow", port)), json!({ "status": "started" }));
    drop(agent);
    runner.signal(Signal::SIGKILL);
    runner.wait_exit();
    runner.start_again();
    let agent = Agent::connect(&client, &runner);
    assert_eq!(agent.start_service(&request("slow", port)), json!({ "status": "running" }));
}
