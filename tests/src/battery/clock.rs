//! When the kernel's counter grew: the times of the kills, from nobody who is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cgroup::Counter;

/// As exact as the times are. A look takes some 20 us.
const INTERVAL: Duration = Duration::from_millis(2);

/// A thread that watches a counter.
#[derive(Debug)]
pub(super) struct KillClock {
    enough: Arc<AtomicBool>,
    watcher: JoinHandle<Vec<Instant>>,
}

impl KillClock {
    /// Begins with what is counted so far.
    pub(super) fn start(counter: Counter) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&enough);
        let mut last = counter.oom_kills();
        let watcher = thread::spawn(move || {
            let mut times = Vec::new();
            loop {
                let is_last = flag.load(Ordering::Acquire);
                let (now, count) = (Instant::now(), counter.oom_kills());
                times.extend((last..count).map(|_| now));
                last = last.max(count);
                if is_last {
                    return times;
                }
                thread::sleep(INTERVAL);
            }
        });
        Self { enough, watcher }
    }

    /// A time for each kill that was counted since.
    pub(super) fn stop(self) -> Vec<Instant> {
        self.enough.store(true, Ordering::Release);
        self.watcher.join().expect("the counter can be read")
    }
}
