//! Services on real programs: started, waited for, answered, stopped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::{Raw, Setup, free_port, host, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{app, with_agent};

/// Agents up to 26.8.1 give up on an answer after ten seconds.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(9);

pub(crate) fn defined(setup: Setup, name: &str, definition: &Value) -> Setup {
    setup.file(&format!("etc/backend.ai/service-defs/{name}.json"), definition.to_string())
}

pub(crate) fn request(name: &str, port: u16) -> Value {
    json!({ "name": name, "port": port, "ports": [port], "protocol": "http", "options": {} })
}

/// A definition around a script that gets its port as `$1` and Python as `$0`.
fn script(python: &Path, line: &str) -> Value {
    json!({ "command": ["/bin/sh", "-c", line, python, "{ports[0]}"] })
}

const WEB: &str = "exec \"$0\" -m http.server \"$1\"";

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the service's port is open");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_web_server_is_prepared_started_and_stopped() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let (port, started) = (free_port(), json!({ "status": "started" }));
    let definition = json!({
        "prestart": [
            { "action": "mkdir", "args": { "path": "site/{ports[0]}" } },
            { "action": "run_command", "args": { "command": ["printf", "%s", "made by {runtime_path}"] }, "ref": "made" },
            { "action": "write_file", "args": { "filename": "site/{ports[0]}/a", "body": ["{made[out]}"], "mode": "640" } },
            { "action": "write_file", "args": { "filename": "site/{ports[0]}/a", "body": ["more"], "append": true } },
            { "action": "log", "args": { "message": "site on {ports[0]}" } }
        ],
        "command": ["{runtime_path}", "-m", "http.server", "{ports[0]}"],
        "env": { "PORT_OF_{ports[0]}": "{ports[0]} ${HOME}" },
        "allowed_envs": ["CHOSEN"],
        "default_arguments": { "--directory": "nowhere" },
        "allowed_arguments": ["--directory", "--bind"]
    });
    let (runner, agent) = with_agent(&client, defined(app().runtime(&python), "web", &definition));
    let mut info = request("web", port);
    info["options"] = json!({
        "arguments": { "--directory": format!("site/{port}"), "--bind": "0.0.0.0" }, "envs": { "CHOSEN": "{not} a template" },
    });

    assert_eq!(agent.start_service(&info), started);

    assert!(get(port, "/a").ends_with(&format!("made by {}\nmore\n", python.display())));
    runner.wait_for_log(&["app-kernel: ", &format!("site on {port}")]);
    let [pid] = runner.processes()[..] else { panic!("{:?}", runner.processes()) };
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).expect("the service's environment");
    assert!(environment.contains(&format!("PORT_OF_{port}={port} ${{HOME}}\0")), "{environment}");
    assert!(
        environment.contains("CHOSEN={not} a template\0") && environment.contains("LANG=C.UTF-8\0"),
        "{environment}"
    );
    assert_eq!(agent.start_service(&info), json!({ "status": "running" }));

    agent.shutdown_service("web");
    wait::until_true("the service to end", || runner.processes().is_empty());
    assert_eq!(agent.start_service(&info), started, "it can be started again");
}

#[test]
fn a_listener_on_any_address_counts() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let line = "exec \"$0\" -c 'import socket,sys,time
s = socket.socket(socket.AF_INET6 if \":\" in sys.argv[2] else socket.AF_INET)
s.bind((sys.argv[2], int(sys.argv[1]))); s.listen(); open(\"connected\", \"a\").write(\"\")
while True: s.accept(); open(\"connected\", \"a\").write(\"x\")' \"$1\" ";
    let addresses =
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() { &["127.7.7.7", "::1"][..] } else { &["127.7.7.7"] };
    let setup = addresses.iter().enumerate().fold(app(), |setup, (number, address)| {
        defined(setup, &format!("s{number}"), &script(&python, &format!("{line}{address}")))
    });
    let (runner, agent) = with_agent(&client, setup);

    for (number, address) in addresses.iter().enumerate() {
        let answer = agent.start_service(&request(&format!("s{number}"), free_port()));
        assert_eq!(answer, json!({ "status": "started" }), "{address}");
    }
    assert_eq!(runner.read("connected").as_deref(), Some(""), "the check for an open port does not connect");
}

#[test]
fn a_slow_service_holds_up_nothing_and_is_waited_for_again() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let slow = script(&python, &format!("while [ ! -e go ]; do sleep 0.05; done; {WEB}"));
    let setup = defined(defined(app(), "slow", &slow), "quick", &script(&python, WEB));
    let (runner, agent) = with_agent(&client, setup);
    let (slow_port, quick_port) = (free_port(), free_port());

    let begun = Instant::now();
    let slow = agent.start_starting_service(&request("slow", slow_port));
    let quick = agent.start_starting_service(&request("quick", quick_port));

    // The quick one is there long before the slow one is given up, and so is everything else.
    wait::until_true("the quick service", || TcpStream::connect(("127.0.0.1", quick_port)).is_ok());
    assert_eq!(agent.exec("echo done").stdout(), "done\n");
    assert_eq!(agent.apps()["data"].as_array().map(Vec::len), Some(2));
    assert!(agent.started_at() > 0.0);
    assert!(begun.elapsed() < ANSWER_WITHIN, "{:?}", begun.elapsed());
    // Answers have no names, so each is given to its own order by the order of the two.
    let expected = format!("still starting: port {slow_port} is not open yet");
    assert_eq!(slow.wait(), json!({ "status": "failed", "error": expected }));
    assert!(begun.elapsed() < ANSWER_WITHIN, "{:?}", begun.elapsed());
    assert_eq!(quick.wait(), json!({ "status": "started" }));

    let before = runner.wait_for_program("sh", 1);
    let again = agent.start_starting_service(&request("slow", slow_port));
    runner.write("go", "");
    assert_eq!(again.wait(), json!({ "status": "started" }));
    assert_eq!(proc::parent(before[0]), Some(runner.pid()), "it is the same process");
}

#[test]
fn a_launch_timeout_is_how_long_the_agent_waits() {
    let runner = defined(app(), "slow", &json!({ "command": ["sleep", "1000"] })).start();
    let mut raw = Raw::connect(&runner);
    let ask = |raw: &mut Raw, launch_timeout: &Value| {
        let mut info = request("slow", 1);
        info["launch_timeout"] = launch_timeout.clone();
        raw.op("start-service", &info.to_string());
    };
    let answered = |raw: &mut Raw| {
        let told = raw.read_until(|message| message.kind == "service-result");
        assert!(told.messages.last().is_some_and(|it| it.payload.starts_with(br#"{"status":"failed","error":"still"#)));
    };

    let begun = Instant::now();
    ask(&mut raw, &json!(2));
    answered(&mut raw);
    assert!((1.4..2.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());

    // The second may not be late because the first has more time.
    let begun = Instant::now();
    ask(&mut raw, &json!(12.5));
    ask(&mut raw, &json!(3));
    answered(&mut raw);
    answered(&mut raw);
    assert!((2.4..3.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());

    let begun = Instant::now();
    ask(&mut raw, &json!(12.5));
    answered(&mut raw);
    assert!((11.9..12.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    let begun = Instant::now();
    ask(&mut raw, &Value::Null);
    answered(&mut raw);
    assert!((8.4..9.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
}

#[test]
fn a_known_agent_that_waits_long_is_answered_late() {
    let version = "opt/backend.ai/lib/python3.13/site-packages/ai/backend/helpers/VERSION";
    let setup = defined(app(), "slow", &json!({ "command": ["sleep", "1000"] })).file(version, "26.4.10");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    let begun = Instant::now();

    raw.op("start-service", &request("slow", 1).to_string());

    raw.read_until(|message| message.kind == "service-result");
    assert!((29.9..35.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
}

#[test]
fn what_dies_tells_its_last_words_and_can_be_started_again() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let line = format!("if [ ! -e ok ]; then echo trying; echo 'no licence found' >&2; exit 7; fi; {WEB}");
    let (runner, agent) = with_agent(&client, defined(app(), "picky", &script(&python, &line)));
    let info = request("picky", free_port());

    let error = agent.start_service(&info)["error"].clone();

    let expected = "the process did not start properly: exited with code 7; last output:\nno licence found";
    assert_eq!(error, expected);
    runner.wait_for_log(&["service picky exited with code 7"]);
    wait::until_true("its output on the runner's own stdout", || runner.stdout() == b"trying\n");

    runner.write("ok", "");
    assert_eq!(agent.start_service(&info)["status"], "started");
    for pid in runner.processes() {
        proc::signal(pid, Signal::SIGKILL);
    }
    runner.wait_for_log(&["service picky exited with code -9"]);
    assert_eq!(agent.start_service(&info)["status"], "started", "after a death as well");
}

#[test]
fn the_whole_group_is_stopped_and_by_force_if_need_be() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let line = format!(
        "trap 'echo > asked' TERM; (trap '' TERM; echo > child; exec sleep 1000) & {WEB} & while :; do wait; done"
    );
    let mut setup = defined(app(), "stubborn", &script(&python, &line));
    setup = defined(setup, "other", &script(&python, WEB));
    let (mut runner, agent) = with_agent(&client, setup);
    assert_eq!(agent.start_service(&request("stubborn", free_port()))["status"], "started");
    assert_eq!(agent.start_service(&request("other", free_port()))["status"], "started");
    runner.wait_for("child");
    let others = 1;

    agent.shutdown_service("stubborn");
    runner.wait_for("asked");
    wait::until_true("only the other service to be left", || runner.processes().len() == others);

    assert_eq!(agent.start_service(&request("stubborn", free_port()))["status"], "started");
    let begun = Instant::now();
    runner.signal(Signal::SIGTERM);
    assert_eq!(runner.wait_exit().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(runner.processes(), Vec::<u32>::new());
}

#[test]
fn a_program_that_goes_into_the_background_is_a_service_still() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let line = "exec \"$0\" -c 'import os, sys
if os.fork(): os._exit(0)
os.setsid()
from http.server import *
ThreadingHTTPServer((\"\", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()' \"$1\"";
    let (runner, agent) = with_agent(&client, defined(app(), "daemon", &script(&python, line)));
    let info = request("daemon", free_port());

    for _ in 0..2 {
        assert_eq!(agent.start_service(&info), json!({ "status": "started" }));
        assert_eq!(agent.start_service(&info), json!({ "status": "running" }));
        runner.wait_for_log(&["service daemon continues in the background"]);
        agent.shutdown_service("daemon");
        wait::until_true("the daemon to end", || runner.processes().is_empty());
    }
}

#[test]
fn a_listener_of_the_users_own_is_the_service() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let port = free_port();
    let line = format!("{} -m http.server {port} > /dev/null 2>&1 &\n", python.display());
    let setup = defined(app(), "web", &script(&python, &format!("echo > begun; {WEB}")));
    let other = script(&python, "echo > other; exec sleep 1000");
    let setup = defined(setup, "other", &other).file("home/work/bootstrap.sh", line);
    let (runner, agent) = with_agent(&client, setup);
    wait::until_true("the server of bootstrap.sh", || TcpStream::connect(("127.0.0.1", port)).is_ok());

    for _ in 0..2 {
        assert_eq!(agent.start_service(&request("web", port)), json!({ "status": "running" }));
    }
    let refused = agent.start_service(&request("other", port));
    let expected = format!("port {port} is already in use by python");
    assert!(refused["error"].as_str().is_some_and(|error| error.starts_with(&expected)), "{refused}");
    assert_eq!((runner.read("begun"), runner.read("other")), (None, None));

    agent.shutdown_service("web");
    wait::until_true("the server to end", || TcpStream::connect(("127.0.0.1", port)).is_err());
    runner.wait_for_log(&["service web was stopped"]);
    assert_eq!(agent.start_service(&request("web", port)), json!({ "status": "started" }));
}

#[test]
fn an_action_that_hangs_is_told_and_ends_with_its_service() {
    let client = require!(host::agent_python());
    let definition = json!({
        "prestart": [{ "action": "run_command", "args": { "command": ["sh", "-c", "echo > runs; exec sleep 1000"] } }],
        "command": ["true"],
    });
    let (runner, agent) = with_agent(&client, defined(app(), "never", &definition));
    let begun = Instant::now();

    let answer = agent.start_service(&request("never", free_port()));

    assert_eq!(answer["error"], "still starting: waiting for the action `run_command`");
    assert!(begun.elapsed() < ANSWER_WITHIN, "{:?}", begun.elapsed());
    agent.shutdown_service("never");
    wait::until_true("the action to be ended", || runner.processes().is_empty());
}

#[test]
fn definitions_are_listed_while_the_session_starts_and_services_start_after_it() {
    let client = require!(host::agent_python());
    let python = require!(host::user_python());
    let setup = defined(app(), "web", &script(&python, WEB));
    // A bootstrap script that takes its time.
    let setup = setup.file("home/work/bootstrap.sh", "echo > begun; while [ ! -e go ]; do sleep 0.02; done\n");
    let (runner, agent) = with_agent(&client, setup);
    runner.wait_for("begun");

    assert_eq!(agent.apps()["data"][0]["name"], "web");
    let port = free_port();
    let pending = agent.start_starting_service(&request("web", port));
    assert_eq!(agent.apps()["data"][0]["name"], "web");
    std::thread::sleep(Duration::from_secs(1));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the server does not start before the script is through");
    runner.write("go", "");
    assert_eq!(pending.wait(), json!({ "status": "started" }));
}

#[test]
fn jupyter_is_offered_by_python_itself() {
    let python = require!(host::notebook_python());
    let (_runner, agent) = with_agent(&python, Setup::new("python").runtime(&python));

    for (name, page) in [("jupyter", "/tree"), ("jupyterlab", "/lab")] {
        let port = free_port();
        // A cold start may take longer than one answer.
        let started = wait::within(wait::PATIENCE, || {
            let answer = agent.start_service(&request(name, port));
            match answer["status"].as_str() {
                Some("started" | "running") => Some(()),
                _ if answer["error"].as_str().is_some_and(|error| error.starts_with("still starting")) => None,
                _ => panic!("{answer}"),
            }
        });

        assert!(started.is_some());
        // Without a token.
        assert!(get(port, "/api/status").contains("\"kernels\""), "{}", get(port, "/api/status"));
        assert!(get(port, page).starts_with("HTTP/1.1 200 "), "{}", get(port, page));
        agent.shutdown_service(name);
        // The session's own kernel runs on.
        wait::until_true("the server to end", || TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
