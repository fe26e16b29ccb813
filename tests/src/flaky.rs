//! Retries, which hide a failure from the result and must not hide it from the reader.
//!
//! Each is printed when it happens. `cargo xtask test` lists all of them: those of the suites from the file that
//! `KRUNNER_FLAKY_FILE` names, its own and those of virtual machines by [`take`].

use std::env;
use std::fmt::{self, Display};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

/// Enough for an assertion message.
const WHY_CHARS: usize = 300;

static RETRIES: Mutex<Vec<Retry>> = Mutex::new(Vec::new());

/// A failed attempt that another one follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The test, the case or the machine.
    pub name: String,
    /// The failure, in one line.
    pub why: String,
    /// The number of the failed attempt, from 1.
    pub attempt: usize,
    /// The number of attempts that are made at most.
    pub attempts: usize,
}

impl Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, attempt {} of {}", self.name, self.why, self.attempt, self.attempts)
    }
}

impl Retry {
    /// A retry of `name`. The reason may have several lines.
    pub fn new(name: impl Into<String>, why: &str, attempt: usize, attempts: usize) -> Self {
        let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
        let why = match line.char_indices().nth(WHY_CHARS) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line,
        };
        Self { name: name.into(), why, attempt, attempts }
    }

    /// A retry in the test that calls this, which libtest runs in a thread of its name.
    pub fn of_test(why: &str, attempt: usize, attempts: usize) -> Self {
        Self::new(thread::current().name().unwrap_or("a test"), why, attempt, attempts)
    }

    /// Prints the retry and keeps it for the summary.
    pub fn record(self) {
        // `eprintln!` would be captured, and shown only if the test fails.
        let _ = writeln!(io::stderr(), "flaky: {self}");
        if let Some(path) = env::var_os("KRUNNER_FLAKY_FILE") {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(format!("{self}\n").as_bytes()));
            written.unwrap_or_else(|error| panic!("cannot append to {}: {error}", path.display()));
        }
        RETRIES.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }
}

/// The retries in this process since the last call.
pub fn take() -> Vec<Retry> {
    std::mem::take(&mut *RETRIES.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_one_line() {
        let retry = Retry::new("row", "the kernel counted 3 kills:\n  [1, 2]\n", 1, 3);
        assert_eq!(retry.to_string(), "row: the kernel counted 3 kills: [1, 2], attempt 1 of 3");
        let long = Retry::of_test(&"é".repeat(2 * WHY_CHARS), 2, 2);
        assert!(long.to_string().ends_with("é..., attempt 2 of 2"), "{long}");
        assert_eq!(long.why.chars().count(), WHY_CHARS + 3);
    }
}
