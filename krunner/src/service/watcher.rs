//! One model service from its order on: the answer, then the watch over its health.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::job::{Handle, Progress};
use super::model::{Health, HealthCheck, Seen};
use super::order::{Event, Outcome};
use super::probe::Probe;

/// Older agents wait for the first success: it is looked for more often than afterwards.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// What a model service is watched with.
pub(super) struct Watcher {
    /// Of the model.
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) job: Handle,
    pub(super) events: mpsc::Sender<Event>,
}

impl Watcher {
    /// Answers, and goes on until the process has ended.
    pub(super) async fn run(
        mut self,
        check: Option<HealthCheck>,
        deadline: Instant,
        grace: Duration,
        answer: oneshot::Sender<Outcome>,
    ) {
        let patience = check.as_ref().and_then(|check| check.verdict_in_answer);
        // An agent that waits for the verdict waits for the actions before as well.
        let deadline = deadline + patience.unwrap_or_default();
        let outcome = match self.job.reach(deadline, |progress| !matches!(progress, Progress::Preparing(_))).await {
            Progress::Preparing(what) => Some(Outcome::Failed(format!("still starting: waiting for {what}"))),
            _ => match self.job.reach(Instant::now() + grace, Progress::is_over).await {
                Progress::Failed(problem) => Some(Outcome::Failed(problem)),
                Progress::Ended(ended) => Some(Outcome::Failed(format!("the process did not start properly: {ended}"))),
                _ if patience.is_some() => None,
                _ => Some(Outcome::Started),
            },
        };
        let mut answer = Some(answer);
        if let Some(outcome) = outcome {
            give(&mut answer, outcome);
        }
        if let (Some(check), false) = (check, self.job.now().is_over()) {
            self.watch(&check, answer).await;
        }
    }

    async fn watch(mut self, check: &HealthCheck, mut answer: Option<oneshot::Sender<Outcome>>) {
        let mut health = Health::new(check.retries);
        let probe = Probe {
            port: self.port,
            target: check.target.clone(),
            expected_status: check.expected_status,
            patience: check.patience,
        };
        // Until then failures do not count: it has not had its time yet.
        let window_ends = Instant::now() + check.verdict_in_answer.filter(|_| answer.is_some()).unwrap_or_default();
        let mut pause = check.initial_delay;
        loop {
            let seen = tokio::select! {
                () = self.job.over() => Seen::Gone,
                seen = look(&probe, pause, &self.name) => seen,
            };
            let in_window = answer.is_some() && Instant::now() < window_ends;
            if !(in_window && seen == Seen::Failure)
                && let Some(is_healthy) = health.take_in(seen)
            {
                let event = Event::Health { name: self.name.clone(), is_healthy };
                if seen == Seen::Success {
                    give(&mut answer, Outcome::Started);
                }
                // The session goes on as long as this task does.
                let _ = self.events.send(event).await;
            }
            match (seen, self.job.now()) {
                (Seen::Gone, Progress::Ended(ended)) => {
                    give(&mut answer, Outcome::Failed(format!("the process did not start properly: {ended}")));
                    return;
                }
                (Seen::Gone, _) => return,
                (Seen::Failure, _) if !in_window => {
                    give(&mut answer, Outcome::Failed("service unhealthy".to_owned()));
                }
                _ => {}
            }
            pause = if answer.is_some() { check.interval.min(FIRST_INTERVAL) } else { check.interval };
        }
    }
}

/// One probe, after a pause.
async fn look(probe: &Probe, pause: Duration, name: &str) -> Seen {
    sleep(pause).await;
    match probe.ask().await {
        Ok(()) => Seen::Success,
        Err(error) => {
            tracing::debug!("the model service {name} is not healthy: {}", crate::error::chain(&error));
            Seen::Failure
        }
    }
}

/// Gives the answer, once.
fn give(answer: &mut Option<oneshot::Sender<Outcome>>, outcome: Outcome) {
    if let Some(answer) = answer.take() {
        // Whoever takes it lives as long as the session.
        let _ = answer.send(outcome);
    }
}
