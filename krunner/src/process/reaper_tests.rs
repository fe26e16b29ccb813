//! Tests of the reaper, each in a process of its own.

use super::*;
use crate::process::testing::alone;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// What the observer saw of an exit.
#[derive(Debug, PartialEq, Eq)]
struct Exit {
    pid: Pid,
    signal: Option<i32>,
    /// Whether `/proc` still showed the process, as a zombie.
    is_zombie: bool,
}

/// A reaper that reports what its observer sees.
fn reaper() -> (Reaper, mpsc::UnboundedReceiver<Exit>) {
    let (exits_tx, exits) = mpsc::unbounded_channel();
    let observer = move |pid: Pid, signal| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let _ = exits_tx.send(Exit { pid, signal, is_zombie: stat.contains(") Z ") });
    };
    (Reaper::start(&TaskGroup::new(), Box::new(observer), OomScorePolicy::Unchanged).unwrap(), exits)
}

fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

async fn until_gone(pid: Pid) {
    while kill(pid, None) != Err(Errno::ESRCH) {
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn each_status_goes_to_the_task_that_spawned_the_process() {
    alone(async {
        let (reaper, _exits) = reaper();
        let commands = ["exit 3", "kill -9 $$", "exit 0", "kill -40 $$"];
        let spawned: Vec<_> = commands.iter().map(|line| reaper.spawn(&mut shell(line), None).unwrap()).collect();
        let mut statuses = Vec::new();
        for (_, _, exit) in spawned {
            statuses.push(exit.await.unwrap());
        }
        let expected = [ChildStatus::Code(3), ChildStatus::Signal(9), ChildStatus::Code(0), ChildStatus::Signal(40)];
        assert_eq!(statuses, expected);
        assert!(reaper.lock().waiters.is_empty());
    });
}

#[test]
fn an_orphan_is_adopted_and_reaped() {
    alone(async {
        let (reaper, mut exits) = reaper();
        let (mut child, parent, exit) = reaper.spawn(&mut shell("sleep 60 > /dev/null & echo $!"), None).unwrap();
        assert_eq!(exit.await.unwrap(), ChildStatus::Code(0));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
        let orphan = Pid::from_raw(text.trim_end().parse().unwrap());
        assert_eq!(exits.recv().await, Some(Exit { pid: parent, signal: None, is_zombie: true }));

        kill(orphan, Signal::SIGTERM).unwrap();

        assert_eq!(exits.recv().await, Some(Exit { pid: orphan, signal: Some(15), is_zombie: true }));
        until_gone(orphan).await;
        let (_, _, exit) = reaper.spawn(&mut shell("exit 4"), None).unwrap();
        assert_eq!(exit.await.unwrap(), ChildStatus::Code(4), "an unknown pid does not stop the reaper");
    });
}

#[test]
fn a_child_is_reaped_when_no_task_waits_for_it_any_more() {
    alone(async {
        let (reaper, mut exits) = reaper();
        let (_, pid, exit) = reaper.spawn(&mut shell("exit 0"), None).unwrap();
        drop(exit);
        assert_eq!(exits.recv().await.unwrap().pid, pid);
        until_gone(pid).await;
    });
}

#[test]
fn a_burst_of_exits_behind_one_signal_is_reaped_whole() {
    const CHILDREN: usize = 50;
    alone(async {
        let (reaper, mut exits) = reaper();
        // No reaping here before the first await, and SIGCHLD does not queue (signal(7)).
        let spawned: Vec<_> = (0..CHILDREN).map(|_| reaper.spawn(&mut shell("exit 7"), None).unwrap()).collect();
        std::thread::sleep(Duration::from_millis(300));
        for (_, pid, exit) in spawned {
            assert_eq!(exit.await.unwrap(), ChildStatus::Code(7));
            until_gone(pid).await;
        }
        for _ in 0..CHILDREN {
            assert_eq!(exits.recv().await.unwrap().signal, None);
        }
    });
}

#[test]
fn a_program_that_does_not_start_leaves_no_waiter() {
    alone(async {
        let (reaper, _exits) = reaper();
        assert!(reaper.spawn(&mut Command::new("/nowhere/program"), None).is_err());
        assert!(reaper.lock().waiters.is_empty());
    });
}
