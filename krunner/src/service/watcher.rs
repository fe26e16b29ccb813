//! Watches a model service: first the response to its request, then its health.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::command::ServiceEvent;
use super::job::{BEING_STOPPED, ServiceEnd, ServiceHandle, ServiceOrigin};
use super::model::{HealthCheck, HealthTracker, ProbeResult};
use super::probe::Probe;
use super::response_queue::Delivered;
use crate::supervisor::{JobState, StartStage};
use crate::wire::{ModelStatus, ServiceOutcome};

/// Older agents wait for the first success, so the first probes come faster.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// A model service that exits within this time counts as not started.
const MODEL_GRACE: Duration = Duration::from_millis(300);

/// Watches one model service.
pub(super) struct ModelWatcher {
    /// The model's name.
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) job: ServiceHandle,
    pub(super) events: mpsc::Sender<ServiceEvent>,
    /// Health events follow the response.
    pub(super) delivered: Delivered,
}

impl ModelWatcher {
    /// Responds by the deadline, then reports changes of health until the process exits.
    pub(super) async fn run(
        self,
        check: Option<HealthCheck>,
        deadline: Instant,
        answer: oneshot::Sender<ServiceOutcome>,
    ) {
        let window = check.as_ref().and_then(|check| check.health_in_response);
        // An agent that waits for the health waits for the actions as well.
        let outcome = self.started(deadline + window.unwrap_or_default()).await;
        let is_undecided = window.is_some() && outcome == ServiceOutcome::Started;
        let is_late = matches!(outcome, ServiceOutcome::Failed { .. });
        let mut answer = Some(answer);
        if !is_undecided {
            give(&mut answer, outcome);
        }
        if is_late {
            self.job.wait_out_grace(MODEL_GRACE).await;
        }
        match check {
            _ if self.job.state().is_stopped() => {}
            Some(check) => self.watch(&check, answer).await,
            // Without a health check the service counts as healthy.
            None if self.job.is_stopping() => {}
            None => self.tell(true).await,
        }
    }

    /// The outcome of the start, as far as it is known at the deadline.
    async fn started(&self, deadline: Instant) -> ServiceOutcome {
        match self.job.wait_out_preparation(deadline).await {
            JobState::Starting(StartStage::Waiting(what)) => {
                return ServiceOutcome::failed(format!("still starting: waiting for {what}"));
            }
            JobState::Ready(ServiceOrigin::AlreadyRunning) => return ServiceOutcome::Running,
            // How it ended is better than that it is being stopped.
            JobState::Stopping => _ = timeout_at(deadline, self.job.stopped()).await,
            _ => {}
        }
        match self.job.wait_out_grace(MODEL_GRACE).await {
            JobState::Stopped { end: ServiceEnd::Failed(problem), .. } => ServiceOutcome::failed(problem),
            JobState::Stopped { end: ServiceEnd::Exited(exit), .. } => {
                ServiceOutcome::failed(format!("the process did not start properly: {exit}"))
            }
            JobState::Stopping => ServiceOutcome::failed(BEING_STOPPED),
            _ => ServiceOutcome::Started,
        }
    }

    async fn watch(self, check: &HealthCheck, mut answer: Option<oneshot::Sender<ServiceOutcome>>) {
        let mut health = HealthTracker::new(check.retries);
        let probe = Probe {
            port: self.port,
            target: check.target.clone(),
            expected_status: check.expected_status,
            patience: check.patience,
        };
        let begun = Instant::now();
        // Failures before this do not count.
        let grace_ends = begun + check.initial_delay;
        let window_ends = begun + check.health_in_response.filter(|_| answer.is_some()).unwrap_or_default();
        let mut pause = Duration::ZERO;
        loop {
            let seen = tokio::select! {
                () = self.job.stopped() => ProbeResult::Exited,
                seen = look(&probe, pause, &self.name) => seen,
            };
            let is_early = Instant::now() < if answer.is_some() { window_ends.max(grace_ends) } else { grace_ends };
            if seen != ProbeResult::Failure || !is_early {
                give(&mut answer, self.verdict(seen));
                if let Some(is_healthy) = health.record(seen) {
                    self.tell(is_healthy).await;
                }
            }
            if seen == ProbeResult::Exited {
                return;
            }
            pause = if answer.is_some() { check.interval.min(FIRST_INTERVAL) } else { check.interval };
        }
    }

    /// The response to an agent that waits for the first result.
    fn verdict(&self, seen: ProbeResult) -> ServiceOutcome {
        match (seen, self.job.state()) {
            (ProbeResult::Success, _) => ServiceOutcome::Started,
            (ProbeResult::Failure, _) => ServiceOutcome::failed("service unhealthy"),
            (ProbeResult::Exited, JobState::Stopped { end: ServiceEnd::Exited(exit), .. }) => {
                ServiceOutcome::failed(format!("the process did not start properly: {exit}"))
            }
            (ProbeResult::Exited, _) => ServiceOutcome::failed("the process exited"),
        }
    }

    async fn tell(&self, is_healthy: bool) {
        self.delivered.wait().await;
        // The receiver lives as long as this task.
        let _ = self.events.send(ServiceEvent::Health(ModelStatus { model_name: self.name.clone(), is_healthy })).await;
    }
}

/// One probe, after a pause.
async fn look(probe: &Probe, pause: Duration, name: &str) -> ProbeResult {
    sleep(pause).await;
    match probe.ask().await {
        Ok(()) => ProbeResult::Success,
        Err(error) => {
            tracing::debug!("model service {name} is unhealthy: {}", crate::error::chain(&error));
            ProbeResult::Failure
        }
    }
}

/// Sends the response, once.
fn give(answer: &mut Option<oneshot::Sender<ServiceOutcome>>, outcome: ServiceOutcome) {
    if let Some(answer) = answer.take() {
        // The receiver lives as long as the session.
        let _ = answer.send(outcome);
    }
}
