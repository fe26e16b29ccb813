//! Commands to the services and their events: plain types that the session maps to messages.

use std::fmt;
use std::pin::Pin;

use tokio::time::Instant;

use crate::wire::{AppEntry, ModelServiceRequest, ModelStatus, ServiceOutcome, ServiceRequest};

/// A command of the session.
#[derive(Debug)]
pub(crate) enum ServiceCommand {
    /// Start a service.
    Start(StartService),
    /// A start request whose response is computed elsewhere; it only takes its turn in the queue.
    Managed(PendingAnswer),
    /// Start a model service.
    StartModel(StartModel),
    /// Stop the service of this name.
    Stop(String),
    /// List the services that can be started, or only this one.
    ListApps(Option<String>),
}

impl ServiceCommand {
    /// A start request whose response is computed elsewhere, by this deadline.
    pub(crate) fn managed(answer: impl Future<Output = ServiceOutcome> + Send + 'static, deadline: Instant) -> Self {
        Self::Managed(PendingAnswer { answer: Box::pin(answer), deadline })
    }
}

/// A future response with its deadline.
pub(crate) struct PendingAnswer {
    pub(super) answer: Pin<Box<dyn Future<Output = ServiceOutcome> + Send>>,
    pub(super) deadline: Instant,
}

impl fmt::Debug for PendingAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingAnswer")
    }
}

/// A request to start a service.
#[derive(Debug)]
pub(crate) struct StartService {
    /// What the agent asked for.
    pub request: ServiceRequest,
    /// When the request arrived.
    pub at: Instant,
}

/// A request to start a model service.
#[derive(Debug)]
pub(crate) struct StartModel {
    /// What the agent asked for.
    pub request: ModelServiceRequest,
    /// When the request arrived.
    pub at: Instant,
}

/// A response, or a change of health.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ServiceEvent {
    /// The response to a [`StartService`].
    Service(ServiceOutcome),
    /// The response to a [`StartModel`].
    Model(ServiceOutcome),
    /// The health of a model service changed.
    Health(ModelStatus),
    /// The response to [`ServiceCommand::ListApps`].
    Apps(Vec<AppEntry>),
}
