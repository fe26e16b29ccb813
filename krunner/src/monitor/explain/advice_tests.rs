//! Lower bounds and remedies of made-up kills.

use super::*;
use crate::monitor::explain::TreeUsage;
use crate::monitor::model::MemorySample;
use crate::monitor::model::process::ProcessKey;

const MIB: u64 = 1 << 20;

fn limit(scope: LimitScope) -> LimitHit {
    LimitHit {
        scope,
        kind: LimitKind::Memory,
        path: None,
        limit_bytes: Some(256 * MIB),
        usage_bytes: Some(256 * MIB),
        is_trigger_outside: None,
        is_exact: true,
    }
}

fn growth(shape: Option<GrowthShape>) -> Growth {
    let sample = MemorySample {
        at_boot_ns: 1,
        usage_bytes: 250 * MIB,
        inactive_file_bytes: None,
        limit_bytes: Some(256 * MIB),
        processes: Vec::new(),
    };
    Growth { shape, rate_bytes_per_s: None, duration_s: None, samples: vec![sample] }
}

fn usage() -> MemoryUsage {
    MemoryUsage { total_bytes: 256 * MIB, anon_bytes: Some(250 * MIB), ..MemoryUsage::default() }
}

#[test]
fn what_is_unknown_gives_no_advice() {
    assert_eq!(Advice::of(None, None, None), None);
    assert_eq!(Advice::of(None, None, Some(&Growth { samples: Vec::new(), ..growth(None) })), None);
}

#[test]
fn lower_bound_is_the_limit_plus_a_request() {
    let advice = Advice::of(Some(&limit(LimitScope::Container)), Some(&usage()), Some(&growth(None))).unwrap();
    assert_eq!((advice.at_least_bytes, &*advice.reason), (Some(256 * MIB), "256m in use plus the failed request"));
    assert_eq!(advice.remedies, [Remedy::RaiseLimit]);
    let by_samples = Advice::of(None, None, Some(&growth(Some(GrowthShape::Step)))).unwrap();
    assert_eq!(by_samples.at_least_bytes, Some(256 * MIB), "the limit was reached");
    assert_eq!(by_samples.remedies, [Remedy::RaiseLimit, Remedy::MemoryHigh]);
}

#[test]
fn swap_in_use_is_needed_too() {
    let usage = MemoryUsage { swap_bytes: Some(54 * MIB - 1), ..usage() };
    let advice = Advice::of(Some(&limit(LimitScope::Container)), Some(&usage), None).unwrap();
    assert_eq!(advice.at_least_bytes, Some(310 * MIB - 1));
    assert_eq!(advice.reason, "256m in use, 54m in swap, plus the failed request");
    let both = LimitHit { kind: LimitKind::MemoryAndSwap, ..limit(LimitScope::Container) };
    assert_eq!(Advice::of(Some(&both), Some(&usage), None).unwrap().at_least_bytes, Some(256 * MIB), "swap is within");
}

#[test]
fn leak_never_has_enough() {
    let advice =
        Advice::of(Some(&limit(LimitScope::Container)), Some(&usage()), Some(&growth(Some(GrowthShape::Leak))));
    let advice = advice.unwrap();
    assert_eq!((advice.at_least_bytes, &*advice.reason), (None, "usage was growing steadily"));
    assert_eq!(advice.remedies, [Remedy::FindLeak, Remedy::MemoryHigh, Remedy::RaiseLimit]);
}

#[test]
fn files_in_memory_belong_on_disk() {
    let usage = MemoryUsage { shmem_bytes: Some(200 * MIB), ..usage() };
    let advice = Advice::of(Some(&limit(LimitScope::Container)), Some(&usage), None).unwrap();
    assert_eq!(advice.remedies, [Remedy::FilesOnDisk, Remedy::RaiseLimit]);
}

#[test]
fn many_workers_are_too_many() {
    let key = ProcessKey { pid: 1, start_ticks: 1 };
    let tree = |descendants| TreeUsage { key, name: "train.py".into(), descendants, rss_bytes: 210 * MIB };
    let advised = |descendants| {
        let usage = MemoryUsage { trees: vec![tree(descendants)], ..usage() };
        Advice::of(None, Some(&usage), None).unwrap().remedies
    };
    assert_eq!(advised(8), [Remedy::FewerWorkers, Remedy::RaiseLimit]);
    assert_eq!(advised(1), [Remedy::RaiseLimit]);
}

#[test]
fn limits_that_are_not_ours_have_remedies_of_their_own() {
    let burst = growth(Some(GrowthShape::Burst));
    let above = Advice::of(Some(&limit(LimitScope::Above)), Some(&usage()), Some(&burst)).unwrap();
    assert_eq!(above.remedies, [Remedy::RaiseLimitAbove, Remedy::MemoryHigh]);
    let machine = Advice::of(Some(&limit(LimitScope::Machine)), Some(&usage()), Some(&burst)).unwrap();
    assert_eq!(machine.at_least_bytes, None);
    assert_eq!(machine.remedies, [Remedy::RelieveMachine, Remedy::MemoryHigh]);
    let beside = Advice::of(Some(&limit(LimitScope::Beside)), Some(&usage()), None).unwrap();
    assert_eq!((beside.at_least_bytes, beside.remedies), (Some(256 * MIB), vec![Remedy::RaiseLimitBeside]));
    let unknown = Advice::of(Some(&limit(LimitScope::Unknown)), None, None).unwrap();
    assert_eq!((unknown.at_least_bytes, unknown.remedies), (Some(256 * MIB), vec![Remedy::RaiseLimit]));
}

/// The container's own limit is in the samples, and says nothing about the one that was reached.
#[test]
fn unread_limit_gives_no_bound() {
    let unread = |scope| LimitHit { limit_bytes: None, usage_bytes: None, is_exact: false, ..limit(scope) };
    let advised = |scope| Advice::of(Some(&unread(scope)), None, Some(&growth(None))).unwrap();
    let outside = advised(LimitScope::Outside);
    assert_eq!((outside.at_least_bytes, &*outside.reason), (None, "the limit that was reached is not visible"));
    assert_eq!(outside.remedies, [Remedy::RaiseLimitAbove, Remedy::RelieveMachine]);
    for scope in [LimitScope::Above, LimitScope::Inner, LimitScope::Beside] {
        let advice = advised(scope);
        assert_eq!((advice.at_least_bytes, &*advice.reason), (None, "the size of that limit is not visible"));
    }
    assert_eq!(advised(LimitScope::Container).at_least_bytes, Some(256 * MIB), "the watched cgroup's");
}
