//! A report reaches everything that it concerns: the next step, the terminal, the log, the agent that sends an event.

mod pressure;
mod sigkill;
mod terminal;

use std::time::Duration;

use krunner_tests::{Agent, host, require, wait};
use serde_json::{Value, json};

use crate::limited_session::{Limited, LimitedSession, Plan, Tracer, reports};
use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};
use crate::oom_phrases::{HEADING, NOTHING_FOUND, REPORT};
use crate::wait_for_file;

/// How long the contract gives a report and the agent's event for the same kill to find each other.
const EVENT_PATIENCE: Duration = Duration::from_secs(15);

/// A little more: whatever an event leads to has happened by then.
const EVENT_IS_OVER: Duration = Duration::from_secs(17);

/// A session with a cgroup below it in which memory is short, and `hog`, a script that is killed there.
fn session(tracer: Tracer, plan: impl FnOnce(Plan) -> Plan) -> Result<LimitedSession, String> {
    let session = plan(Plan::new(tracer, Limited::Below, LIMIT_MIB)).start()?;
    let procs = session.limited.procs_file();
    session.runner.write("hog", format!("echo 0 > {} && exec {VICTIM} eat {TOO_MUCH}\n", procs.display()));
    Ok(session)
}

/// A step that ends, and leaves a job that is killed when the file `go` is there.
fn job() -> String {
    format!("({}; sh hog) > /dev/null 2>&1 &", wait_for_file("go"))
}

/// Has a job between steps killed, and waits until the log and the record have it; the record's line.
#[track_caller]
fn kill_between_steps(session: &LimitedSession) -> Value {
    session.runner.write("go", "");
    session.until_killed(1);
    wait::until_true("the runner's log has the report", || session.runner.stderr().contains(REPORT));
    let line = wait::until("oom.jsonl has the report", || session.record().into_iter().next());
    serde_json::from_str(&line).expect("JSON")
}

/// The second of a kill, as RFC 3339 has it.
fn second_of(report: &Value) -> &str {
    let time = report["time"].as_str().expect("a time");
    time.split_once('.').map_or(time, |(second, _)| second)
}

fn comes_with_the_next_step(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, |plan| plan)?;
    assert_eq!(session.exec(&job()).expect("the runner lives").codes(), [("finished", 0)]);
    let report = kill_between_steps(&session);
    // What is sent at once, the agent discards.
    session.status_within(wait::PATIENCE).expect("an answer");

    let run = session.exec("true").expect("the runner lives");

    let text = run.stderr();
    assert_eq!((run.codes(), reports(&text)), (vec![("finished", 0)], 1), "{text}");
    assert!(text.contains(second_of(&report)), "it says when: {}: {text}", report["time"]);
    let next = session.exec("true").expect("the runner lives").stderr();
    assert_eq!(reports(&next), 0, "once is enough: {next}");
    Ok(())
}

#[test]
fn comes_with_the_next_step_bpf() {
    require!(comes_with_the_next_step(Tracer::Bpf));
}

#[test]
fn comes_with_the_next_step_snapshot() {
    require!(comes_with_the_next_step(Tracer::Snapshot));
}

#[test]
fn reaches_the_agents_client_with_the_next_run() {
    let client = require!(host::agent_python());
    let mut session = require!(session(Tracer::Bpf, |plan| plan));
    session.disconnect();
    let agent = Agent::connect(&client, &session.runner);
    assert_eq!(agent.exec(&job()).exec().exit_code, Some(0));
    kill_between_steps(&session);

    let text = agent.exec("true").stderr();

    assert_eq!(reports(&text), 1, "{text}");
}

/// Sends an event of the agent; twice, as some engines do.
fn send_event_twice(session: &mut LimitedSession) {
    for _ in 0..2 {
        session.send("event", &json!({ "type": "oom", "data": {} }).to_string());
    }
}

/// Nothing is said for as long as an event can have an effect.
#[track_caller]
fn assert_no_alarm(session: &mut LimitedSession) {
    let text = session.read_for(EVENT_IS_OVER, |_| false).stderr();
    assert!(!text.contains(HEADING) && !text.contains(NOTHING_FOUND), "{text}");
}

fn late_event(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, |plan| plan)?;
    session.exec("sh hog; true").expect("the runner lives");
    let reported = |session: &LimitedSession| (reports(&session.seen.stderr()) > 0).then_some(());
    wait::until("the report", || {
        session.status_within(wait::PATIENCE);
        reported(&session)
    });
    session.read_for(EVENT_PATIENCE + Duration::from_secs(1), |_| false);

    send_event_twice(&mut session);

    assert_no_alarm(&mut session);
    Ok(())
}

#[test]
fn late_event_raises_no_second_alarm_bpf() {
    require!(late_event(Tracer::Bpf));
}

#[test]
fn late_event_raises_no_second_alarm_snapshot() {
    require!(late_event(Tracer::Snapshot));
}

fn event_without_a_kill(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, |plan| plan)?;
    send_event_twice(&mut session);
    assert_no_alarm(&mut session);
    Ok(())
}

#[test]
fn event_without_a_kill_raises_no_alarm_bpf() {
    require!(event_without_a_kill(Tracer::Bpf));
}

#[test]
fn event_without_a_kill_raises_no_alarm_snapshot() {
    require!(event_without_a_kill(Tracer::Snapshot));
}
