//! Pauses before the restart of a service that exited, and when to give up.
//!
//! Pure: the caller passes how long the service ran.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A service that ran this long started properly; its exit resets the count.
const LONG_ENOUGH: Duration = Duration::from_mins(1);

/// About five minutes of attempts. A busy port or a full disk will not go away after that.
const MOST_IN_A_ROW: u32 = 10;

/// Counts exits in quick succession.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    in_a_row: u32,
}

impl Backoff {
    /// The pause after an exit; `None` to give up.
    pub(super) fn after(&mut self, ran_for: Duration) -> Option<Duration> {
        if ran_for >= LONG_ENOUGH {
            self.in_a_row = 0;
        }
        self.in_a_row += 1;
        (self.in_a_row <= MOST_IN_A_ROW).then(|| (FIRST_PAUSE * 2_u32.pow(self.in_a_row - 1)).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_end() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> =
            std::iter::from_fn(|| backoff.after(Duration::ZERO)).map(|pause| pause.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn who_has_run_for_long_starts_from_the_beginning() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert_eq!(backoff.after(LONG_ENOUGH), Some(FIRST_PAUSE));
            assert_eq!(backoff.after(Duration::ZERO), Some(2 * FIRST_PAUSE));
        }
    }
}
