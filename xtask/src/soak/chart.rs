//! Draws a series of values as text.

use std::fmt::Write as _;

const WIDTH: usize = 72;
const HEIGHT: usize = 8;

/// A chart of the values from first to last, with its highest and lowest value at the side. The axis does not start at
/// zero, so that a slow growth shows.
pub(super) fn chart(title: &str, values: &[f64]) -> String {
    let columns: Vec<f64> = columns(values);
    let (low, high) =
        columns.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
    let mut text = format!("\n{title}\n");
    if columns.is_empty() {
        return text;
    }
    for row in (0..HEIGHT).rev() {
        let label = match row {
            0 => format!("{low:.1}"),
            _ if row == HEIGHT - 1 => format!("{high:.1}"),
            _ => String::new(),
        };
        let marks: String =
            columns.iter().map(|value| if level(*value, low, high) == row { '*' } else { ' ' }).collect();
        let _ = writeln!(text, "{label:>10} |{}", marks.trim_end());
    }
    let _ = writeln!(text, "{:>10} +{}", "", "-".repeat(columns.len()));
    text
}

/// Means of neighbours, so that there are at most [`WIDTH`] of them.
fn columns(values: &[f64]) -> Vec<f64> {
    let each = values.len().div_ceil(WIDTH).max(1);
    values.chunks(each).map(super::figures::mean).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "from 0 to HEIGHT - 1"
)]
fn level(value: f64, low: f64, high: f64) -> usize {
    if high <= low { 0 } else { ((value - low) / (high - low) * (HEIGHT - 1) as f64).round() as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rising_values_rise() {
        let text = chart("RSS", &[1.0, 2.0, 3.0, 8.0]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "RSS");
        assert_eq!(lines[2], "       8.0 |   *");
        assert_eq!(lines[9], "       1.0 |*");
        assert_eq!(lines[10], "           +----");
    }

    #[test]
    fn constant_and_no_values_are_drawn() {
        assert!(chart("x", &[5.0; 500]).contains(&"*".repeat(WIDTH - 1)));
        assert_eq!(chart("x", &[]), "\nx\n");
    }
}
