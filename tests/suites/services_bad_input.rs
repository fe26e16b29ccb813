//! Requests for services that cannot be granted: the answer says what is wrong, in time, and nothing is started.

use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use krunner_tests::{Raw, Setup, free_port, host, require, wait};
use serde_json::{Value, json};

use crate::services::{ANSWER_WITHIN, defined, request};
use crate::{app, wait_for_file, with_agent};

/// Would leave a file if it were started.
fn tell_tale(more: &Value) -> Value {
    let mut definition = json!({ "command": ["sh", "-c", "echo > started"] });
    for (key, value) in more.as_object().expect("an object") {
        definition[key] = value.clone();
    }
    definition
}

fn setup() -> Setup {
    let limits = json!({
        "allowed_arguments": ["--logdir"], "allowed_envs": ["LEVEL", "PATH", "LD_PRELOAD"],
        "prestart": [{ "action": "write_file", "args": { "filename": "prepared", "body": [] } }],
    });
    let mut setup = defined(app(), "limited", &tell_tale(&limits));
    setup = defined(
        setup,
        "unknown-name",
        &tell_tale(&json!({ "env": { "A": "{home}" }, "prestart": limits["prestart"] })),
    );
    setup = defined(
        setup,
        "bad-index",
        &tell_tale(&json!({ "env": { "A": "{ports[3]}" }, "prestart": limits["prestart"] })),
    );
    setup = defined(setup, "missing", &json!({ "command": ["/nowhere/program"] }));
    setup = defined(setup, "not-executable", &json!({ "command": ["/etc/passwd"] }));
    setup = defined(
        setup,
        "bad-action",
        &tell_tale(&json!({
            "prestart": [{ "action": "mkdir", "args": { "path": "/proc/nothing/here" } }],
        })),
    );
    setup
        .file("etc/backend.ai/service-defs/broken.json", "{\"command\": [")
        .folder("etc/backend.ai/service-defs/dir.json")
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, setup());
    let options = |options: Value| {
        let mut info = request("limited", free_port());
        info["options"] = options;
        info
    };
    let without_ports = json!({ "name": "limited", "port": 8080, "protocol": "http", "options": {} });
    let cases: [(&str, Value, Vec<String>); 13] = [
        (
            "an argument",
            options(json!({ "arguments": { "--logdir": "x", "--evil": "{ports[0]}" } })),
            vec!["argument `--evil` is not allowed for service limited (allowed: `--logdir`)".into()],
        ),
        (
            "a variable",
            options(json!({ "envs": { "LEVEL": "1", "BASH_ENV": "x" } })),
            vec!["variable `BASH_ENV` is not allowed for service limited (allowed: `LEVEL`, ".into()],
        ),
        (
            "LD_PRELOAD, even where a definition allows it",
            options(json!({ "envs": { "LD_PRELOAD": "/tmp/evil.so" } })),
            vec!["variable `LD_PRELOAD` is set by the session and cannot be overridden".into()],
        ),
        (
            "PATH",
            options(json!({ "envs": { "PATH": "/tmp" } })),
            vec!["variable `PATH` is set by the session and cannot be overridden".into()],
        ),
        (
            "a number",
            options(json!({ "arguments": { "--logdir": 7 } })),
            vec!["argument `--logdir`: expected a string, a list of strings or null, got 7".into()],
        ),
        ("port 0", request("limited", 0), vec!["port 0 is not valid".into()]),
        ("no ports", without_ports, vec!["the request has no `ports`".into()]),
        (
            "an unknown name",
            request("unknown-name", free_port()),
            vec![
                "cannot expand the definition's variable `A`: `{home}`: unknown name `home`; known names: `ports`, "
                    .into(),
            ],
        ),
        ("an index", request("bad-index", free_port()), vec!["`{ports[3]}`: `ports` has no element `3`".into()]),
        ("a program that is not there", request("missing", free_port()), vec!["/nowhere/program not found".into()]),
        (
            "a file that is no program",
            request("not-executable", free_port()),
            vec!["cannot execute /etc/passwd: Permission denied".into()],
        ),
        (
            "an action that fails",
            request("bad-action", free_port()),
            vec!["the action `mkdir` failed: /proc/nothing/here: No such file or directory".into()],
        ),
        (
            "a definition that cannot be used",
            request("broken", free_port()),
            vec!["unsupported service: ".into(), "/broken.json: EOF while parsing".into()],
        ),
    ];
    for (what, info, parts) in cases {
        let begun = Instant::now();
        let answer = agent.start_service(&info);
        assert!(begun.elapsed() < ANSWER_WITHIN, "{what}: {:?}", begun.elapsed());
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{what}: {answer}"));
        assert!(answer["status"] == "failed" && parts.iter().all(|part| error.contains(part)), "{what}: {answer}");
    }
    let dir = agent.start_service(&request("dir", free_port()));
    assert!(dir["error"].as_str().is_some_and(|error| error.ends_with("dir.json: a directory, not a file")), "{dir}");
    assert_eq!((runner.read("started"), runner.read("prepared")), (None, None), "nothing was begun");
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
}

/// A program of another user that listens on this port until its stdin ends.
fn listener_of_another_user(python: &Path, port: u16) -> Child {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/listener.py");
    let text = std::fs::read_to_string(program).expect("a program");
    let mut command = Command::new(python);
    command.args(["-c", &text, &port.to_string()]).uid(4321).stdin(Stdio::piped()).stdout(Stdio::null());
    let listener = command.spawn().expect("a listener");
    wait::until_true("its port", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    listener
}

fn service_result(raw: &mut Raw) -> Value {
    let run = raw.read_until(|message| message.kind == "service-result");
    serde_json::from_slice(&run.messages.last().expect("an answer").payload).expect("JSON")
}

#[test]
fn a_port_that_another_user_has_is_refused() {
    require!(host::root());
    let python = require!(host::user_python());
    let port = free_port();
    let mut listener = listener_of_another_user(&python, port);
    let runner = setup().start();
    let mut raw = Raw::connect(&runner);

    raw.op("start-service", &request("limited", port).to_string());

    let answer = service_result(&mut raw);
    let expected = format!("port {port} is already in use by python");
    assert!(answer["error"].as_str().is_some_and(|error| error.starts_with(&expected)), "{answer}");
    assert_eq!((runner.read("started"), runner.read("prepared")), (None, None), "nothing was begun");
    drop(listener.stdin.take());
    listener.wait().expect("the listener ends");
}

#[test]
fn another_users_listener_that_comes_after_the_start_is_not_taken_for_the_service() {
    require!(host::root());
    let python = require!(host::user_python());
    let port = free_port();
    let command = format!("echo > started; {}", wait_for_file("go"));
    let definition = json!({ "command": ["sh", "-c", command] });
    let runner = defined(app(), "late", &definition).start();
    let mut raw = Raw::connect(&runner);
    raw.op("start-service", &request("late", port).to_string());
    runner.wait_for("started");
    let mut listener = listener_of_another_user(&python, port);
    runner.wait_for_log(&[&format!("port {port} is used by python"), "which is not taken for the service"]);

    // It ends with success, as a program that leaves a daemon.
    runner.write("go", "");

    let answer = service_result(&mut raw);
    assert_eq!(answer["status"], "failed", "{answer}");
    assert!(!runner.stderr().contains("continues in the background"), "{}", runner.stderr());
    assert!(listener.try_wait().expect("a state").is_none(), "it is left alone");
    drop(listener.stdin.take());
    listener.wait().expect("the listener ends");
}

#[test]
fn values_are_never_templates() {
    let client = require!(host::agent_python());
    let definition = json!({
        "command": ["sh", "-c", "printf '%s|' \"$@\" > seen; echo >> seen", "sh"],
        "allowed_arguments": ["{ports[0]}", "--x"],
    });
    let (runner, agent) = with_agent(&client, defined(app(), "echo", &definition));
    let mut info = request("echo", free_port());
    info["options"] = json!({ "arguments": { "--x": "{ports[0]} {{ $(id) ${HOME}", "{ports[0]}": ["}", "{nope}"] } });

    agent.start_service(&info);

    assert_eq!(runner.wait_for("seen"), "--x|{ports[0]} {{ $(id) ${HOME}|{ports[0]}|}|{nope}|\n");
}

#[test]
fn requests_that_are_none_are_skipped_and_the_next_is_served() {
    let runner = setup().start();
    let mut raw = Raw::connect(&runner);
    let too_long = json!({ "name": "limited", "ports": [1], "options": { "x": "y".repeat(2 << 20) } }).to_string();
    for payload in ["nonsense", "{}", r#"{"name": 7}"#, r#"{"name": "limited", "ports": [70000]}"#, &too_long] {
        raw.op("start-service", payload);
    }
    for payload in [r#"{"name": "m", "service": {"port": 0}}"#, r#"{"name": "m", "service": null}"#, r#"{"name": "m"}"#]
    {
        raw.op("start-model-service", payload);
    }
    let nulls = json!({ "name": "limited", "port": null, "ports": null, "protocol": null, "options": null });
    raw.op("start-service", &nulls.to_string());

    let answers = raw.read_until(|message| message.kind == "service-result");
    let models = answers.messages.iter().filter(|message| message.kind == "model-service-result").count();
    let error: Value = serde_json::from_slice(&answers.messages.last().expect("an answer").payload).expect("JSON");
    assert_eq!(error["error"], "the request has no `ports`");
    // Each of the three has its own answer, whenever it comes.
    for _ in models..3 {
        raw.read_until(|message| message.kind == "model-service-result");
    }
    runner.wait_for_log(&["payload of `start-service` has ", "limit 1048576"]);
    assert_eq!(runner.read("started"), None);
}
