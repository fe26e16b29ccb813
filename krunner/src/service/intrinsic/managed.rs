//! A service that runs as long as the session, as a job of the supervisor: restarted when it exits, with a limit.

use std::time::Duration;

use tokio::time::timeout;

use super::plan::ServicePlan;
use super::plan_error::PlanError;
use crate::error::chain;
use crate::process::{Control, Launcher};
use crate::supervisor::{
    Attempt, AttemptEnd, Backoff, ChildReadiness, Job, JobState, PortReadiness, PortTaken, ProgramStartError, Progress,
    RestartPolicy, SupervisedProgram,
};

/// A service whose port has not opened by then gets a warning in the log.
const OPEN_DEADLINE: Duration = Duration::from_mins(1);

/// A service that ran for a minute started properly. About five minutes of attempts: a busy port or a full disk will not go
/// away after that.
const RESTARTS: RestartPolicy = RestartPolicy::Always(Backoff {
    healthy_after: Duration::from_mins(1),
    after_healthy: Duration::from_secs(1),
    first: Duration::from_secs(1),
    longest: Duration::from_mins(1),
    limit: Some(10),
});

/// Why a service does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ManagedEnd {
    /// It cannot be started, and why.
    Failed(String),
    /// Its process exited or did not start; the log says why.
    Exited,
}

/// The state of a managed service.
pub(crate) type ManagedState = JobState<(), ManagedEnd>;

type ManagedProgress = Progress<(), ManagedEnd>;

/// A handle on a service. Clones refer to the same one; dropping it does not stop the service.
pub(crate) type ManagedService = Job<(), ManagedEnd>;

/// Starts the service as planned, and restarts it when it exits. The plan logs its own problems; its error is the response
/// to later start requests. It must end soon after its control was terminated.
pub(crate) fn start_managed<P, F>(launcher: &Launcher, name: &'static str, plan: P) -> ManagedService
where
    P: Fn(Control) -> F + Send + Sync + 'static,
    F: Future<Output = Result<ServicePlan, PlanError>> + Send + 'static,
{
    let attempt = ManagedAttempt { launcher: launcher.clone(), plan, planned: None };
    Job::spawn(&launcher.tasks, name, name, RESTARTS, attempt)
}

struct ManagedAttempt<P> {
    launcher: Launcher,
    plan: P,
    /// Kept for restarts: a program that is missing for a moment, on a network mount, is tried again.
    planned: Option<ServicePlan>,
}

impl<P, F> Attempt for ManagedAttempt<P>
where
    P: Fn(Control) -> F + Send + Sync + 'static,
    F: Future<Output = Result<ServicePlan, PlanError>> + Send + 'static,
{
    type Ready = ();
    type End = ManagedEnd;

    async fn run(&mut self, progress: &ManagedProgress) -> AttemptEnd<ManagedEnd> {
        let plan = match self.planned.take() {
            Some(plan) => plan,
            None => match (self.plan)(progress.control().clone()).await {
                Ok(plan) => plan,
                Err(error) => return AttemptEnd::Final(ManagedEnd::Failed(chain(&error))),
            },
        };
        match self.run_program(&plan, progress).await {
            Ok(()) | Err(StartError::Program(ProgramStartError::Stopped)) => {}
            Err(error) => tracing::warn!("cannot start {}: {}", plan.launch.name, chain(&error)),
        }
        self.planned = Some(plan);
        AttemptEnd::Ended(ManagedEnd::Exited)
    }
}

impl<P> ManagedAttempt<P> {
    /// Runs the program until it exits.
    async fn run_program(&self, plan: &ServicePlan, progress: &ManagedProgress) -> Result<(), StartError> {
        if progress.control().is_terminated() {
            return Ok(());
        }
        plan.restore_files().await;
        let port = match plan.port {
            Some(port) => Some(PortReadiness::of_free_port(port).await?),
            None => None,
        };
        let program = SupervisedProgram::start(&self.launcher, &plan.launch, progress.control()).await?;
        program.watch(OrWarning { name: &plan.launch.name, readiness: port }, (), progress).await;
        Ok(())
    }
}

/// Why a service's program was not started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Port(#[from] PortTaken),
    #[error(transparent)]
    Program(#[from] ProgramStartError),
}

/// Warns once of a service that takes too long to become ready.
struct OrWarning<'a, R> {
    name: &'a str,
    readiness: R,
}

impl<R: ChildReadiness> ChildReadiness for OrWarning<'_, R> {
    async fn ready(self) {
        let ready = self.readiness.ready();
        tokio::pin!(ready);
        if timeout(OPEN_DEADLINE, &mut ready).await.is_err() {
            tracing::warn!("{} is running, but its port has not opened", self.name);
            ready.await;
        }
    }
}
