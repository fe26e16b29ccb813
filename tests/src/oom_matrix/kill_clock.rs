//! Records the time of each kill by polling the kernel's counter, independently of the monitors under test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cgroup::Counter;

/// The resolution of the recorded times. Reading the counter takes about 20 us.
const INTERVAL: Duration = Duration::from_millis(2);

/// A thread that polls the counter and records when it increases.
#[derive(Debug)]
pub(super) struct KillClock {
    stopped: Arc<AtomicBool>,
    poller: JoinHandle<Vec<Instant>>,
}

impl KillClock {
    /// Kills that were counted before this call are not recorded.
    pub(super) fn start(counter: Counter) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopped);
        let mut last = counter.oom_kills();
        let poller = thread::spawn(move || {
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
        Self { stopped, poller }
    }

    /// Returns one time per kill that was counted since `start`.
    pub(super) fn stop(self) -> Vec<Instant> {
        self.stopped.store(true, Ordering::Release);
        self.poller.join().expect("the counter can be read")
    }
}
