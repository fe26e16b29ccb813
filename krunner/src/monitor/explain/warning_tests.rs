//! When a warning comes, and whom it names.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a test's own figures"
)]

use super::*;

const MS: u64 = 1_000_000;
const LIMIT: u64 = 1000;

/// The times of warnings, in seconds, while the memory is as said, looked at every 100 ms.
fn warnings(seconds: u64, needed_at: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut rule = WarningRule::default();
    let mut trend = super::super::Trend::default();
    let mut warned = Vec::new();
    for step in 0..seconds * 10 {
        let at_s = step as f64 / 10.0;
        let now_ns = (1000 + step * 100) * MS;
        let needed = needed_at(at_s) as u64;
        trend.push(now_ns, needed);
        if rule.observe(now_ns, needed, LIMIT, trend.seconds_until(LIMIT)) {
            warned.push(at_s);
        }
    }
    warned
}

#[test]
fn growth_to_the_limit_triggers_a_warning_in_time() {
    for percent_per_s in [1.0, 2.0, 5.0, 10.0, 20.0, 30.0] {
        let end_s = 5.0 + 90.0 / percent_per_s;
        let warned = warnings(end_s as u64, |at_s| 100.0 + 10.0 * percent_per_s * (at_s - 5.0).max(0.0));
        assert_eq!(warned.len(), 1, "{percent_per_s} % per second: {warned:?}");
        assert!(end_s - warned[0] >= 1.0, "{percent_per_s} % per second: {} s before the end", end_s - warned[0]);
    }
}

#[test]
fn one_warning_per_episode() {
    assert_eq!(warnings(300, |_| 950.0), [0.0], "it stays full");
    assert_eq!(warnings(300, |at_s| 850.0 + 100.0 * (at_s % 60.0 / 60.0)).len(), 1, "it never becomes low");
    let warned = warnings(300, |at_s| if at_s % 50.0 < 40.0 { 950.0 } else { 500.0 });
    assert_eq!(warned, [0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
    let often = warnings(60, |at_s| if at_s % 6.0 < 3.0 { 950.0 } else { 500.0 });
    assert_eq!(often.len(), 2, "{often:?}: not more often than each 30 s");
}

#[test]
fn slow_or_small_growth_is_no_danger() {
    assert_eq!(warnings(60, |at_s| 100.0 + 10.0 * at_s), [] as [f64; 0], "1 % per second, to 70 %");
    assert_eq!(warnings(10, |at_s| (200.0 * at_s).min(300.0)), [] as [f64; 0], "fast, to 30 %");
}

fn sample(at_ms: u64, rss: &[(u32, u64, u64)]) -> MemorySample {
    let process = |(pid, start_ticks, rss_bytes): &(u32, u64, u64)| ProcessMemory {
        key: ProcessKey { pid: *pid, start_ticks: *start_ticks },
        name: "x".into(),
        rss_bytes: *rss_bytes,
    };
    let processes = rss.iter().map(process).collect();
    MemorySample { at_boot_ns: at_ms * MS, usage_bytes: 1, inactive_file_bytes: None, limit_bytes: None, processes }
}

fn fastest(samples: Vec<MemorySample>) -> Option<(u32, f64)> {
    let mut series = SampleSeries::default();
    for sample in samples {
        series.push(sample);
    }
    fastest_growing(&series).map(|growing| (growing.memory.key.pid, growing.rate_bytes_per_s))
}

#[test]
fn fastest_growing_process_is_named() {
    let samples =
        vec![sample(1000, &[(1, 1, 900), (2, 1, 10)]), sample(1500, &[]), sample(2000, &[(1, 1, 910), (2, 1, 210)])];
    assert_eq!(fastest(samples), Some((2, 200.0)));
}

#[test]
fn new_process_grows_from_zero() {
    let samples = vec![sample(10_000, &[(1, 1, 900)]), sample(11_000, &[(1, 1, 900), (2, 1050, 100)])];
    assert_eq!(fastest(samples), Some((2, 200.0)), "100 bytes in half a second");
    let old = vec![sample(10_000, &[(1, 1, 900)]), sample(11_000, &[(1, 1, 900), (2, 10, 100)])];
    assert_eq!(fastest(old), None, "it is not known how it grew");
}

#[test]
fn no_process_is_blamed_without_samples() {
    assert_eq!(fastest(vec![]), None);
    assert_eq!(fastest(vec![sample(10_000, &[(1, 1, 900)])]), None);
    assert_eq!(fastest(vec![sample(10_000, &[(1, 1, 900)]), sample(11_000, &[(1, 1, 800)])]), None);
}

#[test]
fn slowly_growing_process_is_not_blamed() {
    let key = ProcessKey { pid: 7, start_ticks: 1 };
    let memory = ProcessMemory { key, name: "idle".into(), rss_bytes: 25 << 20 };
    let growing = GrowingProcess { memory, rate_bytes_per_s: 61_000.0 };
    assert!(!growing.explains(Some(19e6)) && growing.explains(Some(1e5)) && growing.explains(None));
}
