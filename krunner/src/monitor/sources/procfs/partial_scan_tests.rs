//! Which processes are tracked, and for how long.

use super::super::tests::{Fake, SHELL, Tree};
use super::*;
use crate::monitor::model::process::ExitKind;

/// A tree whose last pid that was given out is that.
fn tree(last_pid: u32) -> Tree {
    let tree = Tree::new();
    gave_out(&tree, last_pid);
    tree
}

fn gave_out(tree: &Tree, last_pid: u32) {
    tree.put("loadavg", format!("0.00 0.01 0.05 1/100 {last_pid}\n").as_bytes());
}

fn attentive(tree: &Tree) -> Scanner {
    let mut scanner = tree.scanner();
    scanner.set_tracking(true);
    scanner
}

fn leave(tree: &Tree, pid: u32) {
    std::fs::remove_dir_all(tree.path(&pid.to_string())).unwrap();
}

/// Pids seen, and those missed.
fn seen(scanner: &mut Scanner) -> (Vec<u32>, Vec<u32>) {
    let partial_scan = scanner.partial_scan().unwrap();
    let pids = partial_scan.processes.iter().map(|observed| observed.key.pid).collect();
    (pids, partial_scan.absent.iter().map(|key| key.pid).collect())
}

fn scan(scanner: &mut Scanner) {
    let snapshot = scanner.scan().unwrap();
    scanner.track_growing(&snapshot.processes);
}

#[test]
fn new_processes_are_read_and_reported_absent_after_exit() {
    let tree = tree(40);
    tree.process(40, 1, SHELL, b"old\0");
    let mut scanner = attentive(&tree);
    tree.process(41, 40, SHELL, b"new\0");
    tree.process(42, 40, Fake { exit_signal: -1, ..SHELL }, b"a thread\0");
    gave_out(&tree, 42);
    assert_eq!(seen(&mut scanner), (vec![40, 41], vec![]));
    leave(&tree, 41);
    assert_eq!(seen(&mut scanner), (vec![40], vec![41]));
    assert_eq!(seen(&mut scanner), (vec![40], vec![]), "missed once");
}

#[test]
fn processes_started_between_the_first_scan_and_tracking_are_read() {
    let tree = tree(40);
    tree.process(40, 1, SHELL, b"old\0");
    let mut scanner = tree.scanner();
    scan(&mut scanner);
    (41..=43).for_each(|pid| tree.process(pid, 1, SHELL, b"new\0"));
    gave_out(&tree, 43);
    scanner.set_tracking(true);
    assert_eq!(seen(&mut scanner), (vec![41, 42, 43], vec![]));
    gave_out(&tree, 44);
    tree.process(44, 1, SHELL, b"newer\0");
    assert_eq!(seen(&mut scanner), (vec![41, 42, 43, 44], vec![]));
}

#[test]
fn a_pid_in_other_hands_is_another_process() {
    let tree = tree(40);
    let mut scanner = attentive(&tree);
    tree.process(41, 1, SHELL, b"first\0");
    gave_out(&tree, 41);
    assert_eq!(seen(&mut scanner), (vec![41], vec![]));
    leave(&tree, 41);
    tree.process(41, 1, Fake { start_ticks: 51, ..SHELL }, b"second\0");
    assert_eq!(seen(&mut scanner), (vec![41], vec![41]));
}

#[test]
fn one_that_is_killed_is_seen_to_be_and_then_left_alone() {
    let tree = tree(40);
    let mut scanner = attentive(&tree);
    tree.process(41, 1, SHELL, b"hog\0");
    gave_out(&tree, 41);
    assert_eq!(seen(&mut scanner).0, [41]);
    tree.process(41, 1, Fake { state: 'Z', vm_bytes: 0, rss_pages: 0, exit_code: 9, ..SHELL }, b"");
    let partial_scan = scanner.partial_scan().unwrap();
    let [zombie] = &partial_scan.processes[..] else { panic!("{partial_scan:?}") };
    assert_eq!((zombie.end, zombie.is_zombie), (Some(ExitKind::Killed), true));
    // Another one has the last pid now.
    gave_out(&tree, 43);
    tree.process(43, 1, SHELL, b"x\0");
    seen(&mut scanner);
    assert_eq!(seen(&mut scanner), (vec![43], vec![]));
}

#[test]
fn idle_processes_are_tracked_again_when_they_grow() {
    let tree = tree(40);
    let mut scanner = attentive(&tree);
    tree.process(41, 1, SHELL, b"quiet\0");
    gave_out(&tree, 43);
    (0..=IDLE_PARTIAL_SCANS).for_each(|_| _ = seen(&mut scanner));
    assert_eq!(seen(&mut scanner), (vec![], vec![]));
    scan(&mut scanner);
    assert_eq!(seen(&mut scanner), (vec![], vec![]), "it is as it was");
    let page_bytes = i64::try_from(scanner.page_bytes).unwrap();
    let pages = i64::try_from(GROWN_BYTES).unwrap() / page_bytes + 2;
    tree.process(41, 1, Fake { rss_pages: pages, ..SHELL }, b"quiet\0");
    scan(&mut scanner);
    assert_eq!(seen(&mut scanner), (vec![41], vec![]));
}

#[test]
fn new_processes_are_found_after_a_pid_wraparound() {
    let tree = tree(32_000);
    tree.process(300, 1, SHELL, b"old\0");
    let mut scanner = attentive(&tree);
    scan(&mut scanner);
    gave_out(&tree, 301);
    tree.process(301, 1, SHELL, b"new\0");
    assert_eq!(seen(&mut scanner), (vec![301], vec![]));
    gave_out(&tree, 301 + 10 * TRIED);
    tree.process(1500, 1, SHELL, b"among many\0");
    assert!(seen(&mut scanner).0.contains(&1500));
}

#[test]
fn the_view_is_bounded_and_the_latest_are_kept() {
    let tree = tree(40);
    let mut scanner = attentive(&tree);
    let last = 40 + u32::try_from(MAX_TRACKED).unwrap() + 10;
    (41..=last).for_each(|pid| tree.process(pid, 1, SHELL, b"x\0"));
    gave_out(&tree, last);
    seen(&mut scanner);
    let (again, _) = seen(&mut scanner);
    assert_eq!((again.len(), again.last()), (MAX_TRACKED, Some(&last)));
}

#[test]
fn without_tracking_no_process_is_read() {
    let tree = tree(40);
    let mut scanner = tree.scanner();
    tree.process(41, 1, SHELL, b"x\0");
    gave_out(&tree, 41);
    assert_eq!(seen(&mut scanner), (vec![], vec![]));
    scanner.set_tracking(true);
    scanner.set_tracking(false);
    assert_eq!(seen(&mut scanner), (vec![], vec![]));
}
