//! sshd and ttyd, the services of every session, as the session sees them.
//!
//! The ssh keys are installed before the bootstrap script, which may add to them. The servers start after the script,
//! which may install their programs. Only the script waits for the keys.

use std::pin::Pin;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::process::Control;
use crate::service::StartOutcome;
use crate::service::intrinsic::{ManagedService, ManagedState, Planner, SSHD, TTYD};
use crate::wire::ServiceRequest;

/// The outcome of a request, when it is known.
pub(super) type PendingOutcome = Pin<Box<dyn Future<Output = StartOutcome> + Send>>;

const STILL_STARTING: &str = "still starting";

/// The two services, sshd and ttyd.
pub(super) struct Intrinsic {
    planner: Planner,
    sshd: ManagedService,
    ttyd: ManagedService,
    begin: Vec<oneshot::Sender<()>>,
}

impl Intrinsic {
    /// Starts the preparation. The receiver resolves when the keys are in place or the preparation failed.
    pub(super) fn prepare(planner: Planner) -> (Self, oneshot::Receiver<()>) {
        let (placed_tx, placed) = oneshot::channel();
        let (begin_sshd, sshd_may_begin) = oneshot::channel();
        let (begin_ttyd, ttyd_may_begin) = oneshot::channel();
        let plan = planner.clone();
        let sshd = ManagedService::start(planner.launcher(), |control| async move {
            let launch = plan.sshd(control.clone()).await;
            let _ = placed_tx.send(());
            wait_for_start(sshd_may_begin, &control).await;
            launch
        });
        let plan = planner.clone();
        let ttyd = ManagedService::start(planner.launcher(), |control| async move {
            wait_for_start(ttyd_may_begin, &control).await;
            plan.ttyd().await
        });
        (Self { planner, sshd, ttyd, begin: vec![begin_sshd, begin_ttyd] }, placed)
    }

    /// Allows the servers to start.
    pub(super) fn begin(&mut self) {
        for begin in self.begin.drain(..) {
            // Fails if the plan has failed, which drops the receiver.
            let _ = begin.send(());
        }
    }

    /// Waits until each service listens or has failed; returns the names of those still starting at the deadline.
    pub(super) fn settled(&self, deadline: Instant) -> impl Future<Output = Vec<&'static str>> + Send + 'static {
        let (sshd, ttyd) = (self.sshd.settled(deadline), self.ttyd.settled(deadline));
        async move {
            let (sshd, ttyd) = tokio::join!(sshd, ttyd);
            let states = [(SSHD, sshd), (TTYD, ttyd)];
            states.into_iter().filter(|(_, state)| *state == ManagedState::Starting).map(|(name, _)| name).collect()
        }
    }

    /// The reply to a request for one of the services; `None` for another name. A stopped service is started again.
    pub(super) fn request(&mut self, name: &str, deadline: Instant) -> Option<PendingOutcome> {
        let (planner, launcher) = (self.planner.clone(), self.planner.launcher().clone());
        let service = self.named(name)?;
        if service.is_stopping() || matches!(service.state(), ManagedState::Stopped(_)) {
            let before = service.stopped();
            *service = match name {
                SSHD => ManagedService::start(&launcher, |control| async move {
                    before.await;
                    planner.sshd(control).await
                }),
                _ => ManagedService::start(&launcher, |_| async move {
                    before.await;
                    planner.ttyd().await
                }),
            };
        }
        let runs = service.state() == ManagedState::Ready;
        let settled = service.settled(deadline);
        Some(Box::pin(async move {
            match settled.await {
                ManagedState::Ready if runs => StartOutcome::Running,
                ManagedState::Ready => StartOutcome::Started,
                ManagedState::Starting => StartOutcome::Failed(STILL_STARTING.to_owned()),
                ManagedState::Stopped(reason) => StartOutcome::Failed(reason),
            }
        }))
    }

    /// Stops one of the services; `false` for another name.
    pub(super) fn shut_down(&mut self, name: &str) -> bool {
        self.named(name).is_some_and(|service| {
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

    fn named(&mut self, name: &str) -> Option<&mut ManagedService> {
        match name {
            SSHD => Some(&mut self.sshd),
            TTYD => Some(&mut self.ttyd),
            _ => None,
        }
    }
}

/// Requests for sshd and ttyd that arrived before the services are prepared.
#[derive(Default)]
pub(super) struct EarlyRequests(Vec<EarlyRequest>);

struct EarlyRequest {
    name: String,
    deadline: Instant,
    pass_on: oneshot::Sender<PendingOutcome>,
}

impl EarlyRequests {
    /// Resolves to the outcome, or to "still starting" at the deadline.
    pub(super) fn request(&mut self, name: &str, deadline: Instant) -> PendingOutcome {
        let (pass_on, passed_on) = oneshot::channel();
        self.0.retain(|request| !request.pass_on.is_closed());
        self.0.push(EarlyRequest { name: name.to_owned(), deadline, pass_on });
        Box::pin(async move {
            match timeout_at(deadline, passed_on).await {
                Ok(Ok(answer)) => answer.await,
                _ => StartOutcome::Failed(format!("{STILL_STARTING}: the session is not ready yet")),
            }
        })
    }

    /// Passes the requests on to the services.
    pub(super) fn pass_on(&mut self, intrinsic: &mut Intrinsic) {
        for request in self.0.drain(..) {
            if let Some(answer) = intrinsic.request(&request.name, request.deadline) {
                // Fails if the request was already answered at its deadline.
                let _ = request.pass_on.send(answer);
            }
        }
    }
}

/// Whether a request is for one of these services.
pub(super) fn is_intrinsic(request: &ServiceRequest) -> bool {
    matches!(request.name.as_str(), SSHD | TTYD) && request.protocol != "preopen"
}

/// Waits until the server may start, or until it is terminated before that.
async fn wait_for_start(may_begin: oneshot::Receiver<()>, control: &Control) {
    tokio::select! {
        _ = may_begin => {}
        () = control.terminated() => {}
    }
}
