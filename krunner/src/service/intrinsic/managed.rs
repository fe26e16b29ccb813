//! A service that runs as long as the session: restarted when it exits, with a limit.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::backoff::Backoff;
use super::plan::ServicePlan;
use crate::error::chain;
use crate::process::{Control, Launcher};
use crate::service::{ProcessPhase, ServiceProcess, ServiceStartError};

/// A service whose port has not opened by then gets a warning in the log.
const OPEN_DEADLINE: Duration = Duration::from_mins(1);

/// The state of a managed service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ManagedState {
    /// Being prepared or started, or waiting for its restart.
    Starting,
    /// Its port is open.
    Ready,
    /// Not restarted any more, and why.
    Stopped(String),
}

/// A handle on a service. Dropping it does not stop the service.
pub(crate) struct ManagedService {
    control: Control,
    state: watch::Receiver<ManagedState>,
}

impl ManagedService {
    /// Starts the service when its plan is ready, and restarts it when it exits. The plan logs its own problems; its error is the
    /// response to later start requests. It must end soon after its control was terminated.
    pub(crate) fn start<P>(launcher: &Launcher, plan: impl FnOnce(Control) -> P) -> Self
    where
        P: Future<Output = Result<ServicePlan, super::plan_error::PlanError>> + Send + 'static,
    {
        let control = Control::new();
        let (tell, state) = watch::channel(ManagedState::Starting);
        let restart_loop = RestartLoop { launcher: launcher.clone(), control: control.clone(), tell };
        let plan = plan(control.clone());
        launcher.tasks.spawn("kept service", async move {
            let end = match plan.await {
                Ok(plan) => restart_loop.run(&plan).await,
                Err(error) => chain(&error),
            };
            restart_loop.tell.send_replace(ManagedState::Stopped(end));
        });
        Self { control, state }
    }

    /// The current state.
    #[must_use]
    pub(crate) fn state(&self) -> ManagedState {
        self.state.borrow().clone()
    }

    /// Waits until the service is ready or stopped; the state at the deadline. The handle may be dropped meanwhile.
    pub(crate) fn settled(&self, deadline: Instant) -> impl Future<Output = ManagedState> + Send + 'static {
        let mut state = self.state.clone();
        async move {
            let _ = timeout_at(deadline, state.wait_for(|state| *state != ManagedState::Starting)).await;
            state.borrow().clone()
        }
    }

    /// Stops the service for good: SIGTERM to its process group, SIGKILL after two seconds.
    pub(crate) fn stop(&self) {
        self.control.terminate();
    }

    /// Whether [`Self::stop`] was called.
    #[must_use]
    pub(crate) fn is_stopping(&self) -> bool {
        self.control.is_terminated()
    }

    /// Waits until the service is stopped. The handle may be dropped meanwhile.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.state.clone();
        async move {
            // An error means that the restart_loop is gone, and nothing comes back.
            let _ = state.wait_for(|state| matches!(state, ManagedState::Stopped(_))).await;
        }
    }
}

struct RestartLoop {
    launcher: Launcher,
    control: Control,
    tell: watch::Sender<ManagedState>,
}

impl RestartLoop {
    /// Runs until the service is not restarted any more; returns the reason.
    async fn run(&self, plan: &ServicePlan) -> String {
        let launch = &plan.launch;
        let name = &launch.name;
        let mut backoff = Backoff::default();
        while !self.control.is_terminated() {
            plan.restore_files().await;
            let begun = Instant::now();
            match ServiceProcess::start(&self.launcher, launch, &self.control).await {
                Ok(service) => self.follow(service, name).await,
                Err(ServiceStartError::Stopped) => {}
                Err(error) => tracing::warn!("cannot start {name}: {}", chain(&error)),
            }
            if self.control.is_terminated() {
                break;
            }
            self.tell.send_replace(ManagedState::Starting);
            let Some(pause) = backoff.after(begun.elapsed()) else {
                tracing::error!("{name} is not restarted: it exited too often");
                return format!("{name} exited too often");
            };
            tracing::info!("restarting {name} in {} s", pause.as_secs());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.control.terminated() => break,
            }
        }
        format!("{name} was stopped")
    }

    /// Watches the process until it exits.
    async fn follow(&self, mut service: ServiceProcess, name: &str) {
        match service.settled(Instant::now() + OPEN_DEADLINE).await {
            ProcessPhase::Listening => _ = self.tell.send_replace(ManagedState::Ready),
            ProcessPhase::Starting => tracing::warn!("{name} is running, but its port has not opened"),
            ProcessPhase::Exited(_) => {}
        }
        service.ended().await;
    }
}
