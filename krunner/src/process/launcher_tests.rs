//! Tests of the launcher with real programs, each in a process of its own.

use super::*;
use crate::error::chain;
use crate::process::testing::{MemorySink, alone};
use crate::process::{NoExplanation, OomScorePolicy};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::path::Path;

fn launcher() -> (Launcher, Arc<MemorySink>) {
    let (tasks, sink) = (TaskGroup::new(), Arc::new(MemorySink::default()));
    let launcher = Launcher {
        reaper: Reaper::start(&tasks, Box::new(|_, _| ()), OomScorePolicy::Unchanged).unwrap(),
        console: Console { stdout: Writer::discard(), stderr: Writer::discard() },
        sink: sink.clone(),
        logs: None,
        tasks,
        reasons: Arc::new(NoExplanation),
    };
    (launcher, sink)
}

fn env() -> ChildEnv {
    BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())])
}

fn exited(code: i32) -> CommandOutcome {
    CommandOutcome::Exited(ChildStatus::Code(code))
}

#[test]
fn both_streams_arrive_whole_before_the_outcome() {
    alone(async {
        let (launcher, sink) = launcher();
        let command = Command::shell("seq 1 100000; seq 1 50000 >&2; exit 3");
        assert_eq!(launcher.run(&command, &env(), &Control::new()).await.unwrap(), exited(3));
        let lines = |last: u32| (1..=last).map(|number| number.to_string() + "\n").collect::<String>().into_bytes();
        assert!(sink.bytes(Stream::Stdout) == lines(100_000));
        assert!(sink.bytes(Stream::Stderr) == lines(50_000));
    });
}

#[test]
fn a_background_child_does_not_hold_up_the_end_and_is_still_heard() {
    alone(async {
        let (launcher, sink) = launcher();
        let folder = tempfile::tempdir().unwrap();
        let line = "(while [ ! -e go ]; do sleep 0.01; done; echo late) & echo early";
        let command = Command::shell(line).in_directory(folder.path());
        // The child waits for the file, so its end is not what ends this.
        assert_eq!(launcher.run(&command, &env(), &Control::new()).await.unwrap(), exited(0));
        assert_eq!(sink.stdout(), "early\n");
        std::fs::write(folder.path().join("go"), "").unwrap();
        sink.until_stdout("early\nlate\n").await;
    });
}

#[test]
fn termination_is_sigterm_and_output_until_the_end_is_kept() {
    alone(async {
        let (launcher, sink) = launcher();
        let control = Control::new();
        let command = Command::shell("trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.01; done");
        let (env, began) = (env(), Instant::now());
        let (outcome, ()) = tokio::join!(launcher.run(&command, &env, &control), async {
            sink.until_stdout("ready\n").await;
            control.terminate();
        });
        assert_eq!(outcome.unwrap(), CommandOutcome::Terminated(ChildStatus::Code(5)));
        assert_eq!(sink.stdout(), "ready\ntold\n");
        assert!(began.elapsed() < TERM_TIMEOUT, "the grace is not used up: {:?}", began.elapsed());
    });
}

#[test]
fn after_the_grace_the_whole_group_is_killed() {
    alone(async {
        let (launcher, sink) = launcher();
        let control = Control::new();
        // The leader exits on SIGTERM, a member of its group ignores it.
        let line = "trap 'exit 0' TERM; sh -c 'trap \"\" TERM; echo ready; exec sleep 60' & wait";
        let (command, env) = (Command::shell(line), env());
        let started = launcher.start(&command, &env, &control).await.unwrap();
        let ControlFlow::Continue(running) = started else { panic!("it started") };
        let group = running.pid();
        sink.until_stdout("ready\n").await;
        let began = Instant::now();
        control.terminate();
        let outcome = running.finish(&control).await;
        let took = began.elapsed();
        assert!(took >= TERM_TIMEOUT, "killed after {took:?} already");
        assert_eq!(outcome, CommandOutcome::Terminated(ChildStatus::Code(0)));
        assert_ne!(outcome.code(), 0);
        while killpg(group, None) != Err(Errno::ESRCH) {
            sleep(GROUP_POLL).await;
        }
    });
}

#[test]
fn an_interrupt_reaches_the_group_and_a_stopped_program_too() {
    alone(async {
        let (launcher, sink) = launcher();
        let control = Control::new();
        // A program inherits an ignored SIGINT, as jobs in the background have it, but no handler.
        let _handler = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
        let command = Command::shell("echo $$; kill -STOP $$; echo not reached");
        let env = env();
        let (outcome, ()) = tokio::join!(launcher.run(&command, &env, &control), async {
            let is_stopped = |pid: &str| {
                let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim_end()).join("stat"));
                stat.is_ok_and(|stat| stat.contains(") T "))
            };
            while !is_stopped(&sink.stdout()) {
                sleep(GROUP_POLL).await;
            }
            control.interrupt();
        });
        assert_eq!(outcome.unwrap(), CommandOutcome::Exited(ChildStatus::Signal(nix::libc::SIGINT)));
        assert!(!sink.stdout().contains("not reached"));
    });
}

#[test]
fn a_child_of_a_paused_program_is_continued_when_the_program_exits() {
    alone(async {
        let (launcher, sink) = launcher();
        let control = Control::new();
        let folder = tempfile::tempdir().unwrap();
        let line = "(while [ ! -e go ]; do sleep 0.01; done; echo late) & echo early; wait";
        let (command, env) = (Command::shell(line).in_directory(folder.path()), env());
        let started = launcher.start(&command, &env, &control).await.unwrap();
        let ControlFlow::Continue(running) = started else { panic!("it started") };
        let pid = running.pid();
        sink.until_stdout("early\n").await;
        let (outcome, ()) = tokio::join!(running.finish(&control), async {
            control.pause(true);
            let stat = Path::new("/proc").join(pid.to_string()).join("stat");
            while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
                sleep(GROUP_POLL).await;
            }
            nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        });
        assert_eq!(outcome, CommandOutcome::Exited(ChildStatus::Signal(nix::libc::SIGKILL)));
        std::fs::write(folder.path().join("go"), "").unwrap();
        sink.until_stdout("early\nlate\n").await;
    });
}

#[test]
fn what_was_stopped_before_its_start_is_not_started() {
    alone(async {
        let (launcher, sink) = launcher();
        let command = Command::shell("echo started");
        let control = Control::new();
        control.interrupt();
        let outcome = launcher.run(&command, &env(), &control).await.unwrap();
        assert_eq!(outcome, CommandOutcome::NotStarted);
        control.terminate();
        let outcome = launcher.run(&command, &env(), &control).await.unwrap();
        assert_eq!(outcome, CommandOutcome::Terminated(ChildStatus::Signal(nix::libc::SIGTERM)));
        assert_eq!(launcher.run(&command, &env(), &Control::new()).await.unwrap(), exited(0));
        assert_eq!(sink.stdout(), "started\n", "once");
    });
}

#[test]
fn output_of_helpers_is_bounded_and_their_failure_is_told() {
    alone(async {
        let (launcher, sink) = launcher();
        let control = Control::new();
        let long = Command::shell("seq 1 100000; echo trouble >&2");
        let collected = launcher.collect(&long, &env(), &control, 4).await.unwrap();
        let kept = (collected.outcome, &collected.stdout[..], &collected.stderr[..]);
        assert_eq!(kept, (exited(0), &b"1\n2\n"[..], &b"trou"[..]));
        let capture = async |line: &str, limit| launcher.capture(&Command::shell(line), &env(), &control, limit).await;
        assert_eq!(capture("echo answer", KILL_TIMEOUT * 30).await.unwrap(), b"answer\n");
        let failed = chain(&capture("echo trouble >&2; exit 3", KILL_TIMEOUT * 30).await.unwrap_err());
        assert!(failed.ends_with(" failed with 3: trouble"), "{failed}");
        let late = chain(&capture("exec sleep 60", Duration::from_millis(50)).await.unwrap_err());
        assert!(late.contains("it exceeded 50ms"), "{late}");
        assert_eq!(sink.bytes(Stream::Stdout).len() + sink.bytes(Stream::Stderr).len(), 0, "only the caller sees it");
    });
}

#[tokio::test]
async fn a_status_that_never_comes_counts_as_sigkill() {
    let (exit_tx, exit) = oneshot::channel();
    drop(exit_tx);
    let outcome = supervise(Pid::from_raw(i32::MAX), exit, &Control::new()).await;
    assert_eq!(outcome, CommandOutcome::Exited(ChildStatus::Signal(nix::libc::SIGKILL)));
}

#[test]
fn capture_error_texts_are_stable() {
    let command = "x -y".to_owned();
    let spawn = SpawnError::Refused { path: "x".into(), source: io::ErrorKind::OutOfMemory.into() };
    assert_eq!(chain(&CaptureError::from(spawn)), "cannot start x: out of memory");
    let failed = CaptureError::Failed { command: command.clone(), code: -9, stderr: "bad".to_owned() };
    assert_eq!(chain(&failed), "`x -y` failed with -9: bad");
    let terminated = CaptureError::Terminated { command, deadline: Duration::from_secs(20) };
    assert_eq!(chain(&terminated), "`x -y` was terminated: it exceeded 20s, or the runner is shutting down");
}
