//! Many processes, one of them killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::tests::{Fake, SHELL, Tree};
use super::*;
use crate::monitor::process::End;

fn many() -> u32 {
    u32::try_from(QUIET_READ).unwrap() + 200
}

/// So many that all of them have been read once, and whoever reads them.
fn crowd() -> (Tree, Scanner) {
    let tree = Tree::new();
    (1..=many()).for_each(|pid| put(&tree, pid, 1));
    tree.put("loadavg", format!("0.00 0.01 0.05 1/100 {}\n", many()).as_bytes());
    let mut scanner = tree.scanner();
    scanner.pay_attention(true);
    let snapshot = scanner.scan().unwrap();
    scanner.keep_in_view(&snapshot.processes);
    (tree, scanner)
}

fn put(tree: &Tree, pid: u32, rss_pages: i64) {
    tree.process(pid, 1, Fake { rss_pages, vm_bytes: 1 << 30, ..SHELL }, b"x\0");
}

fn pids(glance: &Glance) -> Vec<u32> {
    glance.processes.iter().map(|observed| observed.key.pid).collect()
}

#[test]
fn who_is_gone_is_missed_without_reading_those_that_are_there() {
    let (tree, mut scanner) = crowd();
    for pid in [7, 300] {
        std::fs::remove_dir_all(tree.path(&pid.to_string())).unwrap();
    }
    let glance = scanner.look_for_the_killed().unwrap();
    let mut absent: Vec<u32> = glance.absent.iter().map(|key| key.pid).collect();
    absent.sort_unstable();
    assert_eq!((absent, glance.is_listed), (vec![7, 300], true));
    assert!(glance.processes.len() <= LARGE + 2, "{}", glance.processes.len());
}

#[test]
fn a_large_one_that_died_and_is_still_there_is_seen() {
    let (tree, mut scanner) = crowd();
    put(&tree, 55, 5000);
    scanner.scan().unwrap();
    let dead = Fake { state: 'Z', vm_bytes: 0, rss_pages: 0, exit_code: 9, ..SHELL };
    tree.process(55, 1, dead, b"");
    let glance = scanner.look_for_the_killed().unwrap();
    let found = glance.processes.iter().find(|observed| observed.key.pid == 55).expect("it is large");
    assert_eq!(found.end, Some(End::Killed));
}

#[test]
fn one_that_begins_to_grow_late_comes_into_view() {
    let (tree, mut scanner) = crowd();
    put(&tree, 55, 5000);
    let rounds = scanner.listed.len().div_ceil(SWEPT);
    let seen = (0..rounds).filter(|_| pids(&scanner.glance().unwrap()).contains(&55)).count();
    assert!(seen >= 1);
    put(&tree, 55, 9000);
    assert!(pids(&scanner.glance().unwrap()).contains(&55), "it is in view now");
}

#[test]
fn newcomers_bring_their_ancestors() {
    let (tree, mut scanner) = crowd();
    tree.process(9001, 9000, SHELL, b"child\0");
    tree.process(9000, 77, SHELL, b"parent\0");
    let glance = scanner.look_for_the_killed().unwrap();
    let pids = pids(&glance);
    let place = |pid| pids.iter().position(|it| *it == pid);
    assert!(place(77).is_some() && place(77) < place(9000), "{pids:?}");
    assert!(place(9000) < place(9001), "{pids:?}");
}

#[test]
fn a_scan_ends_early_for_something_urgent() {
    let (_tree, scanner) = crowd();
    let is_urgent = Arc::new(AtomicBool::new(true));
    let mut scanner = scanner.interrupted_by(Arc::clone(&is_urgent));
    assert_eq!(scanner.scan().unwrap_err().kind(), io::ErrorKind::Interrupted);
    is_urgent.store(false, Ordering::Relaxed);
    assert_eq!(scanner.scan().unwrap().processes.len(), many() as usize);
}
