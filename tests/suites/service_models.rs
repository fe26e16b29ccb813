//! Model services: both generations of agents, and servers that are late, flap, refuse, hang and die.

use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::{Raw, Runner, free_port, host, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::services::ANSWER_WITHIN;
use crate::{app, with_agent};

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/model_server.py");

/// A model in the session's home, whose server reads its health from `models/m/answer`.
fn model(runner: &Runner, python: &Path, port: u16, health_check: &Value) -> Value {
    json!({
        "name": "m", "model_path": runner.home().join("models/m"),
        "service": {
            "start_command": [python, SERVER, "{ports[0]}"], "port": port, "health_check": health_check,
            "pre_start_actions": [{ "action": "log", "args": { "message": "model on {ports[0]}" } }],
        },
    })
}

fn next(raw: &mut Raw, kind: &str) -> Value {
    let transcript = raw.read_until(|message| message.kind == kind);
    serde_json::from_slice(&transcript.messages.last().expect("a reply").payload).expect("a JSON payload")
}

fn status(is_healthy: bool) -> Value {
    json!({ "model_name": "m", "is_healthy": is_healthy })
}

#[test]
fn newer_agents_are_answered_at_the_start_and_told_of_each_change() {
    let python = require!(host::user_python());
    let runner = app().folder("home/work/models/m").start();
    let mut raw = Raw::connect(&runner);
    let check = json!({ "enable": true, "path": "/h", "interval": 0.1, "max_retries": 3, "max_wait_time": 0.5 });
    let info = model(&runner, &python, free_port(), &check);

    let begun = Instant::now();
    raw.op("start-model-service", &info.to_string());
    assert_eq!(next(&mut raw, "model-service-result"), json!({ "status": "started" }));
    assert!(begun.elapsed() < ANSWER_WITHIN, "{:?}", begun.elapsed());

    // Late, then ill, then hanging, then well, then dead.
    assert_eq!(next(&mut raw, "model-service-status"), status(false));
    runner.write("models/m/answer", "200\n");
    assert_eq!(next(&mut raw, "model-service-status"), status(true));
    runner.write("models/m/answer", "500\n");
    assert_eq!(next(&mut raw, "model-service-status"), status(false));
    runner.write("models/m/answer", "200\n");
    assert_eq!(next(&mut raw, "model-service-status"), status(true));
    runner.write("models/m/answer", "hang\n");
    assert_eq!(next(&mut raw, "model-service-status"), status(false));
    runner.write("models/m/answer", "200\n");
    assert_eq!(next(&mut raw, "model-service-status"), status(true));
    raw.op("start-model-service", &info.to_string());
    assert_eq!(next(&mut raw, "model-service-result"), json!({ "status": "running" }));
    for pid in runner.processes() {
        proc::signal(pid, Signal::SIGKILL);
    }
    assert_eq!(next(&mut raw, "model-service-status"), status(false));

    raw.op("start-model-service", &info.to_string());
    assert_eq!(next(&mut raw, "model-service-result"), json!({ "status": "started" }));
    assert_eq!(next(&mut raw, "model-service-status"), status(true));
    let name = format!("m-{}", info["service"]["port"]);
    raw.op("shutdown-service", &json!(name).to_string());
    assert_eq!(next(&mut raw, "model-service-status"), status(false));
    wait::until_true("the server to end", || runner.processes().is_empty());
}

#[test]
fn older_agents_get_the_first_verdict_as_the_answer() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let (runner, agent) = with_agent(&client, app().folder("home/work/models/m"));
    let check = |expected: u16| json!({ "path": "/h", "max_retries": 4, "max_wait_time": 0.5, "expected_status_code": expected });

    let begun = Instant::now();
    let unhealthy = agent.start_model_service(&model(&runner, &python, free_port(), &check(200)));
    assert_eq!(unhealthy, json!({ "status": "failed", "error": "service unhealthy" }));
    assert!(begun.elapsed() >= Duration::from_secs(2), "all retries are waited for: {:?}", begun.elapsed());

    // 401 is what a server with authentication says when it is well.
    runner.write("models/m/answer", "401\n");
    let healthy = agent.start_model_service(&model(&runner, &python, free_port(), &check(401)));
    assert_eq!(healthy, json!({ "status": "started" }));
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn a_model_that_is_not_there_or_ends_at_once_is_told() {
    require!(host::program("bash"));
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let (runner, agent) = with_agent(&client, app().folder("home/work/models/m"));
    let mut info = model(&runner, &python, free_port(), &Value::Null);

    info["model_path"] = json!("/models/nowhere");
    let missing = agent.start_model_service(&info);
    assert_eq!(missing["error"], "model directory does not exist: /models/nowhere");

    info["model_path"] = json!(runner.home().join("models/m"));
    info["service"]["start_command"] = json!("echo no such weights >&2; exit 3");
    let ended = agent.start_model_service(&info);
    let expected =
        "the process did not start properly: it has ended with exit code 3; its last words:\nno such weights";
    assert_eq!(ended["error"], expected);

    info["service"]["start_command"] = json!("pwd > place; exec sleep 1000");
    assert_eq!(agent.start_model_service(&info), json!({ "status": "started" }));
    let place = runner.wait_for("models/m/place");
    assert_eq!(Path::new(place.trim()), runner.home().join("models/m"));
}
