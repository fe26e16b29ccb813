//! What is asked of the services, and what they tell: plain types, for the session to map to messages.

use std::fmt;
use std::pin::Pin;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::definition::Definition;

/// Something to do.
#[derive(Debug)]
pub enum Order {
    /// Start a service.
    Service(ServiceOrder),
    /// A service that somebody else keeps: only the answer takes its turn here.
    Kept(KeptAnswer),
    /// Start a model service.
    Model(ModelOrder),
    /// Stop the service of this name.
    Stop(String),
    /// List the services that can be started, or this one.
    Apps(Option<String>),
}

impl Order {
    /// An order whose answer is found elsewhere, within the time that an answer may take.
    pub fn kept(answer: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self::Kept(KeptAnswer(Box::pin(answer)))
    }
}

/// An answer that is on its way.
pub struct KeptAnswer(pub(super) Pin<Box<dyn Future<Output = Outcome> + Send>>);

impl fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptAnswer")
    }
}

/// To start a service.
#[derive(Debug)]
pub struct ServiceOrder {
    /// Its name.
    pub name: String,
    /// The port that is waited for; the first of `ports` when it is not said.
    pub port: Option<u16>,
    /// All of its ports.
    pub ports: Vec<u16>,
    /// `preopen` and `pty` are treated apart.
    pub protocol: String,
    /// `arguments` and `envs`.
    pub options: Map<String, Value>,
    /// When it arrived.
    pub at: Instant,
}

/// To start a model service.
#[derive(Debug)]
pub struct ModelOrder {
    /// Of the model.
    pub name: String,
    /// Where its files are.
    pub model_path: Option<String>,
    /// What the agent says of the service.
    pub service: Value,
    /// When it arrived.
    pub at: Instant,
}

/// What is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The answer to a [`ServiceOrder`].
    Service(Outcome),
    /// The answer to a [`ModelOrder`].
    Model(Outcome),
    /// The health of a model service has changed.
    Health {
        /// Of the model.
        name: String,
        /// What it is now.
        is_healthy: bool,
    },
    /// The answer to [`Order::Apps`].
    Apps(Vec<AppInfo>),
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It runs now.
    Started,
    /// It ran already.
    Running,
    /// It does not run, or not yet, and why.
    Failed(String),
}

/// What clients may know of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppInfo {
    /// Its name.
    pub name: String,
    /// How its URL is made; empty when it has no own way.
    pub url_template: String,
    /// Flags that a user may give.
    pub allowed_arguments: Vec<String>,
    /// Variables that a user may set.
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
