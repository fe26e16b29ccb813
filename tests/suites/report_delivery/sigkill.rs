//! A SIGKILL that was not the OOM killer's is explained, in the step that it ended, and not called a lack of memory.

use krunner_tests::{Transcript, proc, require, wait};
use nix::sys::signal::Signal;

use super::session;
use crate::limited_session::{LimitedSession, Tracer};
use crate::oom_phrases::{FROM_OUTSIDE, HEADING, NOT_THE_OOM_KILLER, OOM_DAEMON, REPORT, SIGKILL_FROM};

/// A user-space OOM killer.
const DAEMON: &str = "earlyoom";

/// The explanation is in the step, and is one: with BPF these words, without it that it was not the OOM killer.
#[track_caller]
fn assert_explained(tracer: Tracer, run: &Transcript, code: i64, bpf_words: &[&str]) {
    let text = run.stderr();
    assert_eq!(run.codes(), [("finished", code)], "{text}");
    assert!(!text.contains(HEADING) && !text.contains(REPORT), "it was no OOM kill: {text}");
    let words = if tracer == Tracer::Bpf { bpf_words } else { &[NOT_THE_OOM_KILLER] };
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    assert!(missing.is_empty(), "{missing:?} not in {text:?}");
}

fn by_a_shell(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, |plan| plan)?;
    let run = session.exec("echo $$ > killer; sleep 600 & kill -9 $!; wait $!").expect("the runner lives");
    let killer = session.runner.wait_for("killer");
    assert_explained(tracer, &run, 137, &[SIGKILL_FROM, killer.trim_end(), "sh"]);
    Ok(())
}

#[test]
fn by_a_shell_bpf() {
    require!(by_a_shell(Tracer::Bpf));
}

#[test]
fn by_a_shell_snapshot() {
    require!(by_a_shell(Tracer::Snapshot));
}

fn by_timeout(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, |plan| plan)?;
    let run = session.exec("timeout -s KILL 0.3 sleep 600; exit $?").expect("the runner lives");
    assert_explained(tracer, &run, 137, &[SIGKILL_FROM, "timeout"]);
    Ok(())
}

#[test]
fn by_timeout_bpf() {
    require!(by_timeout(Tracer::Bpf));
}

#[test]
fn by_timeout_snapshot() {
    require!(by_timeout(Tracer::Snapshot));
}

/// The step's own process, as we number it.
#[track_caller]
fn sleeper(session: &LimitedSession) -> u32 {
    wait::until("the step sleeps", || {
        proc::children(session.pid).into_iter().find(|&pid| proc::comm(pid).as_deref() == Some("sleep"))
    })
}

fn from_outside(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, |plan| plan)?;
    session.send("exec", "exec sleep 600");
    proc::signal(sleeper(&session), Signal::SIGKILL);
    let run = session.read_until(|message| message.kind == "finished").expect("the runner lives");
    assert_explained(tracer, &run, -9, &[FROM_OUTSIDE]);
    Ok(())
}

#[test]
fn from_outside_bpf() {
    require!(from_outside(Tracer::Bpf));
}

#[test]
fn from_outside_snapshot() {
    require!(from_outside(Tracer::Snapshot));
}

fn by_an_oom_daemon() -> Result<(), String> {
    let mut session = session(Tracer::Bpf, |plan| plan)?;
    session.send("exec", "exec sleep 600");
    proc::kill_as(DAEMON, sleeper(&session));
    let run = session.read_until(|message| message.kind == "finished").expect("the runner lives");
    assert_explained(Tracer::Bpf, &run, -9, &[SIGKILL_FROM, DAEMON, OOM_DAEMON]);
    Ok(())
}

#[test]
fn by_an_oom_daemon_bpf() {
    require!(by_an_oom_daemon());
}
