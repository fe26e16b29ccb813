//! What agents of 2023 to 2026 expect of the first reply to `status`, and of services ordered after it.
//!
//! The reply is their readiness barrier: bootstrap script through, sshd and ttyd listening.

use std::time::{Duration, Instant};

use krunner_tests::{Raw, Runner, free_port, host, proc, require};
use serde_json::{Value, json};

use crate::services::{ANSWER_WITHIN, defined, request};
use crate::{app, wait_for_file, with_agent};

/// A reply that is not due does not come within this time.
const QUIET: Duration = Duration::from_millis(300);

fn is_output(kind: &str) -> bool {
    matches!(kind, "stdout" | "stderr" | "log")
}

/// Kinds of the replies that came so far, output aside.
fn kinds(raw: &mut Raw) -> Vec<String> {
    std::thread::sleep(QUIET);
    let mut kinds = Vec::new();
    while raw.pull.is_readable() {
        let message = raw.recv().expect("a reply");
        if !is_output(&message.kind) {
            kinds.push(message.kind);
        }
    }
    kinds
}

/// A session whose bootstrap script runs until the file `go` is there.
fn held_up() -> (Runner, Raw) {
    let script = format!("echo > started\n{}\n", wait_for_file("go"));
    let runner = app().file("home/work/bootstrap.sh", script).start();
    let raw = Raw::connect(&runner);
    runner.wait_for("started");
    (runner, raw)
}

#[test]
fn first_status_waits_for_the_bootstrap_script() {
    let (runner, mut raw) = held_up();
    raw.op("status", "");
    raw.op("status", "");
    raw.op("get-apps", "");
    assert_eq!(kinds(&mut raw), ["apps-result"]);
    raw.op("status", "now");
    assert_eq!(kinds(&mut raw), ["status"], "the check whether it lives does not wait");

    runner.write("go", "");

    raw.read_until(|message| message.kind == "status");
    assert_eq!(kinds(&mut raw), ["status"], "one reply for each request");
    raw.op("status", "");
    assert_eq!(kinds(&mut raw), ["status"], "later ones come at once");
}

/// Agents since 25.4 give up after 60 s and destroy the session.
#[test]
fn status_is_answered_within_fifty_seconds_and_the_log_says_what_is_late() {
    let began = Instant::now();
    let (runner, mut raw) = held_up();
    raw.op("status", "");
    let come = raw.read_until(|message| message.kind == "status");
    let took = began.elapsed();
    assert!((Duration::from_secs(49)..Duration::from_secs(55)).contains(&took), "{took:?}");
    assert!(come.stderr().contains("not ready: waiting for the bootstrap script"), "{}", come.stderr());
    raw.op("status", "");
    assert_eq!(kinds(&mut raw), ["status"], "later ones come at once");
    runner.write("go", "");
}

#[test]
fn services_wait_for_what_the_bootstrap_script_installs() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let install = "sleep 2\nprintf '#!/bin/sh\\nexec \"$@\"\\n' > serve\nchmod +x serve\n";
    let definition = json!({ "command": ["./serve", "{runtime_path}", "-m", "http.server", "{ports[0]}"] });
    let setup = defined(app().runtime(&python), "web", &definition).file("home/work/bootstrap.sh", install);
    let (_runner, agent) = with_agent(&client, setup);
    assert_eq!(agent.start_service(&request("web", free_port())), json!({ "status": "started" }));
    assert!(agent.started_at() > 0.0);
}

#[test]
fn service_that_waits_for_the_bootstrap_script_too_long_says_so() {
    let (runner, mut raw) = held_up();
    let began = Instant::now();
    let model = json!({ "name": "m", "model_path": runner.home(), "service":
        { "start_command": ["sleep", "60"], "port": free_port() } });
    raw.op("start-service", &request("sshd", 2200).to_string());
    raw.op("start-model-service", &model.to_string());
    let come = raw.read_until(|message| message.kind == "service-result");
    let took = began.elapsed();
    let sshd: Value = serde_json::from_slice(&come.messages.last().expect("the answer").payload).expect("JSON");
    assert_eq!(sshd["error"], "still starting: the session is not ready yet");
    let is_model = |kind: &str| kind == "model-service-result";
    let model = match come.messages.iter().find(|message| is_model(&message.kind)) {
        Some(model) => model.payload.clone(),
        None => raw.read_until(|message| is_model(&message.kind)).messages.last().expect("the answer").payload.clone(),
    };
    let model: Value = serde_json::from_slice(&model).expect("JSON");
    assert_eq!(model["error"], "still starting: waiting for the bootstrap script");
    assert!(took < ANSWER_WITHIN, "{took:?}");
    runner.write("go", "");
}

#[test]
fn first_status_comes_when_sshd_and_ttyd_listen() {
    let setup = require!(crate::sshd::single());
    let (sshd, ttyd) = setup.service_ports();
    let programs = require!(host::newer_runner_programs());
    let setup = setup.copy("opt/kernel/ttyd", &programs.join("ttyd_linux.x86_64.bin"));
    let runner = setup.as_work().start();
    let mut raw = Raw::connect(&runner);
    raw.op("status", "");
    raw.read_until(|message| message.kind == "status");
    assert!(proc::listens(runner.pid(), sshd) && proc::listens(runner.pid(), ttyd));
}

/// Replies by op, as agents of 25 and 26 take them: matched by arrival, so one more, or one that was not asked for, would be
/// taken for the next op's.
#[test]
fn every_op_has_exactly_its_replies() {
    let service = request("nothing", 8080).to_string();
    let model = json!({ "name": "m", "model_path": "/nowhere", "service": { "start_command": ["x"], "port": 8081 } })
        .to_string();
    let event = json!({ "type": "test", "data": {} }).to_string();
    let rules: [(&str, &str, &[&str]); 19] = [
        ("status", "", &["status"]),
        ("get-apps", "", &["apps-result"]),
        ("get-apps", "nothing", &["apps-result"]),
        ("complete", r#"{"code": "x"}"#, &["completion"]),
        ("complete", "{", &["completion"]),
        ("start-service", &service, &["service-result"]),
        ("start-model-service", &model, &["model-service-result"]),
        ("shutdown-service", "\"nothing\"", &[]),
        ("event", &event, &[]),
        ("input", "not requested", &[]),
        ("interrupt", "", &[]),
        ("clean", "", &["clean-finished"]),
        ("build", "false", &["build-finished"]),
        // The agent sends it behind a build that failed, too.
        ("exec", "true", &["finished"]),
        ("clean", "*", &["clean-finished"]),
        ("build", "*", &["build-finished"]),
        ("exec", "*", &["finished"]),
        ("code", "anything", &["finished"]),
        ("status", "", &["status"]),
    ];
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    raw.sync();
    for (op, payload, replies) in rules {
        raw.op(op, payload);
        let mut came = Vec::new();
        while came.len() < replies.len() {
            let reply = raw.read_until(|message| !is_output(&message.kind));
            came.extend(reply.messages.into_iter().filter(|message| !is_output(&message.kind)).map(|one| one.kind));
        }
        came.extend(kinds(&mut raw));
        assert_eq!(came, replies, "{op} {payload:?}");
    }
}
