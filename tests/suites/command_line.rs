//! The commands for people: `krunner send` and `krunner selftest`.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use krunner_tests::zmtp::{greeting, ready};
use krunner_tests::{Raw, Runner, binary, free_port, host, proc, require};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::app;

fn krunner(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `krunner send` to a runner, with what is to come in on its stdin.
fn send(runner: &Runner, arguments: &[&str], stdin: &str) -> Output {
    let (op_port, reply_port) = runner.ports();
    let mut child = Command::new(binary())
        .args(["send", "--in-port", &op_port.to_string(), "--out-port", &reply_port.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(stdin.as_bytes()).expect("it reads, or has what it needs in the pipe");
    drop(pipe);
    child.wait_with_output().expect("its output")
}

#[test]
fn send_shows_output_and_ends_as_the_command_did() {
    let runner = app().start();

    let ran = send(&runner, &["exec", "echo out; echo err >&2; exit 3"], "");
    assert_eq!((ran.status.code(), text(&ran.stdout)), (Some(3), "out\n[finished] {\"exitCode\":3}\n".to_owned()));
    assert!(text(&ran.stderr).contains("err\n"), "{ran:?}");

    let killed = send(&runner, &["exec", "kill -9 $$"], "");
    assert_eq!(killed.status.code(), Some(128 + 9), "as a shell says it");
}

#[test]
fn send_prints_json_lines_on_demand() {
    let runner = app().start();

    let status = send(&runner, &["--json", "status"], "");
    let reply: Value = serde_json::from_slice(&status.stdout).expect("one JSON object");
    assert_eq!(reply["type"], "status");
    assert!(reply["payload"]["started_at"].as_f64().is_some_and(|seconds| seconds > 0.0), "{reply}");

    let ran = send(&runner, &["--json", "exec", "printf 'a\\nb'"], "");
    let replies: Vec<Value> = text(&ran.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let output: String = replies
        .iter()
        .filter(|reply| reply["type"] == "stdout")
        .filter_map(|reply| reply["payload"].as_str())
        .collect();
    assert_eq!(output, "a\nb");
    assert_eq!(replies.last().expect("a reply")["payload"]["exitCode"], 0);
}

#[test]
fn send_takes_the_payload_from_stdin() {
    let compiler = require!(host::c_compiler());
    let runner = krunner_tests::Setup::new("c").runtime(compiler).start();
    let code = "#include <stdio.h>\nint main(void) { puts(\"from stdin\"); return 0; }\n";
    let ran = send(&runner, &["code", "-"], code);
    assert_eq!(
        (ran.status.code(), text(&ran.stdout)),
        (Some(0), "from stdin\n[finished] {\"exitCode\":0}\n".to_owned())
    );
}

#[test]
fn send_whose_reader_has_seen_enough_is_no_failure() {
    let runner = app().start();
    let (op_port, reply_port) = runner.ports();
    let ports = [op_port.to_string(), reply_port.to_string()];
    let mut sending = Command::new(binary())
        .args(["send", "--in-port", &ports[0], "--out-port", &ports[1], "exec", "seq 100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("krunner send");
    sending.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("output");
    let output = sending.wait_with_output().expect("krunner send ends");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn send_of_an_op_without_a_reply_arrives_and_takes_no_reply_from_the_agent() {
    let runner = app().start();
    let mut agent = Raw::connect(&runner);
    agent.op("exec", "exec sleep 60");
    runner.wait_for_program("sleep", 1);

    let sent = send(&runner, &["interrupt"], "");

    assert_eq!((sent.status.code(), text(&sent.stdout)), (Some(0), String::new()));
    assert_eq!(agent.read_runs(1).codes(), [("finished", -2)], "the agent misses nothing");
}

#[test]
fn send_ends_when_the_runner_is_killed() {
    let runner = app().start();
    let (op_port, reply_port) = runner.ports();
    let ports = [op_port.to_string(), reply_port.to_string()];
    let mut sending = Command::new(binary())
        .args(["send", "--wait", "60", "--in-port", &ports[0], "--out-port", &ports[1]])
        .args(["exec", "echo before; exec sleep 60"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("krunner send");
    let mut before = [0; 7];
    sending.stdout.as_mut().expect("a pipe").read_exact(&mut before).expect("output");
    let steps = runner.wait_for_program("sleep", 1);

    let killed_at = Instant::now();
    runner.signal(Signal::SIGKILL);
    let output = sending.wait_with_output().expect("krunner send ends");
    for pid in steps {
        proc::signal(pid, Signal::SIGKILL);
    }

    assert!(killed_at.elapsed() < Duration::from_secs(10), "it waited: {output:?}");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(4), String::new()));
    assert_eq!(&before, b"before\n");
    assert!(text(&output.stderr).contains("lost the connection to the runner"), "{output:?}");
}

#[test]
fn send_of_an_op_without_a_reply_tells_a_lost_connection_as_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let payload = vec![b'x'; 32 << 20];
    let mut sending = Command::new(binary())
        .args(["send", "--wait", "60", "--in-port", &port, "input", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("krunner send");
    sending.stdin.take().expect("a pipe").write_all(&payload).expect("krunner send reads");
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.write_all(&[&greeting("NULL")[..], &ready("PULL")].concat()).expect("a handshake");
    stream.read_exact(&mut [0; 4096]).expect("the beginning of the op");

    drop(stream);

    let output = sending.wait_with_output().expect("krunner send ends");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(text(&output.stderr).contains("lost the connection to the runner"), "{output:?}");
}

#[test]
fn send_without_a_runner_names_where_it_looked() {
    let port = free_port().to_string();
    let output = krunner(&["send", "--wait", "1", "--in-port", &port, "--out-port", &port, "status"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains(&format!("cannot connect to a runner at tcp://127.0.0.1:{port}")), "{message}");
}

#[test]
fn selftest_goes_through_its_steps() {
    let output = krunner(&["selftest"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).ends_with("all checks passed\n"), "{output:?}");

    let output = krunner(&["selftest", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["ok"], true, "{report}");
    assert!(report["steps"].as_array().is_some_and(|steps| steps.len() >= 7), "{report}");
}

#[test]
fn languages_are_listed_as_the_runner_knows_them() {
    let output = krunner(&["languages", "--json"]);
    let table: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let rows = table["languages"].as_array().expect("a row for each language");
    let names: Vec<_> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    let refused = text(&krunner(&["cobol"]).stderr);
    assert!(refused.contains(&names.join(", ")), "{names:?} are not those of\n{refused}");

    let c = text(&krunner(&["languages", "c"]).stdout);
    assert!(c.contains("exec   main             ./main\n"), "{c}");
    let compiler = Path::new("/usr/bin/gcc");
    assert_eq!(c.contains("not found here"), !compiler.is_file(), "{c}");
    assert_eq!(krunner(&["languages", "cobol"]).status.code(), Some(2));
}

#[test]
fn help_has_examples_and_exit_codes() {
    let output = krunner(&["--help"]);
    let help = text(&output.stdout);
    for part in ["Examples:", "krunner send status", "Exit codes:", "\n  3    cannot bind a port"] {
        assert!(help.contains(part), "{part:?} is not in\n{help}");
    }
    assert!(text(&krunner(&["--version"]).stdout).starts_with("krunner 0."));
}
