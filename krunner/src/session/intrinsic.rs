//! sshd and ttyd, the services of every session, as the session sees them.
//!
//! The ssh keys are installed before the bootstrap script, which may add to them. The servers start after the script,
//! which may install their programs. Only the script waits for the keys.

use std::pin::Pin;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::process::Control;
use crate::service::intrinsic::{
    ManagedEnd, ManagedService, ManagedState, PlanError, Planner, SSHD, ServicePlan, TTYD, start_managed,
};
use crate::wire::{ServiceOutcome, ServiceRequest};

/// The outcome of a request, when it is known.
pub(super) type PendingOutcome = Pin<Box<dyn Future<Output = ServiceOutcome> + Send>>;

const STILL_STARTING: &str = "still starting";

/// The two services, sshd and ttyd.
pub(super) struct Intrinsic {
    start: ServiceStart,
    sshd: ManagedService,
    ttyd: ManagedService,
}

impl Intrinsic {
    /// Starts the preparation. The token is cancelled when the keys are in place or the preparation failed.
    pub(super) fn prepare(planner: Planner) -> (Self, CancellationToken) {
        let placed = CancellationToken::new();
        let start =
            ServiceStart { planner, placed: placed.clone(), begin: CancellationToken::new(), predecessor: None };
        let (sshd, ttyd) = (start.clone().run(SSHD), start.clone().run(TTYD));
        (Self { start, sshd, ttyd }, placed)
    }

    /// Allows the servers to start.
    pub(super) fn begin(&self) {
        self.start.begin.cancel();
    }

    /// Waits until each service listens or has failed; returns the names of those still starting at the deadline.
    pub(super) fn settled(&self, deadline: Instant) -> impl Future<Output = Vec<&'static str>> + Send + 'static {
        let (sshd, ttyd) = (settled_by(&self.sshd, deadline), settled_by(&self.ttyd, deadline));
        async move {
            let (sshd, ttyd) = tokio::join!(sshd, ttyd);
            let states = [(SSHD, sshd), (TTYD, ttyd)];
            states.into_iter().filter(|(_, state)| state.is_starting()).map(|(name, _)| name).collect()
        }
    }

    /// The reply to a request for one of the services; `None` for another name. A stopped service is started again.
    pub(super) fn request(&mut self, name: &str, deadline: Instant) -> Option<PendingOutcome> {
        let start = self.start.clone();
        let (name, service) = self.named(name)?;
        if service.is_stopping() || service.state().is_stopped() {
            // Its task ends; it would wait for its next start.
            service.stop();
            *service = ServiceStart { predecessor: Some(service.clone()), ..start }.run(name);
        }
        let runs = service.state().is_ready();
        let settled = settled_by(service, deadline);
        Some(Box::pin(async move {
            match settled.await {
                ManagedState::Ready(()) if runs => ServiceOutcome::Running,
                ManagedState::Ready(()) => ServiceOutcome::Started,
                ManagedState::Starting(_) => ServiceOutcome::failed(STILL_STARTING),
                ManagedState::Stopped { end: ManagedEnd::Failed(reason), .. } => ServiceOutcome::failed(reason),
                ManagedState::Stopped { gave_up: true, .. } => {
                    ServiceOutcome::failed(format!("{name} exited too often"))
                }
                ManagedState::Stopping | ManagedState::Stopped { .. } => {
                    ServiceOutcome::failed(format!("{name} was stopped"))
                }
            }
        }))
    }

    /// Stops one of the services; `false` for another name.
    pub(super) fn shut_down(&mut self, name: &str) -> bool {
        self.named(name).is_some_and(|(_, service)| {
            service.stop();
            true
        })
    }

    /// Starts to stop both services.
    pub(super) fn stop(&self) {
        self.sshd.stop();
        self.ttyd.stop();
    }

    /// Waits until both have stopped; `false` at the deadline.
    pub(super) async fn over(&self, deadline: Instant) -> bool {
        let both = async { tokio::join!(self.sshd.stopped(), self.ttyd.stopped()) };
        timeout_at(deadline, both).await.is_ok()
    }

    fn named(&mut self, name: &str) -> Option<(&'static str, &mut ManagedService)> {
        match name {
            SSHD => Some((SSHD, &mut self.sshd)),
            TTYD => Some((TTYD, &mut self.ttyd)),
            _ => None,
        }
    }
}

/// Waits until the service is ready or stopped; the state at the deadline.
fn settled_by(
    service: &ManagedService,
    deadline: Instant,
) -> impl Future<Output = ManagedState> + Send + 'static + use<> {
    let service = service.clone();
    async move {
        let _ = timeout_at(deadline, service.settled()).await;
        service.state()
    }
}

/// What the start of one of the services waits for.
#[derive(Clone)]
struct ServiceStart {
    planner: Planner,
    /// Cancelled when the ssh keys are in place, or cannot be.
    placed: CancellationToken,
    /// Cancelled when the servers may start.
    begin: CancellationToken,
    /// The service that this one replaces.
    predecessor: Option<ManagedService>,
}

impl ServiceStart {
    fn run(self, name: &'static str) -> ManagedService {
        let launcher = self.planner.launcher().clone();
        start_managed(&launcher, name, move |control| self.clone().plan(name, control))
    }

    async fn plan(self, name: &'static str, control: Control) -> Result<ServicePlan, PlanError> {
        if let Some(predecessor) = self.predecessor {
            predecessor.stopped().await;
        }
        let may_begin = async {
            tokio::select! {
                () = self.begin.cancelled() => {}
                () = control.terminated() => {}
            }
        };
        if name == SSHD {
            let plan = self.planner.sshd(control.clone()).await;
            self.placed.cancel();
            may_begin.await;
            plan
        } else {
            may_begin.await;
            self.planner.ttyd().await
        }
    }
}

/// Requests for sshd and ttyd that arrived before the services are prepared.
#[derive(Default)]
pub(super) struct EarlyRequests(Vec<EarlyRequest>);

enum EarlyRequest {
    Start { name: String, deadline: Instant, pass_on: oneshot::Sender<PendingOutcome> },
    ShutDown { name: String },
}

impl EarlyRequest {
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Start { pass_on, .. } if pass_on.is_closed())
    }

    fn shuts_down(&self, service: &str) -> bool {
        matches!(self, Self::ShutDown { name } if name == service)
    }
}

impl EarlyRequests {
    /// Resolves to the outcome, or to "still starting" at the deadline.
    pub(super) fn request(&mut self, name: &str, deadline: Instant) -> PendingOutcome {
        let (pass_on, passed_on) = oneshot::channel();
        self.0.retain(|request| !request.is_abandoned());
        self.0.push(EarlyRequest::Start { name: name.to_owned(), deadline, pass_on });
        Box::pin(async move {
            match timeout_at(deadline, passed_on).await {
                Ok(Ok(answer)) => answer.await,
                _ => ServiceOutcome::failed(format!("{STILL_STARTING}: the session is not ready yet")),
            }
        })
    }

    /// Keeps a request to stop one of the services; `false` for another name.
    pub(super) fn shut_down(&mut self, name: &str) -> bool {
        let is_intrinsic = matches!(name, SSHD | TTYD);
        if is_intrinsic {
            // Only the last one decides whether the service runs.
            self.0.retain(|request| !request.shuts_down(name));
            self.0.push(EarlyRequest::ShutDown { name: name.to_owned() });
        }
        is_intrinsic
    }

    /// Passes the requests on to the services, in their order.
    pub(super) fn pass_on(&mut self, intrinsic: &mut Intrinsic) {
        for request in self.0.drain(..) {
            match request {
                EarlyRequest::Start { name, deadline, pass_on } => {
                    if let Some(answer) = intrinsic.request(&name, deadline) {
                        // Fails if the request was already answered at its deadline.
                        let _ = pass_on.send(answer);
                    }
                }
                EarlyRequest::ShutDown { name } => {
                    intrinsic.shut_down(&name);
                }
            }
        }
    }
}

/// Whether a request is for one of these services.
pub(super) fn is_intrinsic(request: &ServiceRequest) -> bool {
    matches!(request.name.as_str(), SSHD | TTYD) && request.protocol != "preopen"
}
