//! Synthetic series: what is a leak, a step, a burst, and what is no growth.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a test's own figures"
)]

use proptest::prelude::*;

use super::GrowthShape::{Burst, Leak, Step};
use super::*;

const MIB: f64 = 1_048_576.0;

/// The usage in MiB at these seconds, sampled as the monitor does: every 250 ms, and every 50 ms in the last 3 s.
fn grown(seconds: f64, mib_at: impl Fn(f64) -> f64) -> Growth {
    let mut samples = Vec::new();
    let mut at_s = 0.0;
    while at_s <= seconds {
        samples.push(sample(at_s, mib_at(at_s)));
        at_s += if at_s < seconds - 3.0 { 0.25 } else { 0.05 };
    }
    Growth::of(samples)
}

fn sample(at_s: f64, mib: f64) -> MemorySample {
    MemorySample {
        at_boot_ns: 1_000_000_000 + (at_s * NS_PER_S) as u64,
        usage_bytes: (mib * MIB) as u64,
        inactive_file_bytes: None,
        limit_bytes: Some(256 << 20),
        processes: Vec::new(),
    }
}

/// Noise that is the same in each run, from -1 to 1.
fn noise(at_s: f64) -> f64 {
    (at_s * 7919.0).sin()
}

fn assert_rate(growth: &Growth, mib_per_s: f64) {
    let rate = growth.rate_bytes_per_s.unwrap() / MIB;
    assert!((rate - mib_per_s).abs() <= 0.25 * mib_per_s, "{rate} MiB/s instead of {mib_per_s}");
}

#[test]
fn steady_growth_is_a_leak() {
    for seconds in [5.0, 10.0, 25.0, 60.0] {
        let growth = grown(seconds, |at_s| 10.0 + 246.0 * at_s / seconds);
        assert_eq!(growth.shape, Some(Leak), "{seconds} s");
        assert_rate(&growth, 246.0 / seconds);
        assert!(growth.duration_s.unwrap() > 0.9 * seconds);
    }
}

#[test]
fn leak_with_noise_is_a_leak() {
    let growth = grown(30.0, |at_s| 20.0 + 7.8 * at_s + 4.0 * noise(at_s));
    assert_eq!(growth.shape, Some(Leak));
    assert_rate(&growth, 7.8);
}

#[test]
fn leak_under_a_garbage_collector_is_a_leak() {
    // Collected every 2 s; what stays grows by 5 MiB a second.
    let growth = grown(40.0, |at_s| 30.0 + 5.0 * at_s + 20.0 * (at_s % 2.0));
    assert_eq!(growth.shape, Some(Leak));
    assert_rate(&growth, 5.0);
}

#[test]
fn leak_that_begins_late_is_a_leak() {
    let growth = grown(40.0, |at_s| 20.0 + 12.0 * (at_s - 20.0).max(0.0));
    assert_eq!(growth.shape, Some(Leak));
    assert_rate(&growth, 12.0);
    assert!((growth.duration_s.unwrap() - 20.0).abs() < 2.0, "{:?}", growth.duration_s);
}

#[test]
fn memory_freed_by_the_victim_is_ignored() {
    let mut samples = grown(20.2, |at_s| if at_s <= 20.0 { 20.0 + 11.8 * at_s } else { 75.0 }).samples;
    drop_after_kill(&mut samples);
    let growth = Growth::of(samples);
    assert_eq!(growth.shape, Some(Leak));
    assert_rate(&growth, 11.8);
    assert!(growth.samples.last().unwrap().usage_bytes > 250 << 20);
}

#[test]
fn slow_leak_is_a_leak() {
    let growth = grown(60.0, |at_s| 250.0 + 0.1 * at_s);
    assert_eq!(growth.shape, Some(Leak));
    assert_rate(&growth, 0.1);
    assert_eq!(grown(10.0, |at_s| 250.0 + 0.6 * at_s).shape, None, "too short to tell");
}

#[test]
fn leak_of_which_the_end_was_seen_is_a_leak() {
    // The monitor came late: 2 s of the growth were seen, at 10 MiB a second.
    let growth = grown(2.0, |at_s| 236.0 + 10.0 * at_s);
    assert_eq!(growth.shape, Some(Leak));
}

#[test]
fn plateau_then_fast_growth_is_a_burst() {
    for seconds in [0.2, 1.0, 2.0, 3.0] {
        let growth = grown(30.0, |at_s| 50.0 + 206.0 * ((at_s - 30.0 + seconds) / seconds).max(0.0));
        assert_eq!(growth.shape, Some(Burst), "{seconds} s");
        assert!(growth.duration_s.unwrap() <= seconds + 0.3, "{:?}", growth.duration_s);
    }
}

#[test]
fn burst_after_a_noisy_plateau_is_a_burst() {
    let growth = grown(20.0, |at_s| 60.0 + 6.0 * noise(at_s) + 98.0 * (at_s - 18.0).max(0.0));
    assert_eq!(growth.shape, Some(Burst));
    assert_rate(&growth, 98.0);
}

#[test]
fn burst_after_a_sawtooth_is_a_burst() {
    let growth = grown(30.0, |at_s| 40.0 + 30.0 * (at_s % 3.0) / 3.0 + 80.0 * (at_s - 28.0).max(0.0));
    assert_eq!(growth.shape, Some(Burst));
}

#[test]
fn start_of_a_program_before_a_burst_is_no_step() {
    // Nothing, then 30 MiB of a program that has started, 4 s later the burst.
    let growth = grown(10.0, |at_s| match at_s {
        at_s if at_s < 2.0 => 4.0,
        at_s if at_s < 7.0 => 60.0,
        at_s => 60.0 + 65.0 * (at_s - 7.0),
    });
    assert_eq!(growth.shape, Some(Burst));
    assert_rate(&growth, 65.0);
}

#[test]
fn first_seconds_of_a_process_that_fills_the_limit_are_a_burst() {
    assert_eq!(grown(1.5, |at_s| 4.0 + 168.0 * at_s).shape, Some(Burst));
}

#[test]
fn higher_plateau_before_the_kill_is_a_step() {
    let growth = grown(30.0, |at_s| if at_s < 15.0 { 50.0 } else { 240.0 + 0.5 * (at_s - 15.0) });
    assert_eq!(growth.shape, Some(Step));
    assert!(growth.rate_bytes_per_s.unwrap() > 190.0 * MIB, "{:?}", growth.rate_bytes_per_s);
    let noisy = grown(30.0, |at_s| if at_s < 15.0 { 50.0 } else { 240.0 } + 4.0 * noise(at_s));
    assert_eq!(noisy.shape, Some(Step));
}

#[test]
fn rate_of_a_step_is_that_of_its_steepest_part() {
    let growth = grown(12.0, |at_s| match at_s {
        at_s if at_s < 1.0 => 4.0,
        at_s if at_s < 5.0 => 20.0,
        at_s if at_s < 6.0 => 20.0 + 140.0 * (at_s - 5.0),
        at_s if at_s < 11.0 => 160.0,
        at_s => 160.0 + 96.0 * (at_s - 11.0),
    });
    assert_eq!(growth.shape, Some(Step));
    assert_rate(&growth, 140.0);
}

#[test]
fn several_plateaus_are_steps() {
    let growth = grown(40.0, |at_s| 40.0 + 70.0 * (at_s / 13.0).floor());
    assert_eq!(growth.shape, Some(Step));
    assert_eq!(grown(10.0, |at_s| [40.0, 150.0, 256.0][(at_s / 4.0) as usize % 3]).shape, Some(Step));
}

#[test]
fn no_growth_has_no_shape() {
    assert_eq!(grown(30.0, |_| 250.0).shape, None);
    assert_eq!(grown(30.0, |at_s| 250.0 + 3.0 * noise(at_s)).shape, None);
    let shrunk = grown(30.0, |at_s| 250.0 - at_s);
    assert_eq!((shrunk.shape, shrunk.rate_bytes_per_s, shrunk.duration_s), (None, None, None));
    assert_eq!(Growth::of(vec![sample(0.0, 1.0), sample(1.0, 200.0)]).shape, None, "two samples");
    assert_eq!(Growth::of(Vec::new()).shape, None);
}

#[test]
fn page_cache_is_no_growth() {
    // Files fill the cgroup within 5 s, then a program takes their place within 2 s.
    let mut growth = grown(20.0, |at_s| (51.2 * at_s).min(256.0));
    for sample in &mut growth.samples {
        sample.inactive_file_bytes = Some(sample.usage_bytes - (10 << 20).min(sample.usage_bytes));
    }
    let cache = Growth::of(growth.samples);
    assert_eq!(cache.shape, None, "10 MiB within the first moment");
    let mut taken = cache.samples;
    let end_ns = taken.last().unwrap().at_boot_ns;
    for sample in &mut taken {
        let left_s = (end_ns - sample.at_boot_ns) as f64 / NS_PER_S;
        let held = 10.0 + 123.0 * (2.0 - left_s).max(0.0);
        sample.inactive_file_bytes = Some(sample.usage_bytes.saturating_sub((held * MIB) as u64));
    }
    let growth = Growth::of(taken);
    assert_eq!(growth.shape, Some(Burst));
    assert_rate(&growth, 123.0);
}

#[test]
fn file_pages_that_were_not_read_are_as_they_were_read_next_or_last() {
    let mut samples: Vec<MemorySample> = (0..4).map(|at| sample(f64::from(at), 100.0)).collect();
    samples[1].inactive_file_bytes = Some(30 << 20);
    samples[2].inactive_file_bytes = Some(200 << 20);
    assert_eq!(held_bytes(&samples), [70 << 20, 70 << 20, 0, 0]);
}

proptest! {
    #[test]
    fn any_series_has_finite_figures(
        steps in prop::collection::vec((0_u64..3_000_000_000, any::<u64>(), prop::option::of(any::<u64>())), 0..80)
    ) {
        let mut at_boot_ns = 0;
        let samples: Vec<MemorySample> = steps
            .into_iter()
            .map(|(passed_ns, usage_bytes, inactive_file_bytes)| {
                at_boot_ns += passed_ns;
                MemorySample { at_boot_ns, usage_bytes, inactive_file_bytes, limit_bytes: None, processes: Vec::new() }
            })
            .collect();
        let growth = Growth::of(samples);
        prop_assert!(growth.rate_bytes_per_s.is_none_or(|rate| rate.is_finite() && rate >= 0.0));
        prop_assert!(growth.duration_s.is_none_or(|seconds| seconds.is_finite() && seconds > 0.0));
        prop_assert!(growth.shape.is_some() || growth.rate_bytes_per_s.is_none());
    }
}
