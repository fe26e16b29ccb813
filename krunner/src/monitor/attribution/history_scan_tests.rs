//! When processes ended, by what scans find.

use std::time::Duration;

use super::*;
use crate::monitor::model::process::ScanCost;

#[test]
fn process_dying_of_sigkill_is_a_candidate() {
    let mut history = begun();
    let dying = ProcessSample { end: Some(ExitKind::Killed), vm_bytes: 0, rss_bytes: 0, ..observed(SHELL, 1, 0) };
    let at_boot_ns = 2 * SECOND_NS;
    history.fold_partial_scan(&PartialScan {
        at_boot_ns,
        processes: vec![dying, observed(HOG, 10, 9)],
        absent: vec![INIT],
        ..PartialScan::default()
    });
    let mut candidates = history.candidates(at_boot_ns);
    candidates.sort_by_key(|candidate| candidate.process.key);
    let [init, shell] = &candidates[..] else { panic!("{candidates:?}") };
    assert_eq!((init.process.key, init.end, init.process.gone_at_boot_ns), (INIT, None, Some(at_boot_ns)));
    assert_eq!((shell.process.key, shell.end, shell.process.gone_at_boot_ns), (SHELL, Some(ExitKind::Killed), None));
    assert_eq!((shell.process.rss_bytes, shell.alive_ns), (7, Some(SECOND_NS)), "as it was before");
    assert_eq!(keys(&history.chain(HOG, u64::MAX)), [SHELL, INIT], "a newcomer has its parents");
}

/// A scan may be interrupted: the kill is counted after it began, and before it reads the victim.
#[test]
fn what_a_scan_finds_ended_was_so_at_its_end() {
    const TOOK: Duration = Duration::from_millis(80);
    let at_boot_ns = 2 * SECOND_NS;
    let counted_ns = at_boot_ns + 40_000_000;
    let pids = |history: &History| {
        let mut keys: Vec<_> = history.candidates(counted_ns).iter().map(|candidate| candidate.process.key).collect();
        keys.sort_unstable();
        keys
    };
    let dying = || ProcessSample { end: Some(ExitKind::Killed), ..observed(SHELL, 1, 7) };

    let mut partial = begun();
    let (processes, absent) = (vec![dying()], vec![INIT]);
    partial.fold_partial_scan(&PartialScan { at_boot_ns, took: TOOK, processes, absent, is_listed: false });
    assert_eq!(pids(&partial), [INIT, SHELL]);

    let whole = |vanished| {
        let mut history = begun();
        let cost = ScanCost { wall: TOOK, ..ScanCost::default() };
        let listed_boot_ns = at_boot_ns + 1_000_000;
        history.fold_snapshot(&Snapshot { listed_boot_ns, vanished, cost, ..snapshot(at_boot_ns, vec![dying()]) });
        pids(&history)
    };
    assert_eq!(whole(vec![INIT.pid]), [INIT, SHELL]);
    assert_eq!(whole(vec![]), [SHELL], "what was not listed was gone before the count");
}

#[test]
fn process_is_not_gone_before_it_was_last_seen() {
    let mut history = begun();
    let at_boot_ns = 5 * SECOND_NS;
    history.fold_partial_scan(&PartialScan {
        at_boot_ns,
        processes: vec![observed(HOG, 10, 9)],
        ..PartialScan::default()
    });
    history.mark_absent(HOG, 4 * SECOND_NS);
    assert_eq!(history.find(HOG).unwrap().gone_at_boot_ns, Some(at_boot_ns));
}
