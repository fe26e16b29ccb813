//! The environment of a child: the runner's own, the contract's table, `environ.txt`, and what is promoted or stripped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use krunner_tests::{Raw, Runner, Setup};

use crate::app;

type Env = BTreeMap<String, String>;

/// The environment of an exec step's child.
fn of_exec(runner: &Runner) -> Env {
    of_step(runner, "exec")
}

fn of_step(runner: &Runner, op: &str) -> Env {
    let mut raw = Raw::connect(runner);
    raw.op(op, "env -0 > environ.bin");
    let run = raw.read_until(krunner_tests::Message::ends_step);
    assert_eq!(run.ends()[0].exit_code(), 0, "{run:?}");
    let bytes = fs::read(runner.home().join("environ.bin")).expect("the child's environment");
    let text = String::from_utf8(bytes).expect("UTF-8");
    text.split_terminator('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn with_environ(text: impl AsRef<[u8]>) -> Setup {
    app().file("home/config/environ.txt", text)
}

#[track_caller]
fn assert_has(env: &Env, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(env.get(*key).map(String::as_str), Some(*value), "{key}");
    }
}

#[test]
fn contract_table_goes_over_the_runners_own() {
    let setup = app()
        .env("LANG", "tlh_QO")
        .env("TERM", "vt52")
        .env("HOME", "/nowhere")
        .env("SHELL", "/bin/own")
        .env("SSH_AUTH_SOCK", "/tmp/agent.sock")
        .env("OWN", "kept");
    let home = setup.home();
    let runner = setup.start();

    let env = of_exec(&runner);

    let home = home.to_str().expect("UTF-8");
    assert_has(&env, &[("LANG", "C.UTF-8"), ("TERM", "xterm"), ("HOME", home), ("SHELL", "/bin/own")]);
    assert_has(&env, &[("SSH_AUTH_SOCK", "/tmp/agent.sock"), ("OWN", "kept")]);
    assert_has(&env, &[("LD_LIBRARY_PATH", ""), ("LD_PRELOAD", ""), ("SSH_AGENT_PID", "")]);
}

#[test]
fn batch_mode_is_told_to_exec_only() {
    let runner = app().start();
    assert_has(&of_exec(&runner), &[("_BACKEND_BATCH_MODE", "1")]);
    for op in ["clean", "build"] {
        assert_eq!(of_step(&runner, op).get("_BACKEND_BATCH_MODE"), None, "{op}");
    }
}

#[test]
fn path_and_shell_have_defaults() {
    let setup = app().without_env("PATH").without_env("SHELL");
    let home = setup.home();
    let runner = setup.start();

    let env = of_exec(&runner);

    let shell = if Path::new("/bin/ash").is_file() { "/bin/ash" } else { "/bin/bash" };
    assert_has(&env, &[("SHELL", shell)]);
    let path = &env["PATH"];
    assert!(path.starts_with(&format!("{}/.local/bin:", home.display())), "{path}");
    assert!(path.ends_with(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), "{path}");
}

#[test]
fn users_own_programs_lead_the_path_once() {
    let setup = app();
    let promoted = setup.home().join(".local/bin");
    let promoted = promoted.to_str().expect("UTF-8");
    let runner = setup.env("PATH", format!("/usr/bin:{promoted}:/bin:/odd")).start();

    let path = &of_exec(&runner)["PATH"];

    let entries: Vec<_> = path.split(':').collect();
    assert_eq!(entries[0], promoted);
    assert_eq!(entries.iter().filter(|entry| **entry == promoted).count(), 1, "{path}");
    assert!(path.ends_with(":/usr/bin:/bin:/odd"), "{path}");
}

#[test]
fn path_of_environ_txt_is_promoted_as_well() {
    let setup = with_environ("PATH=/usr/bin:/bin:/from-agent\n");
    let promoted = setup.home().join(".local/bin");
    let runner = setup.start();

    let path = &of_exec(&runner)["PATH"];

    assert!(path.starts_with(promoted.to_str().expect("UTF-8")), "{path}");
    assert!(path.ends_with(":/usr/bin:/bin:/from-agent"), "{path}");
}

#[test]
fn libraries_of_the_runners_volume_are_stripped() {
    let runner = app().env("LD_LIBRARY_PATH", "/opt/backend.ai/lib:/usr/local/lib/own").start();
    assert_has(&of_exec(&runner), &[("LD_LIBRARY_PATH", "/usr/local/lib/own")]);

    let runner = with_environ("LD_LIBRARY_PATH=/opt/backend.ai/lib:/from/agent\n").start();
    assert_has(&of_exec(&runner), &[("LD_LIBRARY_PATH", "/from/agent")]);
}

#[test]
fn environ_txt_goes_over_everything_else() {
    let text = "PLAIN=value\nEQUATION=a=b=c\nEMPTY=\nLANG=ko_KR.UTF-8\nOWN=replaced\nHANGUL=한글\n\
                SPACES=  kept  \nQUOTED=\"as it is\"\n";
    let runner = with_environ(text).env("OWN", "original").start();

    let env = of_exec(&runner);

    assert_has(&env, &[("PLAIN", "value"), ("EQUATION", "a=b=c"), ("EMPTY", ""), ("LANG", "ko_KR.UTF-8")]);
    assert_has(&env, &[("OWN", "replaced"), ("HANGUL", "한글"), ("SPACES", "  kept  "), ("QUOTED", "\"as it is\"")]);
}

#[test]
fn line_without_an_equals_sign_continues_the_value() {
    let runner = with_environ("KEY=-----BEGIN-----\nline two\nline three\nNEXT=1\n").start();

    let env = of_exec(&runner);

    assert_has(&env, &[("KEY", "-----BEGIN-----\nline two\nline three"), ("NEXT", "1")]);
}

#[test]
fn lines_may_end_in_crlf_and_the_last_one_in_nothing() {
    let runner = with_environ("FIRST=one\r\nSECOND=two\r\ncontinued\r\nLAST=three").start();

    let env = of_exec(&runner);

    assert_has(&env, &[("FIRST", "one"), ("SECOND", "two\ncontinued"), ("LAST", "three")]);
}
