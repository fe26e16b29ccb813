//! Waits for conditions with a deadline.
//!
//! Tests do not measure speed, so the deadline is generous and reaching it is always a failure.

use std::thread;
use std::time::{Duration, Instant};

/// The deadline for every wait.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Short enough not to be felt, long enough not to compete with the program under test for two cores.
const INTERVAL: Duration = Duration::from_millis(5);

/// Polls until the condition yields a value; `None` when the deadline passes first.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(INTERVAL);
    }
}

/// Polls until the condition yields a value, and fails the test when it does not within [`PATIENCE`].
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    match within(PATIENCE, condition) {
        Some(value) => value,
        None => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Polls until the condition holds, and fails the test when it does not within [`PATIENCE`].
#[track_caller]
pub fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}

/// Waits until a growing value has stopped growing, and returns it.
#[track_caller]
pub fn until_stalled(what: &str, mut figure: impl FnMut() -> Option<u64>) -> u64 {
    /// A second of standing still: anything that makes progress at all has moved by then.
    const SAME: u32 = 200;
    let (mut last, mut same) = (None, 0);
    until(&format!("{what} to make no progress"), || {
        let now = figure().filter(|value| *value > 0);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        now.filter(|_| same >= SAME)
    })
}
