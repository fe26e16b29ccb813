//! The growth before a kill as one line: `256m  ▁▁▂▃▅▇█  +98m/s for 2.1 s (burst)`.

use std::fmt;

use crate::monitor::explain::{Growth, GrowthShape};
use crate::monitor::model::MemorySample;
use crate::monitor::model::units::{grouped, mib};

/// Levels from nothing to the limit.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Columns of the sparkline.
const COLUMNS: u32 = 12;

/// Columns that show the time before the growth.
const COLUMNS_BEFORE: f64 = 3.0;

/// The time that a sparkline without growth shows.
const CALM_S: f64 = 60.0;

const NS_PER_S: f64 = 1e9;

/// Empty without samples.
impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(full_bytes) = full_bytes(&self.samples) else { return Ok(()) };
        write!(f, "{}  {}", mib(full_bytes), self.sparkline(full_bytes))?;
        if let (Some(rate), Some(seconds)) = (self.rate_bytes_per_s, self.duration_s) {
            write!(f, "  +{} for {}", mib_per_s(rate), in_seconds(seconds))?;
        }
        match self.shape {
            Some(shape) => write!(f, " ({})", name(shape)),
            None => Ok(()),
        }
    }
}

impl Growth {
    /// The sparkline of usage over time, relative to `full_bytes`.
    fn sparkline(&self, full_bytes: u64) -> String {
        let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) else { return String::new() };
        let columns = f64::from(COLUMNS);
        let shown_s = self.duration_s.map_or(CALM_S, |seconds| seconds * columns / (columns - COLUMNS_BEFORE));
        // Samples from a journal may be in any order.
        let seen_ns = last.at_boot_ns.saturating_sub(first.at_boot_ns);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let shown_ns = seen_ns.min((shown_s * NS_PER_S) as u64);
        let begin_ns = last.at_boot_ns - shown_ns;
        let after_ns = |column: u32| u128::from(shown_ns) * u128::from(column) / u128::from(COLUMNS - 1);
        let at_ns =
            |column: u32| u64::try_from(after_ns(column)).map_or(last.at_boot_ns, |after_ns| begin_ns + after_ns);
        (0..COLUMNS).map(|column| bar(usage_at(&self.samples, at_ns(column)), full_bytes)).collect()
    }
}

/// The limit, or the maximum usage if there is none.
fn full_bytes(samples: &[MemorySample]) -> Option<u64> {
    let max_bytes = samples.iter().map(|sample| sample.usage_bytes).max()?;
    Some(samples.last().and_then(|sample| sample.limit_bytes).unwrap_or(max_bytes)).filter(|bytes| *bytes > 0)
}

/// The usage in the last sample before that time.
fn usage_at(samples: &[MemorySample], at_ns: u64) -> u64 {
    let after = samples.partition_point(|sample| sample.at_boot_ns <= at_ns);
    samples.get(after.saturating_sub(1)).map_or(0, |sample| sample.usage_bytes)
}

fn bar(bytes: u64, full_bytes: u64) -> char {
    let level = u128::from(bytes) * BARS.len() as u128 / u128::from(full_bytes.max(1));
    BARS[usize::try_from(level).unwrap_or(usize::MAX).min(BARS.len() - 1)]
}

/// `98m/s`, with a decimal below 10 MiB and in KiB below 0.1 MiB.
pub(in crate::monitor) fn mib_per_s(bytes_per_s: f64) -> String {
    const MIB: f64 = 1_048_576.0;
    let mib = bytes_per_s / MIB;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive rate, saturating")]
    let whole = grouped(mib.round() as u64);
    match mib {
        _ if mib >= 9.95 => format!("{whole}m/s"),
        _ if mib >= 0.1 => format!("{mib:.1}m/s"),
        _ => format!("{:.0}k/s", mib * 1024.0),
    }
}

/// `2.1 s`, without a decimal from 10 s on.
pub(in crate::monitor) fn in_seconds(seconds: f64) -> String {
    if seconds < 9.95 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

fn name(shape: GrowthShape) -> &'static str {
    match shape {
        GrowthShape::Leak => "leak",
        GrowthShape::Step => "step",
        GrowthShape::Burst => "burst",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(usage_mib: &[u64], limit_mib: Option<u64>) -> Vec<MemorySample> {
        let sample = |(index, mib): (usize, &u64)| MemorySample {
            at_boot_ns: 1 + index as u64 * 250_000_000,
            usage_bytes: mib << 20,
            inactive_file_bytes: None,
            limit_bytes: limit_mib.map(|mib| mib << 20),
            processes: Vec::new(),
        };
        usage_mib.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn burst_is_one_line() {
        let mut usage = vec![50; 20];
        usage.extend((0..=8).map(|step| 50 + step * 206 / 8));
        let growth = Growth::of(samples(&usage, Some(256)));
        assert_eq!(growth.to_string(), "256m  ▂▂▂▂▃▄▄▅▆▇██  +103m/s for 2.0 s (burst)");
    }

    #[test]
    fn no_growth_is_shown_without_a_rate() {
        let growth = Growth::of(samples(&[128; 20], Some(256)));
        assert_eq!(growth.to_string(), "256m  ▅▅▅▅▅▅▅▅▅▅▅▅");
    }

    #[test]
    fn without_a_limit_the_maximum_usage_is_full() {
        let growth = Growth::of(samples(&[1, 64], None));
        assert_eq!(growth.to_string(), "64m  ▁▁▁▁▁▁▁▁▁▁▁█");
    }

    #[test]
    fn without_samples_there_is_nothing_to_show() {
        assert_eq!(Growth::of(Vec::new()).to_string(), "");
        assert_eq!(Growth::of(samples(&[0, 0], None)).to_string(), "");
    }

    #[test]
    fn rates_and_times_have_as_many_digits_as_matter() {
        let rates = [1e9, 98.4 * 1_048_576.0, 1.26 * 1_048_576.0, 51_200.0, 0.0].map(mib_per_s);
        assert_eq!(rates, ["954m/s", "98m/s", "1.3m/s", "50k/s", "0k/s"]);
        assert_eq!([0.04, 2.14, 9.96, 59.6].map(in_seconds), ["0.0 s", "2.1 s", "10 s", "60 s"]);
    }
}
