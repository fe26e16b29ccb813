//! What is kept of many samples.

use super::*;
use crate::monitor::model::process::ProcessKey;

fn sample(at_ms: u64, processes: usize) -> MemorySample {
    let process =
        |pid| ProcessMemory { key: ProcessKey { pid, start_ticks: 1 }, name: "sixteen-bytes-xx".into(), rss_bytes: 1 };
    MemorySample {
        at_boot_ns: at_ms * MS,
        usage_bytes: at_ms,
        inactive_file_bytes: None,
        limit_bytes: Some(1 << 30),
        processes: (0..u32::try_from(processes).unwrap()).map(process).collect(),
    }
}

fn ages_ms(series: &SampleSeries) -> Vec<u64> {
    let now_ns = series.last().unwrap().at_boot_ns;
    series.iter().map(|sample| (now_ns - sample.at_boot_ns) / MS).collect()
}

#[test]
fn dense_samples_are_thinned_as_they_grow_old() {
    let mut series = SampleSeries::default();
    for step in 0..4000 {
        series.push(sample(1000 + step * 50, 0));
    }
    let ages = ages_ms(&series);
    let within = |from: u64, to: u64| ages.iter().filter(|age| (from..to).contains(*age)).count();
    assert_eq!(within(0, 3000), 60, "all of the last 3 s");
    assert!((44..=70).contains(&within(3000, 15_000)), "{ages:?}");
    assert!((44..=60).contains(&within(15_000, 70_000)), "{ages:?}");
    assert!(ages[0] >= 59_000 && ages[0] <= 61_000, "a minute: {}", ages[0]);
    assert!(series.bytes <= MAX_BYTES);
}

#[test]
fn bytes_are_bounded_whatever_comes() {
    let mut series = SampleSeries::default();
    for step in 0..10_000 {
        series.push(sample(1 + step, MemorySample::MAX_PROCESSES));
        assert!(series.bytes <= MAX_BYTES);
    }
    assert_eq!(series.bytes, series.iter().map(size_bytes).sum::<usize>());
    assert!(series.samples.len() > 150, "{}", series.samples.len());
}

#[test]
fn full_minute_with_processes_fits() {
    let mut series = SampleSeries::default();
    for step in 0..2000 {
        series.push(sample(1000 + step * 50, MemorySample::MAX_PROCESSES));
    }
    assert!(ages_ms(&series)[0] >= 59_000, "{:?}", ages_ms(&series));
}

#[test]
fn report_has_the_end_in_detail_and_a_minute_in_all() {
    let mut series = SampleSeries::default();
    for step in 0..2000 {
        series.push(sample(1000 + step * 50, 1));
    }
    let end_ns = series.last().unwrap().at_boot_ns;
    let told = series.before(end_ns);
    assert!(told.len() <= 64, "{}", told.len());
    assert!(end_ns - told[0].at_boot_ns >= 57_000 * MS);
    assert_eq!(told.last(), series.last());
    assert!(told.windows(2).all(|pair| pair[0].at_boot_ns < pair[1].at_boot_ns));
    let before = series.before(end_ns - 1000 * MS);
    assert!(before.iter().all(|sample| sample.at_boot_ns <= end_ns - 1000 * MS), "nothing of what came later");
}

#[test]
fn time_does_not_go_back() {
    let mut series = SampleSeries::default();
    series.push(sample(10, 0));
    series.push(sample(10, 0));
    series.push(sample(9, 0));
    assert_eq!(series.samples.len(), 1);
    series.clear();
    assert_eq!((series.samples.len(), series.bytes), (0, 0));
}
