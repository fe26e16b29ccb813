//! The JSON shapes that travel inside messages.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The payload of `start-service`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ServiceRequest {
    /// Name of the service, e.g. `jupyterlab`.
    pub name: String,
    /// The container port the agent waits for.
    #[serde(default)]
    pub port: Option<u16>,
    /// All container ports of the service.
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<u16>,
    /// `http`, `tcp`, `pty` or `preopen`.
    #[serde(default, deserialize_with = "nullable")]
    pub protocol: String,
    /// What the user asked for: `arguments` and `envs`.
    #[serde(default, deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    /// How many seconds the agent waits for the answer.
    #[serde(default)]
    pub launch_timeout: Option<f64>,
}

/// Treats null as absent, because some clients send it.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The payload of `start-model-service`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ModelServiceRequest {
    /// Name of the model.
    pub name: String,
    /// Folder of the model, the service's working directory.
    #[serde(default)]
    pub model_path: Option<String>,
    /// How to start it and how to see that it is healthy.
    #[serde(default)]
    pub service: Value,
}

/// The answer to `start-service` and `start-model-service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(crate) enum ServiceOutcome {
    /// It was started.
    Started,
    /// It was already running.
    Running,
    /// It could not be started.
    Failed {
        /// Shown to the user.
        error: String,
    },
}

impl ServiceOutcome {
    /// A failure with its reason.
    pub(crate) fn failed(error: impl Into<String>) -> Self {
        Self::Failed { error: error.into() }
    }
}

/// One entry of `apps-result`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AppEntry {
    /// Name to start it by.
    pub name: String,
    /// URL pattern of the service, if its definition has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_template: Option<String>,
    /// Command line arguments the user may set, with their defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_arguments: Option<Value>,
    /// Variables the user may set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_envs: Option<Value>,
}

/// The payload of `model-service-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ModelStatus {
    /// Name of the model.
    pub model_name: String,
    /// The result of the latest health check.
    pub is_healthy: bool,
}

/// The payload of `waiting-input` when the prompt has properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct InputOptions {
    /// The typed text should not be shown.
    pub is_password: bool,
}
