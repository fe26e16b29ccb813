//! Query mode in a real `IRkernel`: one thread, which answers no heartbeat while code runs.

use std::path::Path;

use krunner_tests::{Agent, Run, Runner, Setup, host, require};

use crate::with_agent;

fn start(python: &Path, r: &Path) -> (Runner, Agent) {
    with_agent(python, Setup::new("r").runtime(r))
}

#[track_caller]
fn ok(run: &Run) -> String {
    assert_eq!(run.codes(), [0], "{run:#?}");
    run.stdout()
}

#[test]
fn results_errors_and_tables() {
    let python = require!(host::agent_python());
    let r = require!(host::r_with_kernel());
    let (_runner, agent) = start(&python, &r);
    assert_eq!(ok(&agent.query("cat('out\\n')")), "out\n");
    let run = agent.query("x <- 20; x + 1");
    assert!(
        run.exec().shown("html").iter().any(|html| html.as_str().is_some_and(|html| html.contains("21"))),
        "{run:#?}"
    );
    let run = agent.query("data.frame(a = 1:2)");
    let html = run.exec().shown("html");
    assert!(html.len() == 1 && html[0].as_str().is_some_and(|html| html.contains("<table")), "{run:#?}");
    let run = agent.query("stop('on purpose')");
    assert_eq!(run.codes(), [1]);
    assert!(run.stderr().contains("on purpose"), "{run:#?}");
    let run = agent.query("write('a note', stderr())");
    assert_eq!((run.codes(), run.stderr().contains("a note")), (vec![0], true), "{run:#?}");
}

#[test]
fn input_is_asked_for_and_an_interrupt_is_heeded() {
    let python = require!(host::agent_python());
    let r = require!(host::r_with_kernel());
    let (runner, agent) = start(&python, &r);
    let run = agent.start_query("x <- readline('name? '); cat(x, '\\n')", &["Ünal"]).wait();
    assert_eq!(run.steps[0].status, "waiting-input");
    assert!(ok(&run).contains("name? ") && run.stdout().contains("Ünal"), "{run:#?}");
    let pending = agent.start_query("writeLines('1', 'busy'); while (TRUE) Sys.sleep(0.05)", &[]);
    runner.wait_for("busy");
    agent.interrupt();
    assert_ne!(pending.wait().codes(), [0]);
    assert_eq!(ok(&agent.query("cat('alive\\n')")), "alive\n");
}

#[test]
fn the_end_of_the_kernel_is_the_end_of_the_run() {
    let python = require!(host::agent_python());
    let r = require!(host::r_with_kernel());
    let (_runner, agent) = start(&python, &r);
    assert_eq!(agent.query("tools::pskill(Sys.getpid(), 9)").codes(), [-9]);
    assert_eq!(ok(&agent.query("cat('a fresh one\\n')")), "a fresh one\n");
}
