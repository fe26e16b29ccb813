//! The services of a session: those that the agent defines, and sshd and ttyd, which every session has.
//!
//! ```text
//! request for sshd, ttyd ─▶ Intrinsic (EarlyRequests until it is prepared) ─┐ a future of the outcome
//! other requests ─────────────────────────────────────────────────────────▶ Services ─▶ replies in order
//! ```

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::intrinsic::{EarlyRequests, Intrinsic, is_intrinsic};
use super::service_replies;
use crate::service::{
    DEFAULT_RESPONSE_TIMEOUT, ServiceCommand, Services, ServicesBusy, StartModel, StartProgress, StartService,
};
use crate::wire::{ModelServiceRequest, Reply, ServiceRequest};

/// The services of a session.
pub(super) struct SessionServices {
    services: Services,
    /// sshd and ttyd, once their preparation has started.
    intrinsic: Option<Intrinsic>,
    early_requests: EarlyRequests,
    startup: watch::Receiver<StartProgress>,
}

impl SessionServices {
    pub(super) fn new(services: Services, startup: watch::Receiver<StartProgress>) -> Self {
        Self { services, intrinsic: None, early_requests: EarlyRequests::default(), startup }
    }

    /// Takes over sshd and ttyd, with the requests for them so far.
    pub(super) fn prepared(&mut self, intrinsic: Intrinsic) {
        self.early_requests.pass_on(self.intrinsic.insert(intrinsic));
    }

    /// sshd and ttyd, once they are prepared.
    pub(super) fn intrinsic(&self) -> Option<&Intrinsic> {
        self.intrinsic.as_ref()
    }

    /// What the session's start waits for.
    pub(super) fn pending(&self) -> &'static str {
        self.startup.borrow().phase.pending().unwrap_or("sshd or ttyd")
    }

    /// Starts a service. Returns the reply if the request is refused, as the other requests do.
    pub(super) fn start(&mut self, request: ServiceRequest) -> Option<Reply> {
        let command = if is_intrinsic(&request) {
            let deadline = Instant::now() + DEFAULT_RESPONSE_TIMEOUT;
            let outcome = match &mut self.intrinsic {
                Some(intrinsic) => intrinsic.request(&request.name, deadline),
                None => Some(self.early_requests.request(&request.name, deadline)),
            };
            outcome.map(|outcome| ServiceCommand::managed(outcome, deadline))
        } else {
            None
        };
        self.order(command.unwrap_or_else(|| ServiceCommand::Start(StartService { request, at: Instant::now() })))
    }

    /// Starts a model service.
    pub(super) fn start_model(&self, request: ModelServiceRequest) -> Option<Reply> {
        self.order(ServiceCommand::StartModel(StartModel { request, at: Instant::now() }))
    }

    /// Stops a service.
    pub(super) fn stop(&mut self, name: String) -> Option<Reply> {
        let is_intrinsic = match &mut self.intrinsic {
            Some(intrinsic) => intrinsic.shut_down(&name),
            None => self.early_requests.shut_down(&name),
        };
        if is_intrinsic {
            return None;
        }
        self.order(ServiceCommand::Stop(name))
    }

    /// Lists the services, or the one with this name.
    pub(super) fn list(&self, name: Option<String>) -> Option<Reply> {
        self.order(ServiceCommand::ListApps(name))
    }

    fn order(&self, command: ServiceCommand) -> Option<Reply> {
        let busy = self.services.order(command).err()?;
        tracing::warn!("request refused: {busy}");
        let ServicesBusy(command) = &busy;
        service_replies::refusal(command, &busy.to_string())
    }

    /// The next reply or change of health.
    pub(super) async fn next(&mut self) -> Reply {
        service_replies::reply(self.services.next().await)
    }

    /// Starts to stop all services; resolves to `false` if some still run at the deadline.
    pub(super) fn shut_down(&self, deadline: Duration) -> impl Future<Output = bool> + use<> {
        self.intrinsic.iter().for_each(Intrinsic::stop);
        self.services.stop(deadline)
    }
}
