//! Samples of a runner, a row for each minute, and how fast what it holds grows.

use std::fmt::Write as _;
use std::time::Duration;

use krunner_tests::proc;
use serde_json::{Value, json};

use super::chart::chart;

/// Memory that an allocator may take in a minute without a leak: a soak's first half fills every buffer, its second half
/// still shifts by some pages.
const RSS_KIB_A_MINUTE: f64 = 128.0;

/// A descriptor lost in two minutes is one lost in a thousand steps.
const FDS_A_MINUTE: f64 = 0.5;

/// A zombie that is in so many samples in a row stays.
const ZOMBIE_SAMPLES: usize = 5;

/// One look at the runner.
#[derive(Debug)]
pub(super) struct Sample {
    seconds: f64,
    rss_kib: f64,
    fds: f64,
    threads: usize,
    zombies: Vec<u32>,
    /// Of `status`, since the sample before.
    latencies: Vec<Duration>,
}

/// Dead children that the runner has not waited for.
pub(super) fn zombies(pid: u32) -> Vec<u32> {
    proc::zombies_of(pid)
}

#[expect(clippy::cast_precision_loss, reason = "KiB of memory and numbers of descriptors are far below 2^52")]
impl Sample {
    /// Reads the sample from `/proc`.
    pub(super) fn take(pid: u32, at: Duration, latencies: Vec<Duration>) -> Self {
        Self {
            seconds: at.as_secs_f64(),
            rss_kib: proc::rss_kib(pid).unwrap_or_default() as f64,
            fds: proc::descriptors(pid) as f64,
            threads: proc::threads(pid).len(),
            zombies: zombies(pid),
            latencies,
        }
    }
}

/// All samples of a soak.
#[derive(Debug, Default)]
pub(super) struct Figures {
    samples: Vec<Sample>,
    rows: Vec<Value>,
    /// Replies by kind.
    pub(super) ops: Value,
    lasting_zombies: Vec<u32>,
}

impl Figures {
    /// Adds a sample. Returns the row of a minute that is over.
    pub(super) fn add(&mut self, sample: Sample) -> Option<String> {
        let minute = |seconds: f64| (seconds / 60.0).floor();
        let is_over = self.samples.last().is_some_and(|last| minute(last.seconds) < minute(sample.seconds));
        self.samples.push(sample);
        self.note_zombies();
        is_over.then(|| self.row())
    }

    fn note_zombies(&mut self) {
        let recent = self.samples.iter().rev().take(ZOMBIE_SAMPLES);
        if self.samples.len() < ZOMBIE_SAMPLES {
            return;
        }
        let mut sets = recent.map(|sample| &sample.zombies);
        let mut lasting = sets.next().cloned().unwrap_or_default();
        sets.for_each(|set| lasting.retain(|pid| set.contains(pid)));
        lasting.retain(|pid| !self.lasting_zombies.contains(pid));
        self.lasting_zombies.extend(lasting);
    }

    fn row(&mut self) -> String {
        let Some(last) = self.samples.last() else { return String::new() };
        let recent: Vec<&Sample> = self.samples.iter().filter(|sample| sample.seconds > last.seconds - 60.0).collect();
        let mean_of = |value: fn(&Sample) -> f64| mean(&recent.iter().map(|sample| value(sample)).collect::<Vec<_>>());
        let threads = recent.iter().map(|sample| sample.threads).max().unwrap_or_default();
        let zombies = recent.iter().map(|sample| sample.zombies.len()).max().unwrap_or_default();
        let mut latencies: Vec<Duration> = recent.iter().flat_map(|sample| sample.latencies.iter().copied()).collect();
        let (rss, fds, p99) = (mean_of(|sample| sample.rss_kib), mean_of(|sample| sample.fds), p99_ms(&mut latencies));
        self.rows.push(json!({
            "seconds": last.seconds, "rss_kib": rss, "fds": fds, "threads_max": threads, "zombies_max": zombies,
            "status_p99_ms": p99, "statuses": latencies.len(),
        }));
        let heading =
            if self.rows.len() == 1 { "minute   RSS KiB     fds  threads  zombies  status p99 ms\n" } else { "" };
        format!("{heading}{:>6} {rss:>9.0} {fds:>7.1} {threads:>8} {zombies:>8} {p99:>14.1}", self.rows.len())
    }

    /// The slope of a value over the second half, a minute.
    fn slope(&self, value: fn(&Sample) -> f64) -> f64 {
        let half = &self.samples[self.samples.len() / 2..];
        slope(&half.iter().map(|sample| (sample.seconds / 60.0, value(sample))).collect::<Vec<_>>())
    }

    fn rss_slope(&self) -> f64 {
        self.slope(|sample| sample.rss_kib)
    }

    fn fds_slope(&self) -> f64 {
        self.slope(|sample| sample.fds)
    }

    /// The two slopes beside what is allowed.
    pub(super) fn slopes(&self) -> String {
        format!(
            "slope of RSS {:+.1} KiB a minute (allowed {RSS_KIB_A_MINUTE}), of descriptors {:+.2} a minute (allowed {FDS_A_MINUTE})\n\
             replies: {}",
            self.rss_slope(),
            self.fds_slope(),
            self.ops
        )
    }

    /// What grew or stayed.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.rss_slope() > RSS_KIB_A_MINUTE {
            problems.push(format!("RSS grows by {:.1} KiB a minute", self.rss_slope()));
        }
        if self.fds_slope() > FDS_A_MINUTE {
            problems.push(format!("descriptors grow by {:.2} a minute", self.fds_slope()));
        }
        if !self.lasting_zombies.is_empty() {
            problems.push(format!("zombies stayed for {ZOMBIE_SAMPLES} s: {:?}", self.lasting_zombies));
        }
        problems
    }

    /// RSS, descriptors and latency over time.
    pub(super) fn charts(&self) -> String {
        let series = |value: fn(&Sample) -> f64| self.samples.iter().map(value).collect::<Vec<_>>();
        let worst = |sample: &Sample| p99_ms(&mut sample.latencies.clone());
        let mut text = chart("RSS, KiB", &series(|sample| sample.rss_kib));
        let _ = write!(text, "{}", chart("descriptors", &series(|sample| sample.fds)));
        let _ = writeln!(text, "{}", chart("status p99, ms", &series(worst)));
        text
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "minutes": self.rows,
            "rss_kib_per_minute": self.rss_slope(), "rss_kib_per_minute_allowed": RSS_KIB_A_MINUTE,
            "fds_per_minute": self.fds_slope(), "fds_per_minute_allowed": FDS_A_MINUTE,
            "replies": self.ops, "zombies": self.lasting_zombies,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand values")]
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The slope of a line by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let mean_of = |value: fn(&(f64, f64)) -> f64| mean(&points.iter().map(value).collect::<Vec<_>>());
    let (x, y) = (mean_of(|point| point.0), mean_of(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

fn p99_ms(latencies: &mut [Duration]) -> f64 {
    latencies.sort_unstable();
    let rank = latencies.len() * 99 / 100;
    latencies.get(rank.min(latencies.len().saturating_sub(1))).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rss: fn(f64) -> f64, fds: f64) -> Figures {
        let mut figures = Figures::default();
        for second in 0..240 {
            let seconds = f64::from(second);
            let sample = Sample {
                seconds,
                rss_kib: rss(seconds),
                fds,
                threads: 5,
                zombies: if second > 200 { vec![7] } else { Vec::new() },
                latencies: vec![Duration::from_millis(3)],
            };
            figures.add(sample);
        }
        figures
    }

    #[test]
    fn growth_is_found_in_the_second_half_only() {
        let level = figures(|seconds| 9000.0 + seconds.min(100.0) * 50.0, 20.0);
        assert!(level.rss_slope().abs() < 1.0, "{}", level.rss_slope());
        let grown = figures(|seconds| 9000.0 + seconds * 5.0, 20.0);
        assert!((grown.rss_slope() - 300.0).abs() < 1.0, "{}", grown.rss_slope());
        assert!(grown.problems()[0].starts_with("RSS grows by 300"), "{:?}", grown.problems());
    }

    #[test]
    fn zombies_that_stay_are_a_problem_and_minutes_have_rows() {
        let figures = figures(|_| 9000.0, 20.0);
        assert_eq!(figures.problems(), ["zombies stayed for 5 s: [7]"]);
        assert_eq!(figures.rows.len(), 3);
        assert_eq!(figures.rows[0]["status_p99_ms"], 3.0);
    }
}
