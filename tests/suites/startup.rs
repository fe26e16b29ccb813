//! What happens before the first step: the bootstrap script, and the ops that do not wait for it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use krunner_tests::{Raw, Setup, host, require, wait};

use crate::{app, wait_for_file, with_agent};

#[test]
fn bootstrap_script_runs_before_the_queued_steps_and_holds_up_no_other_op() {
    let client = require!(host::agent_python());
    let script = format!("echo > started\n{}\necho bootstrap >> order\n", wait_for_file("go"));
    let (runner, agent) = with_agent(&client, app().file("home/work/bootstrap.sh", script));

    let run = agent.start_exec("echo step >> order");
    runner.wait_for("started");
    assert_eq!(agent.apps()["status"], "done");
    assert_eq!(runner.read("order"), None, "the step waits for the script");
    runner.write("go", "");

    assert_eq!(run.wait().exec().exit_code, Some(0));
    assert_eq!(runner.read("order").as_deref(), Some("bootstrap\nstep\n"));
}

#[test]
fn bootstrap_output_is_sent_like_a_steps() {
    let script = "echo from bootstrap\necho trouble >&2\nreadlink /proc/self/fd/0\n";
    let runner = app().file("home/work/bootstrap.sh", script).start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec("echo from step");

    assert_eq!(run.stdout(), "from bootstrap\n/dev/null\nfrom step\n");
    assert!(run.stderr().lines().any(|line| line == "trouble"), "{}", run.stderr());
}

#[test]
fn failing_bootstrap_script_is_logged_and_the_session_goes_on() {
    let client = require!(host::agent_python());
    let setup = app().file("home/work/bootstrap.sh", "echo half done\nexit 37\necho never\n");
    let (runner, agent) = with_agent(&client, setup);

    assert_eq!(agent.exec("echo alive").exec().exit_code, Some(0));

    runner.wait_for_log(&["app-kernel: ", "bootstrap", "37"]);
    let stdout = String::from_utf8_lossy(&runner.stdout()).into_owned();
    assert!(stdout.contains("half done") && !stdout.contains("never"), "{stdout}");
}

#[test]
fn bootstrap_script_has_the_childrens_environment() {
    let setup = app()
        .file("home/config/environ.txt", "FROM_AGENT=yes\n")
        .file("home/work/bootstrap.sh", "echo $FROM_AGENT $HOME $TERM [$_BACKEND_BATCH_MODE]\n");
    let home = setup.home();
    let runner = setup.start();

    let run = Raw::connect(&runner).exec("true");

    assert_eq!(run.stdout(), format!("yes {} xterm []\n", home.display()));
}

#[test]
fn interrupt_that_comes_too_early_does_not_cost_the_bootstrap_script() {
    let python = require!(host::user_python());
    // An interpreter on a cold mount: the runner's own first call of it takes until the test says so.
    let slow = format!("#!/bin/sh\necho > probing\n{}\nexec {} \"$@\"\n", wait_for_file("go"), python.display());
    let setup = Setup::new("python").file("home/work/slow-python", slow);
    let setup = setup.file("home/work/bootstrap.sh", "echo ran > bootstrapped\n");
    let interpreter = setup.home().join("slow-python");
    fs::set_permissions(&interpreter, fs::Permissions::from_mode(0o755)).expect("an executable");
    let runner = setup.runtime(interpreter).start();
    let mut raw = Raw::connect(&runner);
    wait::until_true("the first call of the interpreter", || runner.home().join("probing").exists());

    raw.op("interrupt", "");
    raw.sync();
    runner.write("go", "");

    assert_eq!(runner.wait_for("bootstrapped"), "ran\n");
}
