//! `r_server_ms` against a stand-in that checks every request.

use std::fs;
use std::process::Command;

use krunner_tests::{Raw, Runner, Server, Setup, Transcript, host, require};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

struct TestEnv {
    server: Server,
    runner: Runner,
    raw: Raw,
}

/// A server whose tokens live for so many seconds, and a session on it.
fn env(expires_in: &str) -> Result<TestEnv, String> {
    let python = host::user_python()?;
    let server = Server::start(&python, "r_server.py", &[expires_in]);
    let runner = Setup::new("r_server_ms")
        .env("MRS_ENDPOINT", format!("{}/", server.told("endpoint")))
        .env("MRS_USERNAME", "rita")
        .env("MRS_PASSWORD", "pässword")
        .start();
    let raw = Raw::connect(&runner);
    Ok(TestEnv { server, runner, raw })
}

impl TestEnv {
    #[track_caller]
    fn run(&mut self, code: &str) -> Transcript {
        self.raw.op("code", code);
        self.raw.read_runs(1)
    }

    /// Runs code that succeeds, and returns what it shows.
    #[track_caller]
    fn shown(&mut self, code: &str) -> String {
        let run = self.run(code);
        assert_eq!((run.codes(), run.stderr().as_str()), (vec![("finished", 0)], ""));
        run.stdout()
    }

    /// Stops the runner; what was asked of the server since its greeting, and what is left there.
    #[track_caller]
    fn end(mut self) -> (Vec<String>, Value) {
        // A second signal would cut the shutdown short.
        if self.runner.is_running() {
            self.runner.signal(Signal::SIGTERM);
        }
        assert!(self.runner.wait_exit().success());
        let mut lines = self.server.finish();
        let left = lines.pop().expect("a last line");
        for line in &lines {
            assert!(line.get("wrong").is_none(), "{line}");
        }
        let asked = lines.iter().map(|line| line["asked"].as_str().unwrap_or_default().to_owned()).collect();
        (asked, left)
    }
}

const CLEAN: &str = r#"{"sessions": [], "refresh": null}"#;

fn clean() -> Value {
    serde_json::from_str(CLEAN).expect("JSON")
}

#[test]
fn code_runs_in_one_session_which_is_deleted_at_the_end() {
    let mut env = require!(env("3600"));
    assert_eq!(env.shown("x <- \"ü\\n\""), "ran x <- \"ü\\n\" in session-3\n");
    assert_eq!(env.shown("x"), "ran x in session-3\n");
    let failed = env.run("fail");
    assert_eq!((failed.stdout(), failed.stderr()), ("before\n".into(), "Error: object 'x' not found\n".into()));
    assert_eq!(failed.codes(), [("finished", 1)]);
    assert_eq!(env.shown("flood").len(), 1 << 20);
    let (asked, left) = env.end();
    let execute = "POST /sessions/session-3/execute";
    let expected = [
        "POST /login",
        "POST /sessions",
        execute,
        execute,
        execute,
        execute,
        "DELETE /sessions/session-3",
        "DELETE /login/refreshToken",
    ];
    assert_eq!(asked, expected);
    assert_eq!(left, clean());
}

#[test]
fn nothing_is_asked_of_the_server_without_code() {
    let env = require!(env("3600"));
    assert_eq!(env.end(), (vec![], clean()));
}

#[test]
fn tokens_are_refreshed_before_they_expire_and_when_they_are_refused() {
    let mut env = require!(env("0"));
    env.shown("x");
    let (asked, left) = env.end();
    let refresh = "POST /login/refreshToken";
    assert_eq!(asked[..5], ["POST /login", "POST /sessions", refresh, "POST /sessions/session-3/execute", refresh]);
    assert_eq!(left, clean());

    let mut env = require!(self::env("3600"));
    env.shown("expire");
    assert_eq!(env.shown("x"), "ran x in session-3\n");
    env.shown("lock");
    assert_eq!(env.shown("y"), "ran y in session-3\n");
    let (asked, left) = env.end();
    let execute = "POST /sessions/session-3/execute";
    assert_eq!(asked[3..6], [execute, refresh, execute]);
    assert_eq!(asked[6..11], [execute, execute, refresh, "POST /login", execute]);
    assert_eq!(left, clean());
}

#[test]
fn session_that_is_gone_is_replaced_and_that_is_told() {
    let mut env = require!(env("3600"));
    assert_eq!(env.shown("forget"), "ran forget in session-3\n");
    let run = env.run("x");
    assert_eq!(run.codes(), [("finished", 0)]);
    assert_eq!(run.stdout(), "ran x in session-4\n");
    assert!(run.stderr().contains("ran in a new session without your variables"), "{}", run.stderr());
    assert_eq!(env.end().1, clean());
}

#[test]
fn interrupt_cancels_what_runs_and_the_session_goes_on() {
    let mut env = require!(env("3600"));
    env.raw.op("code", "wait");
    while env.server.next()["asked"] != json!("(waits)") {}
    env.raw.op("interrupt", "");
    assert_eq!(env.raw.read_runs(1).codes(), [("finished", -2)]);
    assert_eq!(env.shown("x"), "ran x in session-3\n");
    env.raw.op("code", "wait");
    while env.server.next()["asked"] != json!("(waits)") {}
    env.runner.signal(Signal::SIGTERM);
    assert_eq!(env.raw.read_to_end().codes(), [("finished", -15)]);
    assert!(env.runner.wait_exit().success());
    let (asked, left) = env.end();
    assert!(asked.contains(&"DELETE /sessions/session-3".to_owned()), "{asked:?}");
    assert_eq!(left, clean());
}

#[test]
fn refusals_and_wrong_settings_are_explained() {
    let mut env = require!(env("3600"));
    let crashed = env.run("crash");
    assert_eq!(crashed.codes(), [("finished", 1)]);
    assert!(crashed.stderr().contains("500 Internal Server Error") && crashed.stderr().contains("out of order"));
    let endpoint = env.server.told("endpoint").to_owned();
    let refused = |setup: Setup| {
        let runner = setup.start();
        let mut raw = Raw::connect(&runner);
        raw.op("code", "x");
        let run = raw.read_runs(1);
        assert_eq!(run.codes(), [("finished", 1)]);
        run.stderr()
    };
    let told = refused(Setup::new("r_server_ms").env("MRS_ENDPOINT", &endpoint).env("MRS_PASSWORD", "secret"));
    assert!(
        told.contains("rejected the login of \"anonymous\" (401 Unauthorized)") && !told.contains("secret"),
        "{told}"
    );
    let told = refused(Setup::new("r_server_ms").env("MRS_ENDPOINT", "ftp://x"));
    assert!(told.contains("MRS_ENDPOINT is \"ftp://x\""), "{told}");
    let told = refused(Setup::new("r_server_ms").env("MRS_ENDPOINT", "127.0.0.1:1"));
    assert!(told.contains("request to http://127.0.0.1:1 failed"), "{told}");
    assert_eq!(env.end().1, clean());
}

#[test]
fn certificate_has_to_be_one_that_the_image_trusts() {
    let openssl = require!(host::program("openssl"));
    let python = require!(host::user_python());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (pair, certificate) = (folder.path().join("pair.pem"), folder.path().join("certificate.pem"));
    let made = Command::new(openssl)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=stand-in"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args([&"-keyout".into(), &pair, &"-out".into(), &certificate])
        .output()
        .expect("openssl starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let both = [fs::read(&pair), fs::read(&certificate)].map(|part| part.expect("openssl has written it")).concat();
    fs::write(&pair, both).expect("the pair");
    let server = Server::start(&python, "r_server.py", &["3600", pair.to_str().expect("UTF-8")]);
    let session = || {
        let setup = Setup::new("r_server_ms").env("MRS_ENDPOINT", server.told("endpoint"));
        setup.env("MRS_USERNAME", "rita").env("MRS_PASSWORD", "pässword")
    };
    let run = |setup: Setup| {
        let runner = setup.start();
        let mut raw = Raw::connect(&runner);
        raw.op("code", "x");
        let run = raw.read_runs(1);
        (run.ends()[0].exit_code(), run.stdout() + &run.stderr())
    };
    let (code, told) = run(session());
    assert!(code == 1 && told.contains("certificate"), "{code}: {told}");
    assert_eq!(run(session().env("SSL_CERT_FILE", &certificate)), (0, "ran x in session-3\n".to_owned()));
}

#[test]
fn batch_steps_have_nothing_to_run_but_command_lines() {
    let mut env = require!(env("3600"));
    assert_eq!(env.raw.exec("*").codes(), [("finished", 127)]);
    assert_eq!(env.raw.exec("echo yes").stdout(), "yes\n");
    assert_eq!(env.end().1, clean());
}
