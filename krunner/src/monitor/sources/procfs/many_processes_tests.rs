//! Many processes, one of them killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::tests::{Fake, SHELL, Tree};
use super::*;
use crate::monitor::model::process::ExitKind;

fn many() -> u32 {
    u32::try_from(IDLE_READS).unwrap() + 200
}

/// A host with many processes, and a scanner that has read all of them once.
fn host_with_many() -> (Tree, Scanner) {
    let tree = Tree::new();
    (1..=many()).for_each(|pid| put(&tree, pid, 1));
    tree.put("loadavg", format!("0.00 0.01 0.05 1/100 {}\n", many()).as_bytes());
    let mut scanner = tree.scanner();
    scanner.set_tracking(true);
    let snapshot = scanner.scan().unwrap();
    scanner.track_growing(&snapshot.processes);
    (tree, scanner)
}

fn put(tree: &Tree, pid: u32, rss_pages: i64) {
    tree.process(pid, 1, Fake { rss_pages, vm_bytes: 1 << 30, ..SHELL }, b"x\0");
}

fn pids(partial_scan: &PartialScan) -> Vec<u32> {
    partial_scan.processes.iter().map(|observed| observed.key.pid).collect()
}

#[test]
fn a_large_one_that_is_gone_is_missed_without_a_listing() {
    let (tree, mut scanner) = host_with_many();
    put(&tree, 55, 5000);
    scanner.scan().unwrap();
    for pid in [55, 300] {
        std::fs::remove_dir_all(tree.path(&pid.to_string())).unwrap();
    }
    let partial_scan = scanner.find_killed().unwrap();
    let absent: Vec<u32> = partial_scan.absent.iter().map(|key| key.pid).collect();
    assert_eq!((absent, partial_scan.is_listed), (vec![55], true), "the small one comes with the next scan");
}

#[test]
fn exited_processes_are_found_without_reading_the_others() {
    let (tree, mut scanner) = host_with_many();
    for pid in [7, 300] {
        std::fs::remove_dir_all(tree.path(&pid.to_string())).unwrap();
    }
    let partial_scan = scanner.find_killed().unwrap();
    let mut absent: Vec<u32> = partial_scan.absent.iter().map(|key| key.pid).collect();
    absent.sort_unstable();
    assert_eq!((absent, partial_scan.is_listed), (vec![7, 300], true));
    assert!(partial_scan.processes.len() <= LARGE + 2, "{}", partial_scan.processes.len());
}

#[test]
fn a_large_one_that_died_and_is_still_there_is_seen() {
    let (tree, mut scanner) = host_with_many();
    put(&tree, 55, 5000);
    scanner.scan().unwrap();
    let dead = Fake { state: 'Z', vm_bytes: 0, rss_pages: 0, exit_code: 9, ..SHELL };
    tree.process(55, 1, dead, b"");
    let partial_scan = scanner.find_killed().unwrap();
    let found = partial_scan.processes.iter().find(|observed| observed.key.pid == 55).expect("it is large");
    assert_eq!(found.end, Some(ExitKind::Killed));
}

#[test]
fn one_that_begins_to_grow_late_comes_into_view() {
    let (tree, mut scanner) = host_with_many();
    put(&tree, 55, 5000);
    let rounds = scanner.listed.len().div_ceil(SWEPT);
    let seen = (0..rounds).filter(|_| pids(&scanner.partial_scan().unwrap()).contains(&55)).count();
    assert!(seen >= 1);
    put(&tree, 55, 9000);
    assert!(pids(&scanner.partial_scan().unwrap()).contains(&55), "it is in view now");
}

#[test]
fn newcomers_bring_their_ancestors() {
    let (tree, mut scanner) = host_with_many();
    tree.process(9001, 9000, SHELL, b"child\0");
    tree.process(9000, 77, SHELL, b"parent\0");
    let partial_scan = scanner.find_killed().unwrap();
    let pids = pids(&partial_scan);
    let place = |pid| pids.iter().position(|it| *it == pid);
    assert!(place(77).is_some() && place(77) < place(9000), "{pids:?}");
    assert!(place(9000) < place(9001), "{pids:?}");
}

#[test]
fn a_scan_ends_early_for_something_urgent() {
    let (_tree, scanner) = host_with_many();
    let is_urgent = Arc::new(AtomicBool::new(true));
    let mut scanner = scanner.interrupted_by(Arc::clone(&is_urgent));
    assert_eq!(scanner.scan().unwrap_err().kind(), io::ErrorKind::Interrupted);
    is_urgent.store(false, Ordering::Relaxed);
    assert_eq!(scanner.scan().unwrap().processes.len(), many() as usize);
}
