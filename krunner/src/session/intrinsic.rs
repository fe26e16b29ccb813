//! The services that come with the session, as the session sees them.
//!
//! The keys are put in their places before the bootstrap script, which may add to them; the servers start after it,
//! since it may install what they run. Neither holds up anything but that script.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::process::Control;
use crate::service::intrinsic::{Kept, Planner, SSHD, Status, TTYD};
use crate::service::{Order, Outcome};
use crate::wire::ServiceRequest;

/// The agent waits ten seconds for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_millis(8500);

const STILL_STARTING: &str = "still starting";

/// Both services.
pub(super) struct Intrinsic {
    planner: Planner,
    sshd: Kept,
    ttyd: Kept,
    begin: Vec<oneshot::Sender<()>>,
}

impl Intrinsic {
    /// Begins to prepare; the second value resolves when the keys are where they belong, or will never be.
    pub(super) fn prepare(planner: Planner) -> (Self, oneshot::Receiver<()>) {
        let (tell_placed, placed) = oneshot::channel();
        let (begin_sshd, sshd_may_begin) = oneshot::channel();
        let (begin_ttyd, ttyd_may_begin) = oneshot::channel();
        let plan = planner.clone();
        let sshd = Kept::start(planner.launcher(), |control| async move {
            let launch = plan.sshd(control.clone()).await;
            let _ = tell_placed.send(());
            gate(sshd_may_begin, &control).await;
            launch
        });
        let plan = planner.clone();
        let ttyd = Kept::start(planner.launcher(), |control| async move {
            gate(ttyd_may_begin, &control).await;
            plan.ttyd().await
        });
        (Self { planner, sshd, ttyd, begin: vec![begin_sshd, begin_ttyd] }, placed)
    }

    /// Lets the servers start.
    pub(super) fn begin(&mut self) {
        for begin in self.begin.drain(..) {
            // Nobody waits where the plan has failed.
            let _ = begin.send(());
        }
    }

    /// The answer to a request for one of the services; `None` if the name is another's. One that is over starts anew.
    fn request(&mut self, name: &str) -> Option<impl Future<Output = Outcome> + Send + 'static> {
        let (planner, launcher) = (self.planner.clone(), self.planner.launcher().clone());
        let kept = self.named(name)?;
        if kept.is_stopping() || matches!(kept.status(), Status::Over(_)) {
            let before = kept.over();
            *kept = match name {
                SSHD => Kept::start(&launcher, |control| async move {
                    before.await;
                    planner.sshd(control).await
                }),
                _ => Kept::start(&launcher, |_| async move {
                    before.await;
                    planner.ttyd().await
                }),
            };
        }
        let runs = kept.status() == Status::Open;
        let settled = kept.settled(Instant::now() + ANSWER_DEADLINE);
        Some(async move {
            match settled.await {
                Status::Open if runs => Outcome::Running,
                Status::Open => Outcome::Started,
                Status::Coming => Outcome::Failed(STILL_STARTING.to_owned()),
                Status::Over(reason) => Outcome::Failed(reason),
            }
        })
    }

    /// Ends one of the services; `false` if the name is another's.
    pub(super) fn shut_down(&mut self, name: &str) -> bool {
        self.named(name).is_some_and(|kept| {
            kept.stop();
            true
        })
    }

    /// Begins to end both.
    pub(super) fn stop(&self) {
        self.sshd.stop();
        self.ttyd.stop();
    }

    /// Waits until both are over; `false` when one is not at the deadline.
    pub(super) async fn over(&self, deadline: Instant) -> bool {
        let both = async { tokio::join!(self.sshd.over(), self.ttyd.over()) };
        timeout_at(deadline, both).await.is_ok()
    }

    fn named(&mut self, name: &str) -> Option<&mut Kept> {
        match name {
            SSHD => Some(&mut self.sshd),
            TTYD => Some(&mut self.ttyd),
            _ => None,
        }
    }
}

/// The order that a request for one of these services comes to: its answer takes its turn among the others'.
pub(super) fn order(intrinsic: &mut Option<Intrinsic>, request: &ServiceRequest) -> Option<Order> {
    if !matches!(request.name.as_str(), SSHD | TTYD) || request.protocol == "preopen" {
        return None;
    }
    match intrinsic {
        Some(intrinsic) => intrinsic.request(&request.name).map(Order::kept),
        None => Some(Order::kept(async { Outcome::Failed(STILL_STARTING.to_owned()) })),
    }
}

/// Waits for leave to begin, or for an end before the beginning.
async fn gate(may_begin: oneshot::Receiver<()>, control: &Control) {
    tokio::select! {
        _ = may_begin => {}
        () = control.terminated() => {}
    }
}
