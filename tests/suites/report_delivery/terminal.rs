//! One line on the victim's terminal, which never holds up the runner and is never another user's.

use std::path::Path;
use std::time::Duration;

use krunner_tests::{Setup, Terminal, host, require};

use super::session;
use crate::limited_session::{LimitedSession, Tracer, reports};
use crate::oom_phrases::ON_TERMINAL;

const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// A session, and the command that runs one on a pseudo-terminal.
fn with_terminal(tracer: Tracer) -> Result<(LimitedSession, String), String> {
    let python = host::user_python()?;
    let session = session(tracer, |plan| plan)?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/on_terminal.py");
    Ok((session, format!("{} {}", python.display(), program.display())))
}

/// What the terminal showed, and the victim's pid.
#[track_caller]
fn shown(session: &mut LimitedSession, command: &str) -> (String, String) {
    let run = session.exec(command).expect("the runner lives");
    assert_eq!(session.limited.oom_kills(), 1, "{run:?}");
    let shown = run.stdout();
    let pid = shown.lines().find_map(|line| line.strip_prefix("victim ")).expect("the victim said who it is");
    (shown.clone(), pid.trim_end().to_owned())
}

fn one_line(tracer: Tracer, command: &str) -> Result<(), String> {
    let (mut session, on_terminal) = with_terminal(tracer)?;
    let (shown, pid) = shown(&mut session, &format!("{on_terminal} show '{command}'"));
    let lines: Vec<_> = shown.lines().filter(|line| line.contains(ON_TERMINAL)).collect();
    assert!(matches!(lines[..], [line] if line.contains(&pid)), "one line with {pid}: {shown}");
    Ok(())
}

#[test]
fn victims_own_bpf() {
    require!(one_line(Tracer::Bpf, "sh hog"));
}

#[test]
fn victims_own_snapshot() {
    require!(one_line(Tracer::Snapshot, "sh hog"));
}

/// A victim that left its session has no terminal, but a process that it came from has.
#[test]
fn nearest_ancestors() {
    require!(one_line(Tracer::Bpf, "setsid --wait sh hog; echo Killed"));
}

#[test]
fn terminal_of_the_git_runtime() {
    let session = require!(session(Tracer::Bpf, |plan| {
        plan.setup(|_| Setup::new("git").without_env("PS1").folder("home/work/.logs"))
    }));
    let mut terminal = Terminal::connect(&session.runner);
    terminal.type_in(b"sh hog\n");
    terminal.wait_for(b"victim ");
    let pid = String::from_utf8_lossy(&terminal.wait_for(b"\r\n")).into_owned();

    let before = terminal.wait_for(ON_TERMINAL.as_bytes());
    let after = terminal.wait_for(b"\r\n");

    let line = String::from_utf8_lossy(&[before, after].concat()).into_owned();
    assert!(line.contains(&pid), "{pid} in {line:?}");
    assert!(terminal.run("echo well").ends_with("well\n"), "the shell still works");
}

#[test]
fn another_users_terminal_shows_nothing() {
    let (mut session, on_terminal) = require!(with_terminal(Tracer::Bpf));
    let (shown, _) = shown(&mut session, &format!("{on_terminal} foreign 'sh hog'"));
    assert!(!shown.contains(ON_TERMINAL), "{shown}");
    assert_eq!(reports(&session.seen.stderr()), 1, "the client has it");
}

#[test]
fn terminal_that_is_not_read_holds_up_nothing() {
    let (mut session, on_terminal) = require!(with_terminal(Tracer::Bpf));
    // What it takes without a reader is used up first.
    let full = "exec 2> /dev/null; yes > /dev/tty & writer=$!; sleep 0.5; sh hog > /dev/null; kill $writer";
    session.send("exec", &format!("{on_terminal} unread '{full}'"));
    session.until_killed(1);
    assert!(session.status_within(STATUS_PATIENCE).is_some(), "status was not answered");
    assert!(session.until_finished(), "the runner lives");
    assert_eq!(reports(&session.seen.stderr()), 1, "{}", session.seen.stderr());
}
