//! The thread that scans `/proc` every now and then.
//!
//! A thread of its own, because a scan may block on a lock of the process it looks at, and takes
//! milliseconds where there are thousands of processes. It spends at most [`DUTY`] of one processor on the
//! scans it makes by itself: after an expensive one the next comes later. Asked for with
//! [`Sampler::scan_now`], a scan comes at once and reads everybody, the quiet ones too; there is at most one
//! in each [`SHORTEST_PAUSE`].
//!
//! ```text
//!            ┌────────────── pause is over, or scan_now ──────────────┐
//!            ▼                                                        │
//!  start ─▶ scan ─▶ hand over (waits while the reader has enough) ─▶ pause ─▶ Sampler dropped: end
//!                        └─ the reader is gone: end
//! ```
//!
//! Handing over waits on this thread only, never on the reader's; a snapshot carries its time, so one that
//! waited is not mistaken for a new one.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::process::Snapshot;
use super::procfs::{Fence, ProcRoot, Scanner};

/// The part of one processor that periodic scans may take is 1 / this: 0.25 %.
const DUTY: u32 = 400;

/// An expensive scan does not put off the next one further than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Between a scan and the next one asked for. Who asks within it gets the same scan.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// Reading a folder is the deepest it goes; the default of 2 MiB would be the larger part of our address space.
const STACK_BYTES: usize = 128 * 1024;

/// The thread; ends when this is dropped.
#[derive(Debug)]
pub(super) struct Sampler {
    requests: SyncSender<()>,
}

impl Sampler {
    /// Between scans, unless they are expensive: as the Python runner has it.
    pub(super) const INTERVAL: Duration = Duration::from_secs(2);

    /// Starts scanning, at once and then every `interval`.
    ///
    /// # Errors
    /// When the root cannot be opened or the thread not be started.
    pub(super) fn start(
        root: ProcRoot,
        fence: Option<Fence>,
        interval: Duration,
        snapshots: mpsc::Sender<Snapshot>,
    ) -> io::Result<Self> {
        let scanner = Scanner::new(root, fence)?;
        // One waiting request stands for all.
        let (requests, asked) = sync_channel(1);
        let run = move || run(scanner, interval, &asked, &snapshots);
        thread::Builder::new().name("oom-sampler".into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Self { requests })
    }

    /// Asks for a scan that begins after this call. Does not wait.
    pub(super) fn scan_now(&self) {
        // Full: one is asked for already. Disconnected: nobody reads any more.
        let _ = self.requests.try_send(());
    }
}

fn run(mut scanner: Scanner, interval: Duration, asked: &Receiver<()>, snapshots: &mpsc::Sender<Snapshot>) {
    let mut complained = false;
    let mut is_asked = false;
    loop {
        let mut cpu = Duration::ZERO;
        let scan = if is_asked { scanner.scan() } else { scanner.scan_in_turns() };
        match scan {
            Ok(snapshot) => {
                cpu = snapshot.cost.cpu;
                complained = false;
                if snapshots.blocking_send(snapshot).is_err() {
                    return;
                }
            }
            Err(error) if !complained => {
                complained = true;
                tracing::warn!("cannot list processes: {error}; what is known of them grows old");
            }
            Err(_) => {}
        }
        let ended = Instant::now();
        is_asked = match asked.recv_timeout(pause(interval, cpu)) {
            Ok(()) => {
                thread::sleep(SHORTEST_PAUSE.saturating_sub(ended.elapsed()));
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

/// How long to wait after a scan that took so much of a processor.
fn pause(interval: Duration, cpu: Duration) -> Duration {
    interval.max((cpu * DUTY).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const HOUR: Duration = Duration::from_hours(1);

    async fn next(snapshots: &mut mpsc::Receiver<Snapshot>) -> Option<Snapshot> {
        tokio::time::timeout(DEADLINE, snapshots.recv()).await.expect("no word from the sampler")
    }

    fn start(interval: Duration, capacity: usize) -> (Sampler, mpsc::Receiver<Snapshot>) {
        let (sender, snapshots) = mpsc::channel(capacity);
        (Sampler::start(ProcRoot::default(), None, interval, sender).unwrap(), snapshots)
    }

    #[tokio::test]
    async fn the_first_scan_comes_at_once_and_the_next_when_asked_for() {
        let (sampler, mut snapshots) = start(HOUR, 1);
        let first = next(&mut snapshots).await.unwrap();
        assert!(!first.processes.is_empty());
        sampler.scan_now();
        let second = next(&mut snapshots).await.unwrap();
        assert!(second.at_boot_ns > first.at_boot_ns);
    }

    #[tokio::test]
    async fn scans_repeat_by_themselves() {
        let (_sampler, mut snapshots) = start(Duration::from_millis(1), 1);
        for _ in 0..3 {
            assert!(next(&mut snapshots).await.is_some());
        }
    }

    #[tokio::test]
    async fn many_requests_are_few_scans_far_enough_apart() {
        let (sampler, mut snapshots) = start(HOUR, 8);
        let mut last = next(&mut snapshots).await.unwrap();
        for _ in 0..3 {
            (0..100).for_each(|_| sampler.scan_now());
            let snapshot = next(&mut snapshots).await.unwrap();
            let apart_ns = u128::from(snapshot.at_boot_ns - last.at_boot_ns);
            assert!(apart_ns >= SHORTEST_PAUSE.as_nanos(), "{apart_ns}");
            last = snapshot;
        }
    }

    #[tokio::test]
    async fn it_ends_with_its_owner() {
        let (sampler, mut snapshots) = start(HOUR, 1);
        assert!(next(&mut snapshots).await.is_some());
        drop(sampler);
        assert_eq!(next(&mut snapshots).await, None);
    }

    #[test]
    fn it_ends_with_its_reader() {
        let (sampler, snapshots) = start(Duration::from_millis(1), 1);
        drop(snapshots);
        let begin = Instant::now();
        while !matches!(sampler.requests.try_send(()), Err(std::sync::mpsc::TrySendError::Disconnected(()))) {
            assert!(begin.elapsed() < DEADLINE, "the thread is still there");
            thread::yield_now();
        }
    }

    #[test]
    fn expensive_scans_are_rarer() {
        let pause_ms = |cpu_ms| pause(Sampler::INTERVAL, Duration::from_millis(cpu_ms)).as_millis();
        assert_eq!([0, 1, 5, 10, 1000].map(pause_ms), [2000, 2000, 2000, 4000, 30_000]);
        assert_eq!(pause(HOUR, Duration::from_secs(1)), HOUR);
    }

    #[test]
    fn a_root_that_is_not_there_is_told_at_once() {
        let (sender, _snapshots) = mpsc::channel(1);
        assert!(Sampler::start(ProcRoot::new("/nonexistent"), None, HOUR, sender).is_err());
    }
}
