//! Commands to the services and their events: plain types that the session maps to messages.

use std::fmt;
use std::pin::Pin;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::definition::Definition;

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
    pub(crate) fn managed(answer: impl Future<Output = StartOutcome> + Send + 'static, deadline: Instant) -> Self {
        Self::Managed(PendingAnswer { answer: Box::pin(answer), deadline })
    }
}

/// A future response with its deadline.
pub(crate) struct PendingAnswer {
    pub(super) answer: Pin<Box<dyn Future<Output = StartOutcome> + Send>>,
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
    /// The service's name, that of its definition.
    pub name: String,
    /// The port that has to open; `None` for the first of `ports`.
    pub port: Option<u16>,
    /// All ports of the service.
    pub ports: Vec<u16>,
    /// The protocol; nothing is started for `preopen`, and `pty` is not supported.
    pub protocol: String,
    /// The user's `arguments` and `envs`.
    pub options: Map<String, Value>,
    /// How many seconds the agent waits for the response, if it says so.
    pub launch_timeout: Option<f64>,
    /// When the request arrived.
    pub at: Instant,
}

/// A request to start a model service.
#[derive(Debug)]
pub(crate) struct StartModel {
    /// The model's name.
    pub name: String,
    /// The model's directory.
    pub model_path: Option<String>,
    /// The agent's description of the service.
    pub service: Value,
    /// When the request arrived.
    pub at: Instant,
}

/// A response, or a change of health.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ServiceEvent {
    /// The response to a [`StartService`].
    Service(StartOutcome),
    /// The response to a [`StartModel`].
    Model(StartOutcome),
    /// The health of a model service changed.
    Health {
        /// The model's name.
        name: String,
        /// The new health.
        is_healthy: bool,
    },
    /// The response to [`ServiceCommand::ListApps`].
    Apps(Vec<AppInfo>),
}

/// The outcome of a start request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartOutcome {
    /// The service was started.
    Started,
    /// The service was already running.
    Running,
    /// The service is not running, or not yet, and why.
    Failed(String),
}

/// A service as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppInfo {
    /// The service's name.
    pub name: String,
    /// Template of the URL; empty for the default.
    pub url_template: String,
    /// Flags that the user may give.
    pub allowed_arguments: Vec<String>,
    /// Environment variables that the user may set.
    pub allowed_envs: Vec<String>,
}

impl AppInfo {
    pub(super) fn of(name: &str, definition: &Definition) -> Self {
        Self {
            name: name.to_owned(),
            url_template: definition.url_template.clone(),
            allowed_arguments: definition.allowed_arguments.clone(),
            allowed_envs: definition.allowed_envs.clone(),
        }
    }
}
