//! Query mode in a real ipykernel, as the agent's own client sees it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::{Agent, Run, Runner, Setup, StepResult, child_lines, host, proc, require, wait};
use serde_json::{Value, json};

use crate::{announce, with_agent};

/// A session whose Python has a kernel.
pub(crate) fn session(python: &Path) -> Setup {
    Setup::new("python").runtime(python)
}

fn start(python: &Path) -> (Runner, Agent) {
    with_agent(python, session(python))
}

#[track_caller]
fn ok(run: &Run) -> &StepResult {
    let step = run.exec();
    assert_eq!(step.exit_code, Some(0), "{run:#?}");
    step
}

/// The process of the session's kernel, once there is one that is not `other`.
#[track_caller]
pub(crate) fn kernel_but(runner: &Runner, other: Option<u32>) -> u32 {
    let is_kernel =
        |pid: &u32| Some(*pid) != other && proc::cmdline(*pid).is_some_and(|line| line.contains("ipykernel_launcher"));
    wait::until("a kernel", || runner.processes().into_iter().find(is_kernel))
}

#[test]
fn results_streams_and_variables() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    assert_eq!(ok(&agent.query("x = 20\nx + 1")).stdout, "21");
    let run = agent.query("import sys\nprint('out', x)\nprint('err', file=sys.stderr)\nx");
    let step = ok(&run);
    assert_eq!((step.stdout.as_str(), step.stderr.as_str()), ("out 20\n20", "err\n"));
    assert_eq!(ok(&agent.query("")).console, []);
}

#[test]
fn rich_results_come_in_the_form_that_the_client_shows() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    let run = agent.query("import pandas\npandas.DataFrame({'ä': [1, 2]})");
    let html = ok(&run).shown("html");
    assert!(html.len() == 1 && html[0].as_str().is_some_and(|html| html.contains("<th>ä</th>")), "{run:#?}");
    assert_eq!(ok(&run).stdout, "", "the table is not shown twice");

    let run = agent.query("import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])");
    let png = ok(&run).shown("media")[0];
    assert_eq!(png[0], "image/png");
    // The signature of a PNG, in base64.
    assert!(png[1].as_str().is_some_and(|data| data.starts_with("data:image/png;base64,iVBORw0KGgo")), "{png}");

    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    let run = agent.query(&format!("from IPython.display import *\ndisplay(SVG({svg:?}))"));
    assert_eq!(ok(&run).shown("media"), [&json!(["image/svg+xml", svg])]);

    let run = agent.query("display(Latex('$x$'))\ndisplay({'text/latex': '$y$', 'text/plain': 'y'}, raw=True)");
    assert!(ok(&run).stdout.contains('y'), "{run:#?}");
}

#[test]
fn what_is_shown_keeps_its_order() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    let code = "from IPython.display import HTML, display
for i in range(50):
    print(i)
    display(HTML(str(i)))";
    let run = agent.query(code);
    let shown: Vec<String> = ok(&run)
        .console
        .iter()
        .flat_map(|(_, value)| value.as_str().unwrap_or_default().lines())
        .map(str::to_owned)
        .collect();
    let expected: Vec<String> = (0..50).flat_map(|i| [i.to_string(), i.to_string()]).collect();
    assert_eq!(shown, expected);
}

#[test]
fn kernelspec_of_a_prefix_means_the_prefixs_own_python() {
    let python = require!(host::jupyter_python());
    let spec = json!({
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "x", "language": "python",
    });
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("prefix/share/jupyter/kernels/python3/kernel.json", spec.to_string())
        .file("prefix/bin/python", format!("#!/bin/sh\nIN_PREFIX=yes exec {} \"$@\"\n", python.display()));
    let own = setup.root().join("prefix/bin/python");
    fs::set_permissions(own, Permissions::from_mode(0o755)).expect("chmod");
    let share = setup.root().join("prefix/share/jupyter");
    let (_runner, agent) = with_agent(&python, setup.env("JUPYTER_PATH", share));
    assert_eq!(ok(&agent.query("import os\nos.environ['IN_PREFIX']")).stdout, "'yes'");
}

#[test]
fn errors_have_their_traceback_and_exits_their_code() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    let run = agent.query("1/0");
    assert_eq!(run.codes(), [1]);
    let traceback = run.stderr();
    assert!(traceback.contains("Traceback (most recent call last)"), "{traceback}");
    assert!(traceback.contains("division by zero") && traceback.contains("\u{1b}["), "in colours: {traceback:?}");
    assert_eq!(agent.query("import sys; sys.exit(3)").codes(), [3]);
    assert_eq!(agent.query("sys.exit()").codes(), [0]);
    assert_eq!(agent.query("sys.exit('a message')").codes(), [1]);
    assert_eq!(agent.query("raise SystemExit(0)").codes(), [0]);
    assert_eq!(ok(&agent.query("'still here'")).stdout, "'still here'");
}

#[test]
fn input_and_passwords_are_asked_for() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    let code = "import getpass
print('before')
name = input('name? ')
word = getpass.getpass('word? ')
print(name, word)";
    let run = agent.start_query(code, &["Ünal", "geheim"]).wait();
    let steps: Vec<_> = run.steps.iter().map(|step| (step.status.as_str(), step.stdout.as_str())).collect();
    assert_eq!(
        steps,
        [("waiting-input", "before\nname? "), ("waiting-input", "word? "), ("finished", "Ünal geheim\n")]
    );
    assert_eq!(run.steps[0].options, json!({"is_password": false}));
    assert_eq!(run.steps[1].options, json!({"is_password": true}));
}

#[test]
fn interrupts_reach_the_code_and_the_prompt() {
    let python = require!(host::jupyter_python());
    let (runner, agent) = start(&python);
    agent.query("import time");
    for code in [
        "open('busy', 'w').write('1\\n')\nwhile True: time.sleep(0.01)",
        "open('busy', 'w').write('2\\n')\nwhile True: pass",
    ] {
        let pending = agent.start_query(code, &[]);
        runner.wait_for("busy");
        std::fs::remove_file(runner.home().join("busy")).expect("the announcement");
        agent.interrupt();
        let run = pending.wait();
        assert_eq!(run.codes(), [1]);
        assert!(run.stderr().contains("KeyboardInterrupt"), "{run:#?}");
    }
    // Without a run it reaches the kernel, which does nothing.
    agent.interrupt();
    assert_eq!(ok(&agent.query("'alive'")).stdout, "'alive'");
}

/// Loads what completions need: that of `IPython` takes 7 s of processor time in a new home, and the runner waits 20 s for it.
fn warm_up_completions(agent: &Agent) {
    let suggestions = || agent.complete("impor", &json!({}));
    wait::until_true("the first completion", || suggestions() == json!({"suggestions": ["import"]}));
}

/// Rounds of [`interrupts_at_any_moment_end_the_step`].
const INTERRUPTED_STEPS: u64 = 120;

/// A kernel that SIGINT reaches at its own work, just before or behind the user's code, sends no reply.
#[test]
fn interrupts_at_any_moment_end_the_step() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    ok(&agent.query("import time\nkept = 7"));
    let rounds = std::env::var("KRUNNER_TEST_INTERRUPTS").ok().and_then(|rounds| rounds.parse().ok());
    for round in 0..rounds.unwrap_or(INTERRUPTED_STEPS) {
        // For half a minute, which an interrupt that is lost would take.
        let pending = agent.start_query("for _ in range(3000): time.sleep(0.01)", &[]);
        // 0 to 12 ms: the kernel takes some 4 ms to begin. Every eleventh one is well within the code.
        let delay_us = if round % 11 == 0 { 60_000 } else { round * 7919 % 12_000 };
        std::thread::sleep(Duration::from_micros(delay_us));
        let pressed_at = Instant::now();
        for press in 0..=round % 3 {
            std::thread::sleep(Duration::from_millis(press * (round % 5)));
            agent.interrupt();
        }
        let codes = pending.wait().codes();
        assert_eq!(codes, [1], "round {round}");
        let took = pressed_at.elapsed();
        assert!(took < Duration::from_secs(15), "round {round}: ended {took:?} after the interrupt");
        assert_eq!(ok(&agent.query("kept")).stdout, "7", "round {round}");
    }
}

/// A machine under load takes its time until the kernel reads a request, and between requests a kernel ignores SIGINT.
#[test]
fn interrupt_reaches_code_that_begins_late() {
    let python = require!(host::jupyter_python());
    let (runner, agent) = start(&python);
    ok(&agent.query("import time"));
    let kernel = kernel_but(&runner, None);
    proc::signal(kernel, nix::sys::signal::Signal::SIGSTOP);
    let pending = agent.start_query("for _ in range(3000): time.sleep(0.01)", &[]);
    std::thread::sleep(Duration::from_millis(100));
    agent.interrupt();
    std::thread::sleep(Duration::from_millis(1500));
    let resumed_at = Instant::now();
    proc::signal(kernel, nix::sys::signal::Signal::SIGCONT);
    assert_eq!(pending.wait().codes(), [1]);
    assert!(resumed_at.elapsed() < Duration::from_secs(15), "ended after {:?}", resumed_at.elapsed());
}

#[test]
fn completions_come_at_once_even_while_code_runs() {
    let python = require!(host::jupyter_python());
    let (runner, agent) = start(&python);
    agent.query("import time\nsome_long_name = 1");
    warm_up_completions(&agent);
    assert_eq!(agent.complete("some_long_n", &json!({})), json!({"suggestions": ["some_long_name"]}));
    let cursor = json!({"row": 1, "col": 11, "line": "some_long_n", "post": ""});
    assert_eq!(agent.complete("1\nsome_long_n = 3", &cursor), json!({"suggestions": ["some_long_name"]}));
    let pending = agent.start_query("open('busy', 'w').write('1\\n')\nwhile True: time.sleep(0.01)", &[]);
    runner.wait_for("busy");
    let asked_at = Instant::now();
    assert_eq!(agent.complete("some_long_n", &json!({})), json!({"suggestions": []}));
    assert!(asked_at.elapsed() < Duration::from_secs(50), "answered after {:?}", asked_at.elapsed());
    agent.interrupt();
    assert_eq!(pending.wait().codes(), [1]);
}

#[test]
fn code_waits_for_the_kernel() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    assert_eq!(ok(&agent.query("'first'")).stdout, "'first'");
}

#[test]
fn a_kernel_that_is_killed_ends_the_run_and_is_followed_by_another() {
    let python = require!(host::jupyter_python());
    let (runner, agent) = start(&python);
    agent.query("import os, time\nx = 1");
    let first = kernel_but(&runner, None);
    // What it shows leaves the kernel in threads of its own, which a busy machine lets wait.
    let code = "print('before', flush=True)\ntime.sleep(2)\nopen('busy', 'w').write('1\\n')\ntime.sleep(600)";
    let pending = agent.start_query(code, &[]);
    runner.wait_for("busy");
    let killed_at = Instant::now();
    proc::signal(first, nix::sys::signal::Signal::SIGKILL);
    let run = pending.wait();
    assert!(killed_at.elapsed() < Duration::from_secs(15), "ended after {:?}", killed_at.elapsed());
    assert_eq!(run.codes(), [-9]);
    assert_eq!(run.stdout(), "before\n", "what was shown before the end is not lost");
    assert!(run.stderr().contains("the python3 kernel was killed by signal 9"), "{run:#?}");
    let run = agent.query("'x' in dir()");
    assert_eq!(ok(&run).stdout, "False");
    kernel_but(&runner, Some(first));
    let run = agent.query("import os; os._exit(0)");
    assert_eq!(run.codes(), [1], "no success");
    assert!(run.stderr().contains("exited with code 0"), "{run:#?}");
    assert_eq!(agent.query("exit()").codes(), [0]);
    assert_eq!(ok(&agent.query("'a fresh one'")).stdout, "'a fresh one'");
}

#[test]
fn the_kernel_has_its_own_group_and_a_connection_file_for_its_eyes_only() {
    let python = require!(host::jupyter_python());
    let (runner, agent) = start(&python);
    let code = "import os, stat, sys
from ipykernel import get_connection_file
print(os.getpgid(0) == os.getpid(), oct(stat.S_IMODE(os.stat(get_connection_file()).st_mode)), os.getcwd())
print(sorted(name for name in os.environ if 'BATCH' in name), os.path.dirname(get_connection_file()))";
    let run = agent.query(code);
    let (home, tmp) = (runner.home(), runner.root().join("tmp"));
    assert_eq!(ok(&run).stdout, format!("True 0o600 {}\n[] {}\n", home.display(), tmp.display()));
}

#[test]
fn nothing_is_left_after_the_end() {
    let python = require!(host::jupyter_python());
    let (mut runner, agent) = start(&python);
    ok(&agent.query("import subprocess; _ = subprocess.Popen(['sleep', '600'])"));
    let pending =
        agent.start_query(&format!("import os, time; os.system({:?}); time.sleep(600)", announce("busy")), &[]);
    runner.wait_for("busy");
    let began = Instant::now();
    runner.signal(nix::sys::signal::Signal::SIGTERM);
    runner.wait_exit();
    assert!(began.elapsed() < Duration::from_secs(10), "stopped after {:?}", began.elapsed());
    let run = pending.wait();
    assert_eq!(run.codes(), [-15], "cut short is no success");
    assert_eq!(runner.processes(), [0; 0]);
    let left: Vec<_> = std::fs::read_dir(runner.root().join("tmp"))
        .expect("the folder for connection files")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kernel-"))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn without_a_kernel_code_is_refused_and_the_session_lives() {
    let client = require!(host::agent_python());
    let python = require!(host::program("python3"));
    let setup = session(&python).env("JUPYTER_PATH", "/nonexistent");
    let (runner, agent) = with_agent(&client, setup);
    let run = agent.query("1");
    assert_eq!(run.codes(), [127]);
    let told = run.stderr();
    assert!(told.contains("no kernelspec for \"python\"") && told.contains("-m pip install ipykernel"), "{told}");
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
    assert_eq!(runner.processes(), [0; 0]);
}

#[test]
fn languages_without_a_kernel_start_none() {
    let python = require!(host::jupyter_python());
    let gcc = require!(host::c_compiler());
    let share = host::folder_of(&python).join("share/jupyter");
    let (runner, agent) = with_agent(&python, Setup::new("c").runtime(gcc).env("JUPYTER_PATH", share));
    let run = agent.query("#include <stdio.h>\nint main() { puts(\"compiled\"); }");
    assert_eq!(ok(&run).stdout, "compiled\n");
    assert_eq!(runner.processes(), [0; 0]);
}

#[test]
fn the_users_configuration_is_left_alone() {
    const CONFIG: &str = "c.InteractiveShellApp.exec_lines = ['from_config = 42']\n";
    let python = require!(host::jupyter_python());
    let file = "home/work/.ipython/profile_default/ipython_config.py";
    let setup = session(&python).file(file, CONFIG).env("MPLBACKEND", "agg");
    let (runner, agent) = with_agent(&python, setup);
    let run = agent.query("import matplotlib.pyplot as plt\n_ = plt.plot([1])\nfrom_config");
    assert_eq!(ok(&run).shown("media").len(), 1, "plots are shown: {run:#?}");
    assert_eq!(ok(&run).stdout, "42");
    assert_eq!(std::fs::read_to_string(runner.root().join(file)).expect("the user's file"), CONFIG);
    assert_eq!(agent.exec("echo $MPLBACKEND").stdout(), "agg\n", "for programs in batch mode the image decides");
}

#[test]
fn an_agent_that_asks_badly_is_answered() {
    let python = require!(host::jupyter_python());
    let (_runner, agent) = start(&python);
    agent.query("1");
    warm_up_completions(&agent);
    let suggestions = |opts: Value| agent.complete("impor", &opts);
    assert_eq!(suggestions(json!({"row": "x"})), json!({"suggestions": []}));
    assert_eq!(suggestions(json!({"row": 99, "col": 99})), json!({"suggestions": ["import"]}));
}

#[test]
fn the_death_of_an_idle_kernel_goes_unnoticed() {
    let python = require!(host::jupyter_python());
    let (runner, agent) = start(&python);
    agent.query("1");
    let first = kernel_but(&runner, None);
    proc::signal(first, nix::sys::signal::Signal::SIGKILL);
    runner.wait_for_log(&["the python3 kernel was killed by signal 9"]);
    assert_eq!(ok(&agent.query("'a fresh one'")).stdout, "'a fresh one'");
    // The next kernel has not been used, so it is not restarted until it is needed.
    let second = kernel_but(&runner, Some(first));
    assert!(proc::is_alive(second));
    assert!(child_lines(&runner.stderr()).is_empty(), "{}", runner.stderr());
}
