//! Titles written over arguments.

use super::super::tests::{Fake, SHELL, Tree, one};
use super::*;

/// Bytes of a page of the fake trees, whatever it is here.
fn pages(scanner: &Scanner, bytes: u64) -> i64 {
    i64::try_from(bytes / scanner.page_bytes).unwrap()
}

/// Reads process 42 as a partial scan does.
fn read(scanner: &mut Scanner) -> ProcessSample {
    scanner.read_process(42, 0).unwrap().0
}

fn shown(observed: &ProcessSample) -> (&[u8], Option<&[u8]>) {
    (&observed.cmdline.bytes, observed.first_cmdline.as_ref().map(|first| &first.bytes[..]))
}

#[test]
fn title_of_a_growing_process_is_read_again_and_the_original_kept() {
    let tree = Tree::new();
    let mut scanner = tree.scanner();
    let small = Fake { rss_pages: pages(&scanner, 8 << 20), ..SHELL };
    tree.process(42, 7, small, b"postgres\0-D\0data\0");
    assert_eq!(shown(&read(&mut scanner)), (&b"postgres\0-D\0data\0"[..], None));
    tree.process(42, 7, small, b"postgres: writer\0");
    assert_eq!(shown(&read(&mut scanner)).0, b"postgres\0-D\0data\0", "it does not grow");
    let mut grown = Fake { rss_pages: pages(&scanner, 10 << 20), ..small };
    for (title, bytes) in [(&b"postgres: writer\0"[..], 10 << 20), (&b"postgres: SELECT\0"[..], 20 << 20)] {
        grown.rss_pages = pages(&scanner, bytes);
        tree.process(42, 7, grown, title);
        assert_eq!(shown(&read(&mut scanner)), (title, Some(&b"postgres\0-D\0data\0"[..])));
    }
    // An exec begins anew.
    tree.process(42, 7, Fake { arg_start: 900, ..grown }, b"psql\0");
    assert_eq!(shown(&read(&mut scanner)), (&b"psql\0"[..], None));
}

#[test]
fn one_that_is_being_killed_is_not_read_again() {
    let tree = Tree::new();
    let mut scanner = tree.scanner();
    tree.process(42, 7, SHELL, b"before\0");
    read(&mut scanner);
    let leaving = Fake { rss_pages: pages(&scanner, 1 << 30), pending: 1 << 8, ..SHELL };
    tree.process(42, 7, leaving, b"after\0");
    assert_eq!(shown(&read(&mut scanner)).0, b"before\0");
    assert_eq!(shown(&one(&mut scanner)).0, b"before\0", "by a scan neither");
}

#[test]
fn a_scan_reads_the_titles_of_the_largest() {
    let tree = Tree::new();
    let mut scanner = tree.scanner();
    let count = u32::try_from(LARGEST_READ).unwrap() + 4;
    let size = |pid: u32| Fake { rss_pages: i64::from(pid), ..SHELL };
    (1..=count).for_each(|pid| tree.process(pid, 0, size(pid), b"first\0"));
    scanner.scan().unwrap();
    (1..=count).for_each(|pid| tree.process(pid, 0, size(pid), b"title\0"));
    for _ in 0..2 {
        let processes = scanner.scan().unwrap().processes;
        for observed in &processes {
            let is_large = observed.key.pid > 4;
            let expected = if is_large { (&b"title\0"[..], Some(&b"first\0"[..])) } else { (&b"first\0"[..], None) };
            assert_eq!(shown(observed), expected, "{}", observed.key.pid);
        }
    }
    let kept: usize = scanner.remembered.values().map(|known| kept_bytes(&known.observed)).sum();
    assert_eq!(scanner.cmdline_bytes, kept);
}

#[test]
fn growth_is_relative_to_the_size() {
    const MIB: u64 = 1 << 20;
    assert!(!has_grown(0, MIB - 1) && has_grown(0, MIB));
    assert!(!has_grown(100 * MIB, 124 * MIB) && has_grown(100 * MIB, 125 * MIB));
    assert!(!has_grown(u64::MAX, u64::MAX - 1));
}
