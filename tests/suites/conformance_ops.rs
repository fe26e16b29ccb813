//! The ops that act at once, through the agent's client.

use krunner_tests::{Setup, host, require};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::{app, wait_for_file, with_agent};

fn monotonic_secs() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    std::time::Duration::from(now).as_secs_f64()
}

#[test]
fn status_tells_the_start_on_the_monotonic_clock() {
    let client = require!(host::agent_python());
    let before = monotonic_secs();
    let (_runner, agent) = with_agent(&client, app());

    let started_at = agent.started_at();

    assert!(before <= started_at && started_at <= monotonic_secs(), "{before} {started_at}");
    let again = agent.started_at();
    assert!((started_at - again).abs() < f64::EPSILON, "{started_at} became {again}");
}

#[test]
fn every_quick_op_answers_while_a_step_runs() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());
    let run = agent.start_exec(&format!("echo > started; {}; echo done", wait_for_file("go")));
    runner.wait_for("started");

    assert!(agent.started_at() > 0.0);
    assert_eq!(agent.apps(), json!({ "status": "done", "data": [] }));
    assert_eq!(agent.complete("x", &json!({})), json!({ "suggestions": [] }));
    assert_eq!(agent.start_service(&service("nothing", "http"))["status"], "failed");
    agent.event("test-event", &json!({ "n": 17 }));
    runner.wait_for_log(&["Agent-notified event:", "17"]);

    runner.write("go", "");
    assert_eq!(run.wait().exec().stdout, "done\n");
}

fn service(name: &str, protocol: &str) -> Value {
    json!({ "name": name, "port": 8080, "ports": [8080], "protocol": protocol, "options": {} })
}

#[test]
fn services_that_nothing_is_spawned_for() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let unsupported = json!({ "status": "failed", "error": "unsupported service" });
    assert_eq!(agent.start_service(&service("no-such-service", "http")), unsupported);
    assert_eq!(agent.start_service(&service("any", "preopen")), json!({ "status": "started" }));
    let pty = json!({ "status": "failed", "error": "not implemented yet" });
    assert_eq!(agent.start_service(&service("any", "pty")), pty);

    agent.shutdown_service("no-such-service");
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn completion_is_always_answered() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let nothing = json!({ "suggestions": [] });
    assert_eq!(agent.complete("", &json!({})), nothing);
    assert_eq!(agent.complete("impo", &json!({ "row": 0, "col": 4, "line": "impo", "post": "" })), nothing);
}

#[test]
fn interrupt_with_nothing_running_is_harmless() {
    let client = require!(host::agent_python());
    let setup = Setup::new("c").runtime(require!(host::c_compiler()));
    let (_runner, agent) = with_agent(&client, setup);

    for _ in 0..3 {
        agent.interrupt();
    }

    let run = agent.exec("echo alive");
    assert_eq!((run.exec().exit_code, run.stdout().as_str()), (Some(0), "alive\n"));
}

#[test]
fn client_that_closes_and_connects_again_goes_on() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    for round in 0..20 {
        // The client asks for the status as soon as it has connected, so this is its second reply or its first.
        assert!(agent.started_at() > 0.0);
        let text = format!("round {round}\n");
        assert_eq!(agent.exec(&format!("echo round {round}")).stdout(), text);
        agent.close();
        agent.open();
    }
}
