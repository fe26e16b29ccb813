//! The thread that looks at `/proc`: every two seconds, and when somebody asks.
//!
//! A thread, because `/proc` may make a reader wait (see `procfs`); nobody waits for this one. Where a look
//! takes long it comes less often, so that an idle runner among thousands of processes stays idle.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::process::Snapshot;
use super::procfs::{Fence, ProcRoot, Scanner};

/// Between two looks. A process that lives for less is seen by luck, or by a tracer.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// A look may take this share of one processor; one that takes longer makes the next come later.
const SHARE: u32 = 400;

/// But never later than that.
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

/// Between two looks that were asked for; a kill storm asks for many.
const ASKED_INTERVAL: Duration = Duration::from_millis(50);

/// A name and some numbers for each process; no recursion.
const STACK_BYTES: usize = 128 * 1024;

/// A look, and what it took.
#[derive(Debug)]
pub(super) struct Sampled {
    /// What was seen.
    pub(super) snapshot: Snapshot,
    /// Processor time of the look.
    pub(super) took: Duration,
}

/// Asks the thread to look. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Sampler(SyncSender<()>);

impl Sampler {
    /// Starts the thread, which looks at once.
    ///
    /// # Errors
    /// When `/proc` cannot be opened, or no thread be started.
    pub(super) fn start(root: &ProcRoot, fence: Option<Fence>, samples: mpsc::Sender<Sampled>) -> io::Result<Self> {
        let mut scanner = Scanner::open(root, fence)?;
        // One request waits at most: further ones ask the same.
        let (ask, asked) = sync_channel(1);
        let looking = move || run(&mut scanner, &asked, &samples);
        thread::Builder::new().name("oom-sampler".to_owned()).stack_size(STACK_BYTES).spawn(looking)?;
        Ok(Self(ask))
    }

    /// Asks for a look now.
    pub(super) fn look_now(&self) {
        // Full: asked already. Closed: the thread has told why.
        let _ = self.0.try_send(());
    }
}

fn run(scanner: &mut Scanner, asked: &Receiver<()>, samples: &mpsc::Sender<Sampled>) {
    loop {
        let began = processor_time();
        let snapshot = match scanner.scan() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!("processes are not seen any more: cannot read /proc: {error}");
                return;
            }
        };
        let took = processor_time().saturating_sub(began);
        if samples.blocking_send(Sampled { snapshot, took }).is_err() {
            return;
        }
        thread::sleep(ASKED_INTERVAL);
        match asked.recv_timeout(pause(took).saturating_sub(ASKED_INTERVAL)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// How long to wait after a look that took so long.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(INTERVAL, LONGEST_INTERVAL)
}

/// What this thread has used so far.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_look_makes_the_next_come_later() {
        assert_eq!(pause(Duration::from_millis(1)), INTERVAL);
        assert_eq!(pause(Duration::from_millis(10)), Duration::from_secs(4));
        assert_eq!(pause(Duration::from_secs(10)), LONGEST_INTERVAL);
    }

    #[tokio::test]
    async fn it_looks_at_once_and_when_asked() {
        let (samples, mut sampled) = mpsc::channel(1);
        let sampler = Sampler::start(&ProcRoot::default(), None, samples).unwrap();
        let first = sampled.recv().await.unwrap().snapshot;
        sampler.look_now();
        let second = sampled.recv().await.unwrap().snapshot;
        let apart = Duration::from_nanos(second.at_boot_ns - first.at_boot_ns);
        assert!(apart < INTERVAL, "{apart:?}");
    }
}
