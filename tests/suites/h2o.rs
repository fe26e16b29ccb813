//! `vendor.h2o` with a script in place of the daemon of H2O Driverless AI, which needs a licence. The script records what
//! happens to it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use krunner_tests::{Raw, Setup, host, proc, require, wait};
use nix::sys::signal::Signal;

/// A session with this script as the daemon.
fn h2o(script: &str) -> Setup {
    const PATH: &str = "opt/h2oai/dai/run-dai.sh";
    let setup = Setup::new("vendor.h2o").file(PATH, script);
    fs::set_permissions(setup.root().join(PATH), Permissions::from_mode(0o755)).expect("chmod");
    setup
}

const STAYS: &str = "#!/bin/sh
trap 'echo stopped > daemon; exit 0' TERM
echo $FROM_FILE > daemon
while :; do sleep 0.1; done
";

#[test]
fn daemon_lives_as_long_as_the_session_and_python_runs_beside_it() {
    let python = require!(host::user_python());
    let setup = h2o(STAYS).file("home/config/environ.txt", "FROM_FILE=yes\n").runtime(python);
    let mut runner = setup.file("home/work/main.py", "print('answer:', input('question? '))\n").start();
    assert_eq!(runner.wait_for("daemon"), "yes\n");
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "*");
    raw.read_until(|message| message.kind == "waiting-input");
    raw.op("input", "42");
    let run = raw.read_runs(1);
    assert_eq!((run.stdout().as_str(), run.codes()), ("answer: 42\n", vec![("finished", 0)]));
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    assert_eq!(runner.read("daemon").as_deref(), Some("stopped\n"));
    assert_eq!(runner.processes(), Vec::<u32>::new());
}

#[test]
fn daemon_that_goes_into_the_background_is_ended_as_well() {
    require!(host::program("setsid"));
    let script = "#!/bin/sh\nsetsid sh -c 'echo $$ > daemon; exec sleep 1000' > /dev/null 2>&1 &\n";
    let mut runner = h2o(script).runtime("/usr/bin/python3").start();
    let daemon: u32 = runner.wait_for("daemon").trim_end().parse().expect("a pid");
    wait::until_true("the script's end", || proc::parent(daemon) == Some(runner.pid()));
    assert!(!runner.stderr().contains("may not be available"), "a daemon that leaves its script is as it should be");
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    assert!(!proc::is_alive(daemon));
}

#[test]
fn daemon_that_is_not_there_or_fails_is_told_and_steps_run() {
    let runner = Setup::new("vendor.h2o").runtime("/usr/bin/python3").start();
    let path = runner.root().join("opt/h2oai/dai/run-dai.sh");
    runner.wait_for_log(&["vendor.h2o-kernel: cannot start the H2O daemon:", &path.display().to_string()]);
    assert_eq!(Raw::connect(&runner).exec("echo yes").stdout(), "yes\n");
    let runner = h2o("#!/bin/sh\necho no licence >&2; exit 7\n").runtime("/usr/bin/python3").start();
    runner.wait_for_log(&["run-dai.sh exited with code 7; H2O may not be available"]);
    runner.wait_for_log(&["no licence"]);
    assert_eq!(Raw::connect(&runner).exec("echo yes").stdout(), "yes\n");
}

#[test]
fn code_runs_in_the_images_kernel() {
    let python = require!(host::agent_python_with("ipykernel"));
    let runner = h2o(STAYS).runtime(python).start();
    let mut raw = Raw::connect(&runner);
    raw.op("code", "print(6 * 7)");
    let run = raw.read_runs(1);
    assert_eq!((run.stdout().as_str(), run.codes()), ("42\n", vec![("finished", 0)]));
}
