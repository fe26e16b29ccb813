//! Layers of the chart.

use super::*;

const MIB: u64 = 1 << 20;
const SECOND_NS: u64 = 1_000_000_000;

fn sample(second: u64, usage_mib: u64, processes: &[(u32, u64)]) -> MemorySample {
    let process = |(pid, mib): &(u32, u64)| ProcessMemory {
        key: ProcessKey { pid: *pid, start_ticks: 1 },
        name: format!("p{pid}").into(),
        rss_bytes: mib * MIB,
    };
    MemorySample {
        at_boot_ns: second * SECOND_NS,
        usage_bytes: usage_mib * MIB,
        inactive_file_bytes: None,
        limit_bytes: Some(100 * MIB),
        processes: processes.iter().map(process).collect(),
    }
}

fn mib(layer: &Layer) -> Vec<u64> {
    layer.bytes.iter().map(|bytes| bytes / MIB).collect()
}

#[test]
fn layers_are_the_largest_processes_and_the_rest() {
    let samples = [sample(1, 40, &[(1, 20), (2, 10)]), sample(2, 80, &[]), sample(3, 60, &[(1, 30)])];
    let series = Series::of(&samples, 4 * SECOND_NS, None).unwrap();
    assert_eq!(series.times_s, [-3.0, -2.0, -1.0]);
    let labels: Vec<&str> = series.layers.iter().map(|layer| layer.label.as_str()).collect();
    assert_eq!(labels[..2], ["p1 (1)", "p2 (2)"]);
    assert!(series.layers[2].is_rest && series.layers.len() == 3);
    // Unread values are interpolated: a half, an eighth.
    let layers: Vec<Vec<u64>> = series.layers.iter().map(mib).collect();
    assert_eq!(layers, [vec![20, 40, 30], vec![10, 10, 0], vec![10, 30, 30]]);
    assert_eq!((series.readings(), series.layers[0].read_bytes[1]), (2, None));
}

#[test]
fn usage_at_the_kill_is_shown_where_it_is_of_the_sampled_cgroup() {
    let samples = [sample(1, 40, &[(1, 20)]), sample(2, 90, &[(1, 70)])];
    let at_kill = AtKill {
        limit_bytes: 100 * MIB,
        usage_bytes: 100 * MIB,
        processes: sample(0, 0, &[(1, 95), (2, 1)]).processes,
    };
    let series = Series::of(&samples, 3 * SECOND_NS, Some(at_kill.clone())).unwrap();
    assert_eq!((series.times_s[2], series.usage_bytes[2]), (0.0, 100 * MIB));
    assert_eq!(mib(&series.layers[0]), [20, 70, 95]);
    let other = AtKill { limit_bytes: 200 * MIB, ..at_kill };
    assert_eq!(Series::of(&samples, 3 * SECOND_NS, Some(other)).unwrap().times_s.len(), 2);
}

#[test]
fn one_sample_is_no_line() {
    assert_eq!(Series::of(&[], 1, None), None);
    assert_eq!(Series::of(&[sample(1, 40, &[])], SECOND_NS, None), None);
}

#[test]
fn stack_is_no_higher_than_what_is_in_use() {
    let samples = [sample(1, 40, &[(1, 30), (2, 30)]), sample(2, 50, &[(1, 60), (2, 60)])];
    let series = Series::of(&samples, 2 * SECOND_NS, None).unwrap();
    let layers: Vec<Vec<u64>> = series.layers.iter().map(mib).collect();
    assert_eq!(layers, [vec![20, 25], vec![20, 25], vec![0, 0]]);
    assert_eq!(series.layers[0].read_bytes, [Some(30 * MIB), Some(60 * MIB)]);
}

#[test]
fn unread_process_is_not_assumed_to_be_small() {
    let samples = [sample(1, 40, &[(1, 40)]), sample(2, 100, &[(1, 40), (2, 60)]), sample(3, 100, &[(1, 40)])];
    let series = Series::of(&samples, 3 * SECOND_NS, None).unwrap();
    let second = &series.layers[0];
    assert_eq!((second.label.as_str(), &second.read_bytes[..]), ("p2 (2)", &[None, Some(60 * MIB), Some(0)][..]));
    assert_eq!((mib(second), mib(&series.layers[1])), (vec![15, 60, 0], vec![25, 40, 40]));
}

#[test]
fn process_has_nothing_before_it_started() {
    let mut late = sample(3, 80, &[(1, 80)]);
    late.processes[0].key.start_ticks = 200;
    let series = Series::of(&[sample(1, 40, &[]), sample(2, 60, &[]), late], 3 * SECOND_NS, None).unwrap();
    assert_eq!((mib(&series.layers[0]), mib(&series.layers[1])), (vec![0, 60, 80], vec![40, 0, 0]));
}

#[test]
fn small_processes_are_merged_into_the_rest() {
    let many: Vec<(u32, u64)> = (1..=8).map(|pid| (pid, u64::from(pid) * 10)).collect();
    let samples = [sample(1, 1000, &many), sample(2, 1000, &[(9, 1)])];
    let series = Series::of(&samples, 2 * SECOND_NS, None).unwrap();
    let labels: Vec<&str> = series.layers.iter().map(|layer| layer.label.as_str()).collect();
    assert_eq!(labels[..5], ["p8 (8)", "p7 (7)", "p6 (6)", "p5 (5)", "p4 (4)"]);
}
