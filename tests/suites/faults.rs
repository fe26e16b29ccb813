//! System calls of the runner that fail once: the session goes on, or ends with an exit code and a reason.
//!
//! strace injects the error (`inject=CALL:error=ERROR:when=N`, counted for each thread) and lets programs go when they
//! execute, so that only the runner's own calls fail, and those of a child before it becomes a program. Errors that the kernel
//! cannot return for a call as the runner makes it (EINTR and EAGAIN of descriptors that are ready, errors of `epoll_wait`)
//! are not among them.
//!
//! `KRUNNER_FAULTS=all` fails every call of the table at every point, for minutes.

mod session;
mod table;

use std::env;
use std::sync::Mutex;
use std::thread;

use krunner_tests::{host, require};

use self::session::{Fault, Outcome, run};
use self::table::{all, representative};

/// Sessions side by side.
const WORKERS: usize = 3;

/// Whether strace may trace here.
fn tracer() -> Result<(), String> {
    host::program("strace")?;
    let tried = std::process::Command::new("strace").args(["-D", "-qq", "-o", "/dev/null", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("strace: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("cannot run strace: {error}")),
    }
}

/// Runs a session for each fault. Returns what was wrong.
fn run_all(faults: &[Fault]) -> Vec<String> {
    let (next, problems) = (Mutex::new(faults.iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(fault) = { next.lock().expect("no panic").next() } {
                    let outcome = run(fault);
                    problems.lock().expect("no panic").extend(outcome.problems(fault));
                }
            });
        }
    });
    problems.into_inner().expect("no panic")
}

#[test]
fn every_failing_call_has_a_reason_and_an_end() {
    require!(tracer());
    let is_all = env::var("KRUNNER_FAULTS").is_ok_and(|value| value == "all");
    let faults: Vec<Fault> = if is_all { all() } else { representative() };

    let problems = run_all(&faults);

    assert!(problems.is_empty(), "{} of {} faults:\n{}", problems.len(), faults.len(), problems.join("\n"));
}

fn with_fault(call: &'static str, error: &'static str, when: u32) -> (Fault, Outcome) {
    let fault = Fault { call, error, when };
    let outcome = run(&fault);
    (fault, outcome)
}

#[test]
fn a_session_without_a_fault_has_no_deviation() {
    require!(tracer());
    let (_, outcome) = with_fault("uname", "EFAULT", 1000);
    assert_eq!((outcome.deviations, outcome.exit_code), (Vec::new(), Some(0)), "{}", outcome.log);
}

#[test]
fn a_connection_without_descriptors_is_closed_with_a_reason() {
    require!(tracer());
    let (_, outcome) = with_fault("pipe2", "EMFILE", 1);
    let is_reason = |line: &str| line.contains("closing the connection") && line.contains("(os error 24)");
    assert!(outcome.log.lines().any(is_reason), "{}", outcome.log);
}

#[test]
fn a_recording_that_cannot_be_unlocked_is_no_panic() {
    require!(tracer());
    let (fault, outcome) = with_fault("flock", "EINTR", 2);
    assert_eq!(outcome.problems(&fault), Vec::<String>::new(), "{}", outcome.log);
}

#[test]
fn a_start_without_a_socket_for_signals_is_an_error_and_no_panic() {
    require!(tracer());
    let (_, outcome) = with_fault("socketpair", "EMFILE", 1);
    assert_eq!(outcome.exit_code, Some(1), "{}", outcome.log);
    // As glibc and musl call EMFILE.
    let reasons = ["Too many open files", "No file descriptors available"];
    let is_said = |reason: &&str| outcome.log.contains(&format!("cannot set up signal handlers: {reason}"));
    assert!(reasons.iter().any(is_said), "{}", outcome.log);
}
