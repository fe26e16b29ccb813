//! A limit for log lines that peers can cause.

use std::time::Duration;

use tokio::time::Instant;

/// Lines that are logged one by one in each window.
const LINES: u32 = 10;

/// After the first line of a window, how long until the rest is logged as a count.
const WINDOW: Duration = Duration::from_mins(1);

/// Logs the first lines of each window, and counts the others.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    window_began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Whether a line may be logged now; else it is counted.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let is_over = self.window_began.is_none_or(|began| now >= began + WINDOW);
        // A count that was not taken yet stays, with its window.
        if is_over && self.suppressed == 0 {
            (self.window_began, self.lines) = (Some(now), 0);
        }
        if self.lines < LINES {
            self.lines += 1;
            return true;
        }
        self.suppressed += 1;
        false
    }

    /// When [`Self::take_summary`] has something.
    pub(super) fn summary_due_at(&self) -> Option<Instant> {
        self.window_began.filter(|_| self.suppressed > 0).map(|began| began + WINDOW)
    }

    /// The number of lines that were not logged, once their window is over.
    pub(super) fn take_summary(&mut self, now: Instant) -> Option<u64> {
        self.summary_due_at().filter(|due| now >= *due)?;
        self.window_began = None;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_count() {
        let (mut limit, begin) = (LogLimit::default(), Instant::now());
        let logged = (0..1000).filter(|_| limit.admits(begin)).count();
        assert_eq!(logged, LINES as usize);
        assert_eq!(limit.take_summary(begin), None);
        let end = limit.summary_due_at().unwrap();
        assert_eq!(end, begin + WINDOW);
        assert_eq!(limit.take_summary(end), Some(1000 - u64::from(LINES)));
        assert_eq!((limit.take_summary(end), limit.summary_due_at()), (None, None));
        assert!(limit.admits(end), "a new window");
    }

    #[test]
    fn a_line_now_and_then_is_always_logged() {
        let (mut limit, begin) = (LogLimit::default(), Instant::now());
        assert!((0..100).all(|minute| limit.admits(begin + minute * WINDOW)));
    }
}
