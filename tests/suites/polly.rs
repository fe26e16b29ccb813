//! `vendor.aws_polly` against moto, which checks signatures and permissions as AWS does.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use krunner_tests::{Raw, Server, Setup, Transcript, host, require, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

fn moto() -> Result<(PathBuf, Server), String> {
    let python = host::agent_python_with("moto.server")?;
    let server = Server::start(&python, "polly_server.py", &[]);
    Ok((python, server))
}

fn polly(server: &Server) -> Setup {
    Setup::new("vendor.aws_polly")
        .env("AWS_ENDPOINT_URL_POLLY", server.told("endpoint"))
        .env("AWS_ACCESS_KEY_ID", server.told("id"))
        .env("AWS_SECRET_ACCESS_KEY", server.told("key"))
}

#[track_caller]
fn speak(raw: &mut Raw, code: &str) -> Transcript {
    raw.op("code", code);
    raw.read_runs(1)
}

/// What a refused speech says.
#[track_caller]
fn refusal(run: &Transcript) -> String {
    assert_eq!(run.codes(), [("finished", 1)]);
    assert!(run.messages.iter().all(|message| message.kind != "media"));
    run.stderr()
}

#[test]
fn text_becomes_a_sound() {
    let (_, server) = require!(moto());
    let runner = polly(&server).start();
    let mut raw = Raw::connect(&runner);
    for code in [
        r#"{"text": "Hello", "voiceId": "Joanna"}"#,
        r#"{"text": "<speak>안녕</speak>", "voiceId": "Seoyeon", "textType": "ssml"}"#,
    ] {
        let run = speak(&mut raw, code);
        assert_eq!((run.codes(), run.stderr().as_str()), (vec![("finished", 0)], ""));
        let media: Vec<_> = run.messages.iter().filter(|message| message.kind == "media").collect();
        assert_eq!(media.len(), 1);
        let media: Value = serde_json::from_slice(&media[0].payload).expect("JSON");
        // moto's sound is eight zero bytes.
        assert_eq!(media["type"], "audio/ogg");
        assert_eq!(media["data"], "data:audio/ogg;base64,AAAAAAAAAAA=");
    }
}

#[test]
fn region_and_endpoint_are_taken_from_environ_txt_too() {
    let (_, server) = require!(moto());
    let environ = format!(
        "AWS_ENDPOINT_URL={}/\nAWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\nAWS_DEFAULT_REGION=eu-west-1\n",
        server.told("endpoint"),
        server.told("id"),
        server.told("key")
    );
    let runner = Setup::new("vendor.aws_polly").file("home/config/environ.txt", environ).start();
    let run = speak(&mut Raw::connect(&runner), r#"{"text": "Hello", "voiceId": "Joanna"}"#);
    assert_eq!((run.codes(), run.stderr().as_str()), (vec![("finished", 0)], ""));
}

#[test]
fn refusals_of_the_server_are_told() {
    let (_, server) = require!(moto());
    let runner = polly(&server).start();
    let mut raw = Raw::connect(&runner);
    let told = refusal(&speak(&mut raw, r#"{"text": "Hello", "voiceId": "Nobody"}"#));
    assert!(told.contains("400 Bad Request") && told.contains("InvalidParameterValue"), "{told}");
    let long = format!(r#"{{"text": "{}", "voiceId": "Joanna"}}"#, "long ".repeat(1000));
    let told = refusal(&speak(&mut raw, &long));
    assert!(told.contains("TextLengthExceededException"), "{told}");
    let runner = polly(&server).env("AWS_SECRET_ACCESS_KEY", "wrong").start();
    let told = refusal(&speak(&mut Raw::connect(&runner), r#"{"text": "Hello", "voiceId": "Joanna"}"#));
    assert!(told.contains("403 Forbidden") && told.to_lowercase().contains("signature"), "{told}");
}

#[test]
fn what_cannot_be_asked_is_explained() {
    let runner = Setup::new("vendor.aws_polly").start();
    let mut raw = Raw::connect(&runner);
    for code in ["", "Hello", "[]", "{}", r#"{"text": 1, "voiceId": "Joanna"}"#] {
        let told = refusal(&speak(&mut raw, code));
        assert!(told.contains(r#"JSON like {"text": "Hello", "voiceId": "Joanna"}"#), "{code}: {told}");
    }
    let told = refusal(&speak(&mut raw, r#"{"text": "Hello", "voiceId": "Joanna"}"#));
    assert!(told.contains("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set"), "{told}");
    assert_eq!(raw.exec("*").codes(), [("finished", 127)]);
    let run = raw.exec("echo command lines run");
    assert_eq!(run.stdout(), "command lines run\n");
}

/// A session whose endpoint is that port of this machine.
fn at_port(port: u16) -> Setup {
    Setup::new("vendor.aws_polly")
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "key")
}

#[test]
fn server_that_is_not_there_or_speaks_nonsense_is_named() {
    let speech = r#"{"text": "Hello", "voiceId": "Joanna"}"#;
    let runner = at_port(1).start();
    let told = refusal(&speak(&mut Raw::connect(&runner), speech));
    assert!(told.starts_with("request to http://127.0.0.1:1 failed: ") && told.contains("refused"), "{told}");

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let runner = at_port(listener.local_addr().expect("an address").port()).start();
    let mut raw = Raw::connect(&runner);
    raw.op("code", speech);
    let (mut stream, _) = listener.accept().expect("the runner asks");
    std::io::Write::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.2\r\n").expect("an answer");
    let told = refusal(&raw.read_runs(1));
    assert!(told.contains("request to "), "{told}");
}

#[test]
fn interrupt_and_stop_end_a_request() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut runner = at_port(listener.local_addr().expect("an address").port()).start();
    let mut raw = Raw::connect(&runner);
    raw.op("code", r#"{"text": "Hello", "voiceId": "Joanna"}"#);
    let (stream, _) = listener.accept().expect("the runner asks");
    raw.op("interrupt", "");
    assert_eq!(raw.read_runs(1).codes(), [("finished", -2)]);
    let mut stream = stream;
    stream.set_read_timeout(Some(wait::PATIENCE)).expect("a read timeout");
    let mut request = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut request).expect("the connection is closed");
    assert!(request.starts_with(b"POST /v1/speech HTTP/1.1\r\n"));

    raw.op("code", r#"{"text": "Hello", "voiceId": "Joanna"}"#);
    let _held = listener.accept().expect("the runner asks again");
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    assert_eq!(raw.read_to_end().codes(), [("finished", -15)]);
}
