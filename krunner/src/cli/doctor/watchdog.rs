//! Work that may never end, and a word about it while it does not.
//!
//! A check may hang: on a stuck `/proc`, or because the kernel slows the container down at `memory.high` (two seconds for
//! each charge; `mem_cgroup_handle_over_high`, mm/memcontrol.c). It is given up at its deadline; its thread ends with the
//! process.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is said what is waited for.
const REMINDER: Duration = Duration::from_secs(2);

/// Does the work on a thread of its own until the deadline, and here where the kernel has no thread for it.
///
/// # Errors
/// When it has not ended by then, with how long it had.
pub(super) fn attend<T: Send + 'static>(
    what: &str,
    deadline: Instant,
    say: impl Fn(&str),
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Duration> {
    let begun = Instant::now();
    let (done, result) = channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let theirs = Arc::clone(&work);
    let started = thread::Builder::new().name("check".into()).spawn(move || {
        if let Some(work) = take(&theirs) {
            // Fails when it was given up.
            let _ = done.send(work());
        }
    });
    if started.is_err()
        && let Some(work) = take(&work)
    {
        return Ok(work());
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match result.recv_timeout(left.min(REMINDER)) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) if left > REMINDER => {
                say(&format!("still waiting for: {what} ({} s)", begun.elapsed().as_secs()));
            }
            // A panic of the check has been told by the panic hook.
            Err(_) => return Err(begun.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_ends_says_nothing() {
        let deadline = Instant::now() + Duration::from_mins(1);
        let silent = |word: &str| panic!("{word}");
        assert_eq!(attend("x", deadline, silent, || 7), Ok(7));
    }

    #[test]
    fn work_that_hangs_is_named_and_given_up() {
        let said = Mutex::new(Vec::new());
        let deadline = Instant::now() + REMINDER + Duration::from_millis(200);
        let say = |word: &str| said.lock().unwrap().push(word.to_owned());
        let waited = attend("x", deadline, say, thread::park).unwrap_err();
        assert!(waited >= REMINDER, "{waited:?}");
        assert_eq!(*said.lock().unwrap(), ["still waiting for: x (2 s)"]);
    }
}
