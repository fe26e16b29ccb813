//! One job: the task that owns a child, and the handle on it.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::restart::{NextAttempt, RestartPolicy, Restarts};
use crate::process::Control;
use crate::tasks::TaskGroup;

/// A pause that a user may wait for; it is logged.
const NOTED_PAUSE: Duration = Duration::from_secs(1);

/// The state of a job. `R` is what users of a ready child need; `E` is how an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobState<R, E> {
    /// Being prepared or started, or waiting for its restart.
    Starting(StartStage),
    /// The child can be used.
    Ready(R),
    /// It was asked to stop, and has not ended yet.
    Stopping,
    /// No child runs, and none is going to.
    Stopped {
        /// How the last attempt ended.
        end: E,
        /// It is not restarted because it ended too often.
        gave_up: bool,
    },
}

impl<R, E> JobState<R, E> {
    /// Whether a child runs, or is going to.
    #[must_use]
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    /// Whether the child can be used.
    #[must_use]
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    /// Whether the child is not ready yet.
    #[must_use]
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self, Self::Starting(_))
    }
}

/// How far a start is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartStage {
    /// Nothing runs yet. What the start waits for, for messages.
    Waiting(Cow<'static, str>),
    /// The child runs.
    Running,
}

/// How one attempt ended.
#[derive(Debug)]
pub(crate) enum AttemptEnd<E> {
    /// The child ended; the policy decides what follows.
    Ended(E),
    /// Another attempt would end in the same way.
    Final(E),
}

/// What a job does over and over: prepare the child, start it, watch it until it ended.
pub(crate) trait Attempt: Send + 'static {
    /// What users of a ready child need.
    type Ready: Clone + Send + Sync + 'static;
    /// How an attempt ended.
    type End: Clone + Send + Sync + 'static;

    /// One attempt. It has to end soon after [`Progress::control`] was terminated.
    fn run(
        &mut self,
        progress: &Progress<Self::Ready, Self::End>,
    ) -> impl Future<Output = AttemptEnd<Self::End>> + Send;
}

/// Publishes how far an attempt is.
pub(crate) struct Progress<R, E> {
    state: watch::Sender<JobState<R, E>>,
    control: Control,
    /// When the child of this attempt was started.
    runs_since: Mutex<Option<Instant>>,
}

impl<R, E> Progress<R, E> {
    /// Terminated when the job is stopped.
    #[must_use]
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Nothing runs yet, because something else has to be done first.
    pub(crate) fn waits_for(&self, what: impl Into<Cow<'static, str>>) {
        self.publish(JobState::Starting(StartStage::Waiting(what.into())));
    }

    /// The child runs and is not ready yet.
    pub(crate) fn running(&self) {
        self.note_start();
        self.publish(JobState::Starting(StartStage::Running));
    }

    /// The child can be used.
    pub(crate) fn ready(&self, ready: R) {
        self.note_start();
        self.publish(JobState::Ready(ready));
    }

    fn note_start(&self) {
        self.runs_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    /// How long the child of the attempt that ended ran; the next attempt begins.
    fn take_run_time(&self) -> Duration {
        let since = self.runs_since.lock().unwrap_or_else(PoisonError::into_inner).take();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// A job that is stopping is not started any more.
    fn publish(&self, state: JobState<R, E>) {
        self.state.send_if_modified(|current| {
            let is_wanted = !matches!(current, JobState::Stopping);
            if is_wanted {
                *current = state;
            }
            is_wanted
        });
    }
}

/// A handle on a job. Clones refer to the same one; dropping it does not stop the job.
pub(crate) struct Job<R, E> {
    state: watch::Receiver<JobState<R, E>>,
    control: Control,
    start: Arc<Notify>,
}

impl<R, E> Clone for Job<R, E> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), control: self.control.clone(), start: Arc::clone(&self.start) }
    }
}

impl<R: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static> Job<R, E> {
    /// Starts a job in a task of the group. The kind names the task; the name is for the log.
    pub(crate) fn spawn(
        tasks: &TaskGroup,
        kind: &'static str,
        name: impl fmt::Display + Send + 'static,
        policy: RestartPolicy,
        attempt: impl Attempt<Ready = R, End = E>,
    ) -> Self {
        let (sender, state) = watch::channel(JobState::Starting(StartStage::Waiting(Cow::Borrowed("its turn"))));
        let (control, start) = (Control::new(), Arc::new(Notify::new()));
        let progress = Progress { state: sender, control: control.clone(), runs_since: Mutex::default() };
        let task = JobTask { name, attempt, restarts: Restarts::new(policy), progress, start: Arc::clone(&start) };
        tasks.spawn(kind, task.run());
        Self { state, control, start }
    }

    /// The current state.
    #[must_use]
    pub(crate) fn state(&self) -> JobState<R, E> {
        self.state.borrow().clone()
    }

    /// Waits for a state and returns it. The last state if the task is gone, with all others. The handle may be dropped
    /// meanwhile.
    pub(crate) fn wait_for<F>(&self, is_it: F) -> impl Future<Output = JobState<R, E>> + Send + 'static + use<R, E, F>
    where
        F: FnMut(&JobState<R, E>) -> bool + Send + 'static,
    {
        let mut state = self.state.clone();
        async move {
            let _ = state.wait_for(is_it).await;
            state.borrow().clone()
        }
    }

    /// Waits until the child can be used or the job is stopped. The handle may be dropped meanwhile.
    pub(crate) fn settled(&self) -> impl Future<Output = JobState<R, E>> + Send + 'static + use<R, E> {
        self.wait_for(|state| state.is_ready() || state.is_stopped())
    }

    /// Waits until the job is stopped. The handle may be dropped meanwhile.
    pub(crate) fn stopped(&self) -> impl Future<Output = JobState<R, E>> + Send + 'static + use<R, E> {
        self.wait_for(JobState::is_stopped)
    }

    /// Starts the child of a stopped job again, unless the job was stopped by [`Self::stop`]; resolves when the attempt
    /// begins.
    pub(crate) async fn start(&self) {
        let mut state = self.state.clone();
        if state.borrow_and_update().is_stopped() {
            self.start.notify_one();
            // An error means that the task is gone.
            let _ = state.changed().await;
        }
    }

    /// Stops the job for good.
    pub(crate) fn stop(&self) {
        self.control.terminate();
    }

    /// Whether [`Self::stop`] was called.
    #[must_use]
    pub(crate) fn is_stopping(&self) -> bool {
        self.control.is_terminated()
    }
}

/// Why no attempt follows for now.
struct Stop<E> {
    end: E,
    gave_up: bool,
}

struct JobTask<N, A: Attempt> {
    name: N,
    attempt: A,
    restarts: Restarts,
    progress: Progress<A::Ready, A::End>,
    start: Arc<Notify>,
}

impl<N: fmt::Display, A: Attempt> JobTask<N, A> {
    async fn run(mut self) {
        loop {
            let Stop { end, gave_up } = self.run_attempts().await;
            self.progress.state.send_replace(JobState::Stopped { end, gave_up });
            tokio::select! {
                biased;
                () = self.progress.control.terminated() => return,
                // Nobody is left to start it.
                () = self.progress.state.closed() => return,
                () = self.start.notified() => self.progress.waits_for("its turn"),
            }
        }
    }

    /// Runs attempts until none follows.
    async fn run_attempts(&mut self) -> Stop<A::End> {
        loop {
            let end = match self.run_attempt().await {
                AttemptEnd::Final(end) => return Stop { end, gave_up: false },
                AttemptEnd::Ended(end) => end,
            };
            if self.progress.control.is_terminated() {
                return Stop { end, gave_up: false };
            }
            match self.restarts.after(self.progress.take_run_time()) {
                NextAttempt::Never => return Stop { end, gave_up: false },
                NextAttempt::GiveUp => {
                    tracing::error!("{} is not restarted: it exited too often", self.name);
                    return Stop { end, gave_up: true };
                }
                NextAttempt::After(pause) => {
                    self.progress.waits_for("its restart");
                    if self.restarts.has_limit() && pause >= NOTED_PAUSE {
                        tracing::info!("restarting {} in {} s", self.name, pause.as_secs());
                    }
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = self.progress.control.terminated() => return Stop { end, gave_up: false },
                    }
                }
            }
        }
    }

    /// Runs one attempt to its end, also when it has to stop.
    async fn run_attempt(&mut self) -> AttemptEnd<A::End> {
        let progress = &self.progress;
        let attempt = self.attempt.run(progress);
        tokio::pin!(attempt);
        tokio::select! {
            biased;
            end = &mut attempt => return end,
            () = progress.control.terminated() => {}
        }
        progress.state.send_replace(JobState::Stopping);
        attempt.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::restart::Backoff;
    use super::*;

    /// Ends at once, with the number of the attempt; attempts from `stays` on are ready until they are stopped.
    struct Numbered {
        attempts: Arc<AtomicU32>,
        stays: u32,
        is_final: bool,
    }

    impl Attempt for Numbered {
        type Ready = u32;
        type End = u32;

        async fn run(&mut self, progress: &Progress<u32, u32>) -> AttemptEnd<u32> {
            let number = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
            progress.running();
            if number >= self.stays {
                progress.ready(number);
                progress.control().terminated().await;
                progress.ready(0);
            }
            if self.is_final { AttemptEnd::Final(number) } else { AttemptEnd::Ended(number) }
        }
    }

    const PAUSES: Backoff = Backoff {
        healthy_after: Duration::from_mins(1),
        after_healthy: Duration::from_secs(1),
        first: Duration::from_secs(1),
        longest: Duration::from_secs(4),
        limit: Some(4),
    };

    fn job(policy: RestartPolicy, stays: u32, is_final: bool) -> (Job<u32, u32>, Arc<AtomicU32>) {
        let attempts = Arc::new(AtomicU32::new(0));
        let numbered = Numbered { attempts: Arc::clone(&attempts), stays, is_final };
        (Job::spawn(&TaskGroup::new(), "test", "test", policy, numbered), attempts)
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_follow_each_other_until_the_limit() {
        let begun = Instant::now();
        let (job, attempts) = job(RestartPolicy::Always(PAUSES), u32::MAX, false);
        let stopped = job.wait_for(JobState::is_stopped).await;
        assert_eq!(stopped, JobState::Stopped { end: 5, gave_up: true });
        assert_eq!((begun.elapsed().as_secs(), attempts.load(Ordering::SeqCst)), (1 + 2 + 4 + 4, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn final_ends_and_the_policy_never_wait_for_a_start() {
        for (policy, is_final) in [(RestartPolicy::Never, false), (RestartPolicy::Always(PAUSES), true)] {
            let (job, _) = job(policy, 3, is_final);
            for number in 1..3 {
                let stopped = job.wait_for(move |state| *state == JobState::Stopped { end: number, gave_up: false });
                stopped.await;
                sleep(Duration::from_mins(10)).await;
                assert!(job.state().is_stopped(), "nobody started it");
                job.start().await;
            }
            assert_eq!(job.wait_for(JobState::is_ready).await, JobState::Ready(3));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_job_stays_stopped() {
        let (job, attempts) = job(RestartPolicy::Always(PAUSES), 1, false);
        job.wait_for(JobState::is_ready).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let stopped = job.wait_for(move |state| {
            log.lock().unwrap().push(state.clone());
            state.is_stopped()
        });
        job.stop();
        stopped.await;
        assert!(!seen.lock().unwrap().contains(&JobState::Ready(0)), "it was ready while it was stopping");
        job.start().await;
        sleep(Duration::from_mins(10)).await;
        assert_eq!((job.state(), attempts.load(Ordering::SeqCst)), (JobState::Stopped { end: 1, gave_up: false }, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn stop_ends_a_pause() {
        let (job, _) = job(RestartPolicy::Always(PAUSES), u32::MAX, false);
        sleep(Duration::from_millis(500)).await;
        let begun = Instant::now();
        job.stop();
        let stopped = job.wait_for(JobState::is_stopped).await;
        assert_eq!((stopped, begun.elapsed()), (JobState::Stopped { end: 1, gave_up: false }, Duration::ZERO));
    }
}
