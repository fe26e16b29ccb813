//! `interrupt` sends SIGINT to the child's whole process group, and the session continues.

use krunner_tests::{Raw, Setup, Steps, host, proc, require, wait};

use crate::{announce, app, wait_for_file, with_agent};

#[test]
fn interrupt_ends_the_child_and_its_whole_group() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());

    // Three processes, none of which ignores SIGINT: the shell and both ends of the pipeline.
    let run = agent.start_exec("sleep 600 | sleep 601; echo not reached");
    runner.wait_for_program("sleep", 2);
    assert_eq!(runner.processes().len(), 3);
    agent.interrupt();

    assert_eq!(run.wait().exec().exit_code, Some(-2));
    wait::until_true("the group is gone", || runner.processes().is_empty());
    assert_eq!(agent.exec("echo next").stdout(), "next\n");
}

#[test]
fn interrupt_is_a_keyboard_interrupt_to_python() {
    let client = require!(host::agent_python());
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("home/work/main.py", include_str!("../programs/interrupted.py"));
    let (runner, agent) = with_agent(&client, setup);

    let run = agent.start_batch(Steps { exec: "*", ..Steps::NONE }, &[]);
    runner.wait_for("started");
    agent.interrupt();

    let run = run.wait();
    assert_eq!((run.exec().exit_code, run.exec().stdout.as_str()), (Some(3), "interrupted\n"), "{run:#?}");
}

#[test]
fn child_that_ignores_the_interrupt_goes_on() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    // The outer shell is in the same group and shows that the signal was sent. It runs its trap when the inner one has exited.
    let inner = format!("trap \"\" INT; {}; {}; echo survived", announce("started"), wait_for_file("go"));
    raw.op("exec", &format!("trap 'echo interrupted' INT; sh -c '{inner}'; echo exit code $?"));
    runner.wait_for("started");
    raw.op("interrupt", "");
    // Ops are handled in order, so the interrupt was delivered when the status arrives.
    raw.sync();
    runner.write("go", "");

    let run = raw.read_runs(1);
    assert_eq!(run.codes(), [("finished", 0)]);
    assert_eq!(run.stdout(), "survived\ninterrupted\nexit code 0\n");
}

#[test]
fn interrupt_ends_a_step_that_is_stopped() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());

    let run = agent.start_exec("sh -c 'kill -STOP $$; echo not reached'; echo nor this");
    let is_stopped = |pid: &u32| proc::state(*pid) == Some('T');
    wait::until("a stopped process", || runner.processes().into_iter().find(is_stopped));
    agent.interrupt();

    let run = run.wait();
    assert_eq!((run.exec().exit_code, run.stdout().as_str()), (Some(-2), ""), "{run:#?}");
}

#[test]
fn interrupt_hits_the_running_step_only() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());

    let steps = Steps { clean: "", build: "sleep 600", exec: "echo not reached" };
    let run = agent.start_batch(steps, &[]);
    runner.wait_for_program("sleep", 1);
    agent.interrupt();

    let run = run.wait();
    assert_eq!(run.codes(), [0, -2, 127], "an interrupted build has failed: {run:#?}");
    assert_eq!(agent.exec("echo next").stdout(), "next\n");
}
