//! Snapshots of complete report texts: a change of wording shows as a diff of `snapshots/*.snap`.
//!
//! `INSTA_UPDATE=always cargo test -p krunner --lib snapshots` rewrites them.

use super::*;
use crate::monitor::explain::{Growth, KernelMemory, LimitHit, LimitScope, MemoryUsage, TreeUsage};
use crate::monitor::model::mount::MountUsage;
use crate::monitor::model::{LimitKind, MemorySample};

fn assert_snapshot(name: &str, text: &impl ToString) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text.to_string());
    });
}

fn limit(scope: LimitScope) -> LimitHit {
    LimitHit {
        scope,
        kind: LimitKind::Memory,
        path: Some("/docker/abc".into()),
        limit_bytes: Some(GIB),
        usage_bytes: Some(GIB),
        is_trigger_outside: Some(false),
        is_exact: true,
    }
}

fn usage() -> MemoryUsage {
    let workers = ProcessKey { pid: 20, start_ticks: 1000 };
    MemoryUsage {
        total_bytes: GIB,
        anon_bytes: Some(640 * MIB),
        shmem_bytes: Some(300 * MIB),
        page_cache_bytes: Some(12 * MIB),
        kernel: Some(KernelMemory { total_bytes: 70 * MIB, ..KernelMemory::default() }),
        swap_bytes: Some(5 * MIB),
        unexplained_bytes: 2 * MIB,
        mounts: vec![MountUsage { path: "/dev/shm".into(), used_bytes: 280 * MIB, size_bytes: Some(512 * MIB) }],
        trees: vec![TreeUsage { key: workers, name: "train.py".into(), descendants: 8, rss_bytes: 620 * MIB }],
        ..MemoryUsage::default()
    }
}

/// A plateau for 5 s, then growth to the limit within 2 s.
fn growth() -> Vec<MemorySample> {
    let usage_mib = (0..20).map(|_| 200).chain((0..=8).map(|step| 200 + step * 103));
    let sample = |(index, mib): (u64, u64)| MemorySample {
        at_boot_ns: NOW_NS - (28 - index) * 250_000_000,
        usage_bytes: mib * MIB,
        inactive_file_bytes: None,
        limit_bytes: Some(GIB),
        processes: Vec::new(),
    };
    (0..).zip(usage_mib).map(sample).collect()
}

#[test]
fn kill_without_an_explanation() {
    assert_snapshot("kill_without_an_explanation", &report_of(&victim(300, 2000), &history(Vec::new())));
}

#[test]
fn group_kill_with_an_explanation() {
    let history = history(Vec::new());
    let with = Some(ProcessKey { pid: 300, start_ticks: 2000 });
    let members =
        [301, 302].map(|pid| Victim { confidence: Confidence::CoVictim, co_victim_of: with, ..victim(pid, 2500) });
    let growth = Some(Growth::of(growth()));
    let explanation =
        Explanation { limit: Some(limit(LimitScope::Container)), usage: Some(usage()), growth, advice: None };
    let context = KillContext { explanation: explanation.with_advice(), ..context(&history) };
    let report = OomReport::of_victim(&victim(300, 2000), &members, &history, context);
    assert_snapshot("group_kill_with_an_explanation", &report);
}

#[test]
fn kill_that_was_inferred() {
    let history = history(Vec::new());
    let process = history.find(ProcessKey { pid: 300, start_ticks: 2000 }).unwrap();
    let candidate = Candidate { process, end: None, end_ns: None, gone_by_ns: None, alive_ns: None, grown_ns: 0 };
    let limit = LimitHit { usage_bytes: None, is_trigger_outside: None, is_exact: false, ..limit(LimitScope::Above) };
    let explanation = Explanation { limit: Some(limit), ..Explanation::default() };
    let context = KillContext { explanation: explanation.with_advice(), ..context(&history) };
    let report = OomReport::of_candidate(Confidence::Inferred, &candidate, 4000 * TICK_NS, &history, context);
    assert_snapshot("kill_that_was_inferred", &report);
}

#[test]
fn kill_without_memory_on_the_machine() {
    let history = history(Vec::new());
    let machine = LimitHit { path: None, ..limit(LimitScope::Machine) };
    let explanation = Explanation { limit: Some(machine), ..Explanation::default() };
    let context = KillContext { explanation: explanation.with_advice(), ..context(&history) };
    let report = OomReport::of_victim(&victim(300, 2000), &[], &history, context);
    assert_snapshot("kill_without_memory_on_the_machine", &report);
}

/// The terminal's line has a limit only where that is the one that was reached.
#[test]
fn limit_of_the_victims_cgroup_stands_for_no_other() {
    let history = history(Vec::new());
    let shown = |limit: Option<LimitHit>| {
        let explanation = Explanation { limit, ..Explanation::default() };
        let report =
            OomReport::of_victim(&victim(300, 2000), &[], &history, KillContext { explanation, ..context(&history) });
        assert!(report.cgroup.as_ref().is_some_and(|cgroup| cgroup.limit_bytes.is_some()));
        report.limit().is_some()
    };
    let unread = |scope| Some(LimitHit { limit_bytes: None, ..limit(scope) });
    assert!(shown(None) && shown(unread(LimitScope::Container)) && shown(Some(limit(LimitScope::Above))));
    for scope in [LimitScope::Outside, LimitScope::Above, LimitScope::Inner, LimitScope::Machine] {
        assert!(!shown(unread(scope)), "{scope:?}");
    }
}
