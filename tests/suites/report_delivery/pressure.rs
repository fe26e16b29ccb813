//! Memory that runs out without an OOM kill: a full tmpfs, and a cgroup that may not kill.

use std::path::Path;
use std::time::Duration;

use krunner_tests::zmtp::Peer;
use krunner_tests::{host, require, wait};

use crate::limited_session::{Limited, LimitedSession, Plan, Tracer};
use crate::oom::VICTIM;
use crate::oom_phrases::{HEADING, MAY_NOT_KILL, OUT_OF_MEMORY, TMPFS};

const LIMIT_MIB: u64 = 128;
const TMPFS_MIB: u64 = 16;
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// What number SIGBUS has here.
const SIGBUS: i64 = 7;

fn sigbus_beside_a_full_tmpfs(tracer: Tracer) -> Result<(), String> {
    let python = host::user_python()?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/sigbus.py");
    let mut session = Plan::new(tracer, Limited::Runner, LIMIT_MIB).tmpfs_at_home(TMPFS_MIB).start()?;
    let command = format!("exec {} {} mapped {}", python.display(), program.display(), 2 * TMPFS_MIB);

    let run = session.exec(&command).expect("the runner lives");

    let text = run.stderr();
    assert_eq!((run.codes(), session.limited.oom_kills()), (vec![("finished", -SIGBUS)], 0), "{text}");
    let home = session.runner.home();
    let named = text.lines().any(|line| line.contains(TMPFS) && line.contains(home.to_str().expect("UTF-8")));
    assert!(named, "no line names the tmpfs at {}: {text}", home.display());
    Ok(())
}

#[test]
fn sigbus_beside_a_full_tmpfs_bpf() {
    require!(sigbus_beside_a_full_tmpfs(Tracer::Bpf));
}

#[test]
fn sigbus_beside_a_full_tmpfs_snapshot() {
    require!(sigbus_beside_a_full_tmpfs(Tracer::Snapshot));
}

/// As the agent's client does when a connection has ended.
#[track_caller]
fn connect_again(session: &mut LimitedSession) {
    assert!(session.is_alive(), "the runner was killed: {}", session.runner.stderr());
    assert!(session.raw().pull.is_closed(), "the connection is there and silent: {}", session.runner.stderr());
    let (_, replies) = session.runner.ports();
    session.raw().pull = Peer::connect(replies, "PULL");
}

fn cgroup_that_may_not_kill(tracer: Tracer) -> Result<(), String> {
    const LOG_PATIENCE: Duration = Duration::from_secs(10);
    let mut session = Plan::new(tracer, Limited::Runner, LIMIT_MIB).start()?;
    session.limited.disable_oom_killer()?;
    session.send("exec", &format!("{VICTIM} eat {}; echo code $?", 2 * LIMIT_MIB));
    wait::until_true("the cgroup is out of memory", || session.limited.is_under_oom());

    let answered = session.status_within(STATUS_PATIENCE);
    let says = |text: &str| {
        let text = text.to_lowercase();
        text.contains(OUT_OF_MEMORY) && text.contains(MAY_NOT_KILL)
    };
    let logged = wait::within(LOG_PATIENCE, || says(&session.runner.stderr()).then_some(()));
    session.limited.raise(4 * LIMIT_MIB);

    // The kernel may refuse a buffer for the socket as well: then the answer comes as soon as there is memory again, and if it was
    // in the middle of a message, on the next connection.
    let answered = answered.or_else(|| session.read_status_within(STATUS_PATIENCE)).or_else(|| {
        connect_again(&mut session);
        session.read_status_within(STATUS_PATIENCE)
    });
    assert!(answered.is_some(), "status was not answered within {STATUS_PATIENCE:?} of the limit's end");
    assert!(logged.is_some(), "nothing in the log while it lasted: {}", session.runner.stderr());
    if !session.until_finished() {
        connect_again(&mut session);
        assert!(session.until_finished(), "nothing more comes: {}", session.runner.stderr());
    }
    let run = &session.seen;
    assert!(run.stdout().contains("code 0"), "{run:?}");
    assert_eq!(session.limited.oom_kills(), 0);
    assert!(!run.stderr().contains(HEADING), "no OOM kill: {}", run.stderr());
    assert_eq!(session.exec("echo alive").expect("the runner lives").stdout(), "alive\n");
    Ok(())
}

#[test]
fn cgroup_that_may_not_kill_bpf() {
    require!(cgroup_that_may_not_kill(Tracer::Bpf));
}

#[test]
fn cgroup_that_may_not_kill_snapshot() {
    require!(cgroup_that_may_not_kill(Tracer::Snapshot));
}
