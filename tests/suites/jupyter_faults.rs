//! Kernels that misbehave: a stand-in of ours that dies, hangs, lies or babbles on demand.

use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::{Agent, Run, Runner, Setup, host, proc, require, wait};
use serde_json::json;

use crate::jupyter::session;
use crate::stop::{GRACE, LIMIT};
use crate::{lines, with_agent};

/// Of a kernel whose start took too long.
const GIVEN_UP: &str = "the python3 kernel did not respond within 30s";

/// The heartbeat's limit.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// A session whose kernel is the stand-in.
fn setup(python: &Path, mode: &str, interrupt_mode: &str) -> Setup {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/fake_kernel.py");
    let argv = json!(["python", program, "{connection_file}", mode]);
    let spec = json!({"argv": argv, "display_name": "fake", "language": "python", "interrupt_mode": interrupt_mode});
    let folder = "home/work/kernels-of-ours";
    let setup = session(python).file(&format!("{folder}/kernels/python3/kernel.json"), spec.to_string());
    let path = setup.root().join(folder);
    setup.env("JUPYTER_PATH", path)
}

fn start(python: &Path, mode: &str) -> (Runner, Agent) {
    with_agent(python, setup(python, mode, "signal"))
}

#[test]
fn a_kernel_that_dies_mid_run_ends_it_with_its_own_code() {
    let python = require!(host::agent_python());
    let (_runner, agent) = start(&python, "dies");
    for code in ["7", "9"] {
        let run = agent.query(code);
        assert_eq!(run.codes(), [code.parse::<i32>().expect("a number")]);
        assert_eq!(run.stdout(), "last output\n");
        assert!(run.stderr().contains(&format!("the python3 kernel exited with code {code}")), "{run:#?}");
    }
}

#[test]
fn a_kernel_that_does_not_start_is_told_and_tried_again() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "exits");
    for _ in 0..2 {
        let run = agent.query("1");
        assert_eq!(run.codes(), [127]);
        assert!(run.stderr().contains("the python3 kernel exited with code 3"), "{run:#?}");
    }
    // Its own words are on the runner's stderr.
    runner.wait_for_log(&["no such module"]);
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn a_kernel_that_never_answers_is_given_up() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "mute");
    let pending = agent.start_query("1", &[]);
    agent.started_at();
    // A completion waits 20 s at most, so two that wait outlast the kernel's start.
    for _ in 0..2 {
        assert_eq!(agent.complete("x", &json!({})), json!({"suggestions": []}));
    }
    assert_eq!(agent.apps(), json!({"status": "done", "data": []}));
    assert!(!runner.stderr().contains(GIVEN_UP), "other ops waited for the kernel");
    let run = pending.wait();
    assert_eq!(run.codes(), [127]);
    assert!(run.stderr().contains(GIVEN_UP), "{run:#?}");
    runner.wait_for_log(&[GIVEN_UP]);
    wait::until_true("its process is gone", || runner.processes().is_empty());
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn a_run_that_waits_for_its_kernel_can_be_interrupted() {
    let python = require!(host::agent_python());
    let (_runner, agent) = start(&python, "mute");
    let pending = agent.start_query("1", &[]);
    agent.started_at();
    agent.interrupt();
    let run = pending.wait();
    assert_eq!(run.codes(), [-2], "the end of the kernel's start would be 127: {run:#?}");
    assert!(!run.stderr().contains(GIVEN_UP), "{run:#?}");
}

#[test]
fn garbage_is_passed_over_and_what_follows_is_shown() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "garbage");
    agent.query("1");
    runner.settle();
    let run = agent.query("1");
    assert_eq!(run.codes(), [0]);
    assert_eq!(run.stdout(), "after it\n");
    for told in [
        "too few frames",
        "malformed header",
        "too many frames",
        "too long",
        "malformed stream",
        "dropping a message of type error",
    ] {
        assert!(run.stderr().contains(told), "{told}: {}", run.stderr());
    }
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak < 32 * 1024, "{peak} KiB for what was passed over");
}

#[test]
fn a_wrong_signature_is_not_believed() {
    let python = require!(host::agent_python());
    let (_runner, agent) = start(&python, "forged");
    let run = agent.query("1");
    assert_eq!((run.codes(), run.stdout()), (vec![0], "genuine\n".to_owned()));
    assert!(run.stderr().contains("wrong signature"), "{run:#?}");
}

#[test]
fn a_length_that_is_only_claimed_costs_nothing() {
    let python = require!(host::agent_python());
    let (mut runner, agent) = start(&python, "claims");
    let run = agent.query("1");
    assert_eq!(run.codes(), [0], "it has answered, though nothing can be shown: {run:#?}");
    assert!(runner.is_running());
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak < 64 * 1024, "{peak} KiB for a claim");
}

#[test]
fn an_answer_too_long_to_be_read_is_no_success() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "huge-reply");
    runner.settle();
    let run = agent.query("1");
    assert_eq!(run.codes(), [1]);
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak < 32 * 1024, "{peak} KiB for an answer that is not read");
}

/// A message takes memory for its text, and for what is shown of it, not for the rest as values.
#[test]
fn a_display_of_a_million_values_costs_little_more_than_its_text() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "plots");
    let run = agent.query("1");
    assert_eq!((run.codes(), run.stdout()), (vec![0], "a plot".to_owned()));
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak < 80 * 1024, "{peak} KiB for a message of 14 MB");
}

#[test]
fn a_traceback_of_millions_of_lines_costs_little_more_than_its_text() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "fails-long");
    let run = agent.query("1");
    assert_eq!(run.codes(), [0]);
    assert_eq!(run.stderr().len(), "E".len() + 3_000_000);
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak < 80 * 1024, "{peak} KiB for a message of 12 MB");
}

/// The kernel is paused while output piles up; it may be in the middle of a message then.
#[test]
fn a_kernel_that_is_paused_in_the_middle_of_a_message_goes_on() {
    let python = require!(host::agent_python());
    let (_runner, agent) = start(&python, "piles-up");
    let run = agent.query("5");
    assert_eq!((run.codes(), run.stdout()), (vec![0], "x\n".repeat(5 * 50)));
}

#[test]
fn a_flood_comes_whole_and_in_order() {
    const COUNT: u32 = 20_000;
    let python = require!(host::agent_python());
    let (_runner, agent) = start(&python, "floods");
    let run = agent.query(&COUNT.to_string());
    let expected = lines(0..COUNT);
    assert_eq!(run.codes(), [0]);
    assert!(run.stdout() == expected, "{} bytes in place of {}", run.stdout().len(), expected.len());
}

#[test]
fn a_kernel_that_closes_its_sockets_is_ended() {
    let python = require!(host::agent_python());
    let (runner, agent) = start(&python, "closes");
    let run = agent.query("1");
    assert_eq!((run.codes(), run.stdout()), (vec![-1], "closing\n".to_owned()));
    assert!(run.stderr().contains("the peer closed the connection"), "{run:#?}");
    wait::until_true("the next kernel is the only one", || runner.processes().len() == 1);
}

#[test]
fn an_interrupt_is_a_message_where_the_kernelspec_says_so() {
    let python = require!(host::agent_python());
    let (runner, agent) = with_agent(&python, setup(&python, "waits", "message"));
    let pending = agent.start_query("1", &[]);
    // Before the kernel runs the code, the interrupt ends the wait for the kernel.
    runner.wait_for("waiting");
    agent.interrupt();
    let run = pending.wait();
    assert_eq!((run.codes(), run.stdout()), (vec![1], "waiting\ninterrupt_request\n".to_owned()));
}

/// The run of a kernel that kills itself; a process that it forked lives on.
fn run_that_ends_with_its_kernel(mode: &str) -> Result<Run, String> {
    let python = host::agent_python()?;
    let (_runner, agent) = start(&python, mode);
    agent.complete("", &json!({}));
    let asked_at = Instant::now();
    let run = agent.query("1");
    let took = asked_at.elapsed();
    assert_eq!(run.codes(), [-9]);
    assert!(run.stderr().contains("the python3 kernel was killed by signal 9 (SIGKILL)"), "{run:#?}");
    assert!(took < SILENCE_LIMIT, "the silence ended it, not the exit: {took:?}");
    Ok(run)
}

#[test]
fn a_child_that_keeps_the_sockets_open_does_not_hide_the_end() {
    require!(run_that_ends_with_its_kernel("nested"));
}

#[test]
fn a_child_that_keeps_the_socket_of_half_a_message_does_not_hide_the_end() {
    let run = require!(run_that_ends_with_its_kernel("breaks-off"));
    assert!(run.stdout().len() > 100_000, "what had come: {} bytes", run.stdout().len());
}

#[test]
fn a_kernel_that_does_not_want_to_end_is_killed() {
    let python = require!(host::agent_python());
    let (mut runner, agent) = start(&python, "stubborn");
    assert_eq!(agent.query("1").codes(), [0]);
    let began = Instant::now();
    runner.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(runner.wait_exit().code(), Some(0));
    let took = began.elapsed();
    assert!(took >= GRACE.mul_f64(0.9), "it did not ignore SIGTERM: {took:?}");
    assert!(took < LIMIT, "the stop took {took:?}");
    assert!(!runner.stderr().contains("did not stop in time"), "killed by the last resort: {}", runner.stderr());
    assert_eq!(runner.processes(), [0; 0]);
}
