//! Threads for work that may block.
//!
//! ```text
//! blocking(work) ──▶ queue ──▶ an idle thread, else a new one, else the next one that is free
//!       └── every RETRY while it waits: a new thread for what is still queued
//! ```
//!
//! A container limits processes and threads, and the user's programs may reach that limit. So [`CORE_THREADS`] threads
//! are started before any user code and never exit; when the kernel refuses another thread, work waits for one of them.
//! tokio's own pool panics instead: all its idle threads exit, and the caller panics if a thread cannot be started
//! while no other exists (`spawn_blocking` in tokio's `runtime/blocking/pool.rs`). No code in krunner may use that
//! pool, directly or through another crate.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// A hung file system may block a thread forever. With a second thread, work on other files continues even if no
/// further thread can be started.
const CORE_THREADS: usize = 2;

/// Far more than can block at the same time in one session. Each thread counts against the container's pids limit.
const MAX_THREADS: usize = 128;

/// How long a thread beyond [`CORE_THREADS`] waits for work before it exits, as in tokio.
const IDLE_PATIENCE: Duration = Duration::from_secs(10);

/// How often queued work tries to start another thread: all threads may hang, and the container may be at its limit
/// only for a while.
const RETRY: Duration = Duration::from_millis(500);

type BlockingJob = Box<dyn FnOnce() + Send>;

static POOL: Pool = Pool::new(IDLE_PATIENCE, || start_thread(&POOL));

/// Runs blocking work, mostly file I/O, on a pool thread. The work completes even if the returned future is dropped.
///
/// # Panics
/// If the work panics.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    run_in(&POOL, work).await
}

/// Starts the threads that never exit. Call before user code runs.
///
/// # Errors
/// If not even one can be started: work would wait forever.
pub(crate) fn start_core_threads() -> io::Result<()> {
    POOL.start_core_threads()
}

async fn run_in<T: Send + 'static>(pool: &Pool, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, mut result) = oneshot::channel();
    pool.submit(Box::new(move || {
        // Fails if the caller was cancelled.
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    }));
    loop {
        match timeout(RETRY, &mut result).await {
            Ok(Ok(Ok(value))) => return value,
            Ok(Ok(Err(panic))) => resume_unwind(panic),
            // The sender is dropped without a value only at process exit.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => pool.retry(),
        }
    }
}

/// A job queue and the threads that serve it.
struct Pool {
    state: Mutex<PoolState>,
    wake: Condvar,
    idle_patience: Duration,
    /// Starts a thread that calls [`Pool::work`].
    start: fn() -> io::Result<()>,
}

struct PoolState {
    queue: VecDeque<BlockingJob>,
    threads: usize,
    idle: usize,
}

impl Pool {
    const fn new(idle_patience: Duration, start: fn() -> io::Result<()>) -> Self {
        let state = PoolState { queue: VecDeque::new(), threads: 0, idle: 0 };
        Self { state: Mutex::new(state), wake: Condvar::new(), idle_patience, start }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // No code that may panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_core_threads(&self) -> io::Result<()> {
        let mut state = self.lock();
        while state.threads < CORE_THREADS {
            match (self.start)() {
                Ok(()) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                // `retry` tries again.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn submit(&self, job: BlockingJob) {
        let mut state = self.lock();
        state.queue.push_back(job);
        self.serve(&mut state);
    }

    /// Tries again to start threads for queued work.
    fn retry(&self) {
        let mut state = self.lock();
        if !state.queue.is_empty() {
            self.serve(&mut state);
        }
    }

    fn serve(&self, state: &mut PoolState) {
        if state.queue.len() > state.idle {
            self.grow(state);
        }
        self.wake.notify_one();
    }

    /// If the kernel refuses a thread, `retry` tries again while work is queued.
    fn grow(&self, state: &mut PoolState) {
        if state.threads < MAX_THREADS && (self.start)().is_ok() {
            state.threads += 1;
        }
    }

    /// The main loop of a pool thread.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            while let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.lock();
            }
            let is_kept = state.threads <= CORE_THREADS;
            state.idle += 1;
            state = if is_kept {
                self.wake.wait_while(state, |state| state.queue.is_empty()).unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.wake.wait_timeout_while(state, self.idle_patience, |state| state.queue.is_empty());
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
            state.idle -= 1;
            // Only the first threads wait without a timeout, so every surplus thread gets here.
            if state.queue.is_empty() && state.threads > CORE_THREADS {
                state.threads -= 1;
                return;
            }
        }
    }
}

fn start_thread(pool: &'static Pool) -> io::Result<()> {
    thread::Builder::new().name("blocking".into()).spawn(|| pool.work()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn values_come_back_and_panics_surface() {
        assert_eq!(blocking(|| 7).await, 7);
        #[expect(clippy::disallowed_methods, reason = "the test waits for its end")]
        let panicking = tokio::spawn(blocking(|| panic!("on purpose")));
        assert!(panicking.await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn work_without_a_thread_waits_for_one() {
        static IS_FULL: AtomicBool = AtomicBool::new(true);
        static FULL: Pool = Pool::new(IDLE_PATIENCE, || {
            if IS_FULL.load(Ordering::SeqCst) { Err(io::ErrorKind::OutOfMemory.into()) } else { start_thread(&FULL) }
        });
        assert!(FULL.start_core_threads().is_err());
        let work = run_in(&FULL, || 7);
        tokio::pin!(work);
        assert!(timeout(RETRY * 3, &mut work).await.is_err(), "there is no thread");
        IS_FULL.store(false, Ordering::SeqCst);
        assert_eq!(timeout(DEADLINE, work).await, Ok(7));
    }

    #[tokio::test]
    async fn with_no_further_thread_the_kept_ones_do_all_even_if_one_hangs() {
        static IS_FULL: AtomicBool = AtomicBool::new(false);
        static FULL: Pool = Pool::new(IDLE_PATIENCE, || {
            if IS_FULL.load(Ordering::SeqCst) { Err(io::ErrorKind::WouldBlock.into()) } else { start_thread(&FULL) }
        });
        FULL.start_core_threads().unwrap();
        IS_FULL.store(true, Ordering::SeqCst);
        let (release, hangs) = mpsc::channel::<()>();
        FULL.submit(Box::new(move || _ = hangs.recv()));
        for number in 0..100 {
            assert_eq!(timeout(DEADLINE, run_in(&FULL, move || number)).await, Ok(number));
        }
        drop(release);
        assert_eq!(FULL.lock().threads, CORE_THREADS);
    }

    #[test]
    fn threads_beyond_the_kept_ones_end_when_idle() {
        static SHORT: Pool = Pool::new(Duration::from_millis(10), || start_thread(&SHORT));
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = std::sync::Arc::new(Mutex::new(hangs));
        for _ in 0..5 {
            let hangs = std::sync::Arc::clone(&hangs);
            SHORT.submit(Box::new(move || _ = hangs.lock().unwrap_or_else(PoisonError::into_inner).recv()));
        }
        assert_eq!(SHORT.lock().threads, 5);
        drop(release);
        let deadline = Instant::now() + DEADLINE;
        while SHORT.lock().threads > CORE_THREADS {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        thread::yield_now();
        assert_eq!(SHORT.lock().threads, CORE_THREADS);
    }
}
