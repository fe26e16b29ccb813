//! Model services: both generations of agents, and servers that are late, flap, refuse, hang and die.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::{Raw, Runner, Transcript, binary, free_port, host, proc, require, wait};
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

/// What is told of models, in its order.
fn of_models(told: &Transcript) -> Vec<Value> {
    let of_models = told.messages.iter().filter(|message| message.kind.starts_with("model-"));
    of_models.map(|message| serde_json::from_slice(&message.payload).expect("a JSON payload")).collect()
}

/// A package that the agent mounts into the volume.
fn volume(path: &str) -> String {
    format!("opt/backend.ai/lib/python3.11/site-packages/ai/backend/{path}")
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

    // Late, then ill, then hanging, then well, then dead. Each verdict that it is ill takes more than three failures.
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

    // Each start has a first verdict. With as many retries as it needs to listen, that is that it is well.
    let mut patient = info.clone();
    patient["service"]["health_check"]["max_retries"] = json!(10_000);
    raw.op("start-model-service", &patient.to_string());
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
    let setup = app().folder("home/work/models/m").file(&volume("helpers/VERSION"), "23.03.8\n");
    let (runner, agent) = with_agent(&client, setup);
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

/// What agents of 23.9 and 24.3 send is what those of 23.3 send.
#[test]
fn other_agents_are_answered_at_once_and_told_of_the_health_as_well() {
    let python = require!(host::user_python());
    let check = json!({ "path": "/h", "max_retries": 100, "max_wait_time": 60 });
    for version in ["23.09.10", "24.03.2", ""] {
        let runner = app().folder("home/work/models/m").file(&volume("helpers/VERSION"), version).start();
        let mut raw = Raw::connect(&runner);
        let begun = Instant::now();

        raw.op("start-model-service", &model(&runner, &python, free_port(), &check).to_string());

        assert_eq!(next(&mut raw, "model-service-result"), json!({ "status": "started" }), "{version}");
        assert!(begun.elapsed() < ANSWER_WITHIN, "{version}: {:?}", begun.elapsed());
        runner.write("models/m/answer", "200\n");
        assert_eq!(next(&mut raw, "model-service-status"), status(true), "{version}");
    }
}

#[test]
fn a_model_without_a_health_check_is_healthy_when_it_has_started() {
    let runner = app().folder("home/work/models/m").start();
    let mut raw = Raw::connect(&runner);
    let info = |command: &str, check: Value| {
        let mut info = model(&runner, Path::new("/bin/true"), free_port(), &check);
        info["service"]["start_command"] = json!(["sh", "-c", command]);
        info.to_string()
    };
    let switched_off = json!({ "enable": false, "path": "/h", "interval": 0.1 });
    for check in [Value::Null, switched_off] {
        raw.op("start-model-service", &info("exec sleep 1000", check.clone()));
        let told = raw.read_until(|message| message.kind == "model-service-status");
        assert_eq!(of_models(&told), [json!({ "status": "started" }), status(true)], "{check}");
    }

    // Once for each, and not for what did not start.
    raw.op("start-model-service", &info("exit 3", Value::Null));
    let told = raw.read_until(|message| message.kind == "model-service-result");
    let later = raw.exec("sleep 1");
    assert_eq!((of_models(&told).len(), of_models(&later).len()), (1, 0));
}

#[test]
fn a_model_is_probed_at_once_and_failures_count_after_its_delay_only() {
    let python = require!(host::user_python());
    let runner = app().folder("home/work/models/m").start();
    let mut raw = Raw::connect(&runner);
    let check = json!({
        "enable": true, "path": "/h", "interval": 0.1, "max_retries": 1, "max_wait_time": 0.5, "initial_delay": 3.0,
    });
    let begun = Instant::now();
    raw.op("start-model-service", &model(&runner, &python, free_port(), &check).to_string());
    assert_eq!(next(&mut raw, "model-service-status"), status(false));
    assert!(begun.elapsed() >= Duration::from_secs(3), "it was given its time: {:?}", begun.elapsed());

    runner.write("models/m/answer", "200\n");
    assert_eq!(next(&mut raw, "model-service-status"), status(true));
    let patient = json!({ "enable": true, "path": "/h", "interval": 0.1, "initial_delay": 600.0 });
    let mut other = model(&runner, &python, free_port(), &patient);
    other["name"] = json!("other");
    raw.op("start-model-service", &other.to_string());
    let expected = json!({ "model_name": "other", "is_healthy": true });
    assert_eq!(next(&mut raw, "model-service-status"), expected, "a success is told before the delay is over");
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
    let expected = "the process did not start properly: exited with code 3; last output:\nno such weights";
    assert_eq!(ended["error"], expected);

    runner.write("models/m/serve", "#!/bin/bash\r\nexec sleep 1000\r\n");
    let script = runner.home().join("models/m/serve");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    info["service"]["start_command"] = json!(["./serve"]);
    let script = runner.home().join("models/m/./serve");
    let expected = format!(
        "cannot execute {}: its #! line ends with a carriage return, which the kernel takes as part of the interpreter name \
         (/bin/bash); convert the line endings: sed -i 's/\\r$//'",
        script.display()
    );
    assert_eq!(agent.start_model_service(&info)["error"], expected);

    info["service"]["start_command"] = json!("pwd > place; exec sleep 1000");
    assert_eq!(agent.start_model_service(&info), json!({ "status": "started" }));
    let place = runner.wait_for("models/m/place");
    assert_eq!(Path::new(place.trim()), runner.home().join("models/m"));
}

/// Root may enter any folder, so this runner is another user's.
#[test]
fn a_folder_that_cannot_be_entered_is_what_is_told() {
    require!(host::root());
    let setup = app().copy("krunner", &binary()).folder("home/work/models/closed/m").folder("home/work/bin").user(4321);
    let program = setup.root().join("krunner");
    let closed = setup.home().join("models/closed");
    let bin = setup.home().join("bin");
    fs::write(bin.join("serve"), "#!/bin/sh\nexec sleep 1000\n").expect("a program");
    fs::set_permissions(bin.join("serve"), Permissions::from_mode(0o755)).expect("chmod");
    for folder in [&closed, &bin] {
        fs::set_permissions(folder, Permissions::from_mode(0o700)).expect("chmod");
    }
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let runner = setup.program(program).env("PATH", &path).start();
    let mut raw = Raw::connect(&runner);
    let mut error = |model_path: &Path| {
        let service = json!({ "start_command": ["serve"], "port": free_port() });
        let info = json!({ "name": "m", "model_path": model_path, "service": service });
        raw.op("start-model-service", &info.to_string());
        next(&mut raw, "model-service-result")["error"].as_str().expect("an error").to_owned()
    };

    for folder in [closed.clone(), closed.join("m")] {
        let expected = format!("cannot enter the model directory {}: Permission denied", folder.display());
        assert!(error(&folder).starts_with(&expected), "{}", error(&folder));
    }
    let program = error(&runner.home());
    let expected = format!("serve not found in PATH ({} cannot be searched: Permission denied)", bin.display());
    assert_eq!(program, expected);
}

#[test]
fn model_that_is_stopped_while_it_is_prepared_has_not_started() {
    let runner = app().folder("home/work/models/m").start();
    let mut raw = Raw::connect(&runner);
    let port = free_port();
    let slow = ["sh", "-c", "trap '' TERM; echo > preparing; sleep 1"];
    let info = json!({
        "name": "m", "model_path": runner.home().join("models/m"),
        "service": {
            "start_command": ["sleep", "1000"], "port": port,
            "pre_start_actions": [{ "action": "run_command", "args": { "command": slow } }],
        },
    });
    raw.op("start-model-service", &info.to_string());
    wait::until_true("the action to run", || runner.home().join("preparing").is_file());

    raw.op("shutdown-service", &json!(format!("m-{port}")).to_string());

    let told = raw.read_until(|message| message.kind == "model-service-result");
    let answer = &of_models(&told)[0];
    assert_eq!(answer["status"], "failed", "{answer}");
    raw.op("status", "");
    let told = raw.read_until(|message| message.kind == "status");
    assert_eq!(of_models(&told), [] as [Value; 0], "nor is it healthy");
}
