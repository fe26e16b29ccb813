//! Model services: their description by the agent, and when one counts as healthy.
//!
//! ```text
//!            success                        success
//! Unknown ─────────────▶ Healthy ◀──────────────────────── Unhealthy
//!    │                      │  failures in a row > retries      ▲  │ its process ended
//!    │                      └────────────────────────────────────┤  ▼
//!    └── failures in a row > retries, or its process ended ──────┘ (final)
//! ```
//!
//! A success resets the count of failures. Failures during the initial delay do not count. Only changes are reported. Pure:
//! `watcher` has the probes and the clock.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::{InvalidUri, PathAndQuery};
use serde::Deserialize;
use serde_json::Value;

use super::action::Action;
use super::definition::{CommandLine, Definition, ShellChoice, command_line, nullable};
use crate::config::AgentVersion;

/// The agent's defaults, for values that are missing or null.
const RETRIES: u32 = 10;
const PROBE_SECONDS: f64 = 5.0;
const INTERVAL_SECONDS: f64 = 10.0;
const STATUS: u16 = 200;

/// A shorter interval would probe without a pause.
pub(super) const MIN_SECONDS: f64 = 0.1;
pub(super) const MAX_SECONDS: f64 = 24.0 * 3600.0;

/// A model service as requested.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelService {
    /// The model's name.
    pub(super) name: String,
    /// The model's directory, in which the process runs.
    pub(super) directory: Option<PathBuf>,
    /// Command and prestart actions.
    pub(super) definition: Definition,
    /// The port that the service listens on.
    pub(super) port: u16,
    /// `None` if the health is not checked.
    pub(super) check: Option<HealthCheck>,
}

/// The health check of a model service.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HealthCheck {
    /// Path and query of the probe.
    pub(super) target: PathAndQuery,
    /// Status of a healthy service.
    pub(super) expected_status: u16,
    /// Time between two probes.
    pub(super) interval: Duration,
    /// Timeout of a probe.
    pub(super) patience: Duration,
    /// Consecutive failures that are tolerated.
    pub(super) retries: u32,
    /// Failures do not count for this long after the start.
    pub(super) initial_delay: Duration,
    /// Agents of 23.3 take the response for the health, so it waits this long for the first success.
    pub(super) health_in_response: Option<Duration>,
}

#[derive(Deserialize)]
struct WrittenService {
    #[serde(default, deserialize_with = "command_line")]
    start_command: Option<CommandLine>,
    #[serde(default)]
    shell: ShellChoice,
    #[serde(default, deserialize_with = "nullable")]
    pre_start_actions: Vec<Action>,
    port: u16,
    #[serde(default)]
    health_check: Option<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
struct WrittenCheck {
    enable: Option<bool>,
    path: String,
    interval: Option<f64>,
    max_retries: Option<u32>,
    max_wait_time: Option<f64>,
    expected_status_code: Option<u16>,
    initial_delay: Option<f64>,
}

/// A mistake in the agent's description of a model service.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModelError {
    /// The request has no description.
    #[error("service info not provided")]
    NoService,
    /// A field of the description is missing or has another type.
    #[error("`service`")]
    Service(#[source] serde_json::Error),
    /// The description has no command.
    #[error("`service`: missing field `start_command`")]
    NoCommand,
    /// Port 0 stands for any port.
    #[error("`service`: port 0 is not valid")]
    PortZero,
    /// A field of the health check is missing or has another type.
    #[error("`health_check`")]
    HealthCheck(#[source] serde_json::Error),
    /// The path of the health check cannot be requested.
    #[error("`health_check`: invalid path {path:?}")]
    HealthPath {
        /// The path with its leading slash.
        path: String,
        /// What is invalid about it.
        #[source]
        source: InvalidUri,
    },
}

impl ModelService {
    /// Parses the agent's description.
    ///
    /// # Errors
    /// Names the missing or invalid field.
    pub(super) fn read(
        name: &str,
        model_path: Option<&str>,
        service: &Value,
        agent: Option<AgentVersion>,
    ) -> Result<Self, ModelError> {
        if service.is_null() {
            return Err(ModelError::NoService);
        }
        let written = WrittenService::deserialize(service).map_err(ModelError::Service)?;
        if written.start_command.is_none() {
            return Err(ModelError::NoCommand);
        } else if written.port == 0 {
            return Err(ModelError::PortZero);
        }
        let definition = Definition {
            command: written.start_command,
            shell: written.shell,
            prestart_actions: written.pre_start_actions,
            ..Definition::default()
        };
        let check = written.health_check.map(|check| HealthCheck::read(check, agent)).transpose()?.flatten();
        Ok(Self {
            name: name.to_owned(),
            directory: model_path.map(PathBuf::from),
            definition,
            port: written.port,
            check,
        })
    }

    /// The name by which the service is stopped.
    #[must_use]
    pub(super) fn service_name(&self) -> String {
        format!("{}-{}", self.name, self.port)
    }
}

impl HealthCheck {
    /// `None` if the check is disabled.
    fn read(object: serde_json::Map<String, Value>, agent: Option<AgentVersion>) -> Result<Option<Self>, ModelError> {
        // Agents of 23.3, 23.9 and 24.3 send the same. Reporting the health twice is harmless, a late response is not, so the
        // response waits only if the agent is known to be 23.3.
        let is_newer = object.contains_key("enable") || object.contains_key("interval");
        let is_health_in_response = !is_newer && agent.is_some_and(AgentVersion::wants_health_in_answer);
        let written = WrittenCheck::deserialize(Value::Object(object)).map_err(ModelError::HealthCheck)?;
        if written.enable == Some(false) {
            return Ok(None);
        }
        let path = if written.path.starts_with('/') { written.path } else { format!("/{}", written.path) };
        let target = PathAndQuery::try_from(path.as_str()).map_err(|source| ModelError::HealthPath { path, source })?;
        let patience = seconds(written.max_wait_time.unwrap_or(PROBE_SECONDS));
        let retries = written.max_retries.unwrap_or(RETRIES);
        Ok(Some(Self {
            target,
            expected_status: written.expected_status_code.unwrap_or(STATUS),
            interval: seconds(written.interval.unwrap_or(INTERVAL_SECONDS)),
            patience,
            retries,
            initial_delay: written.initial_delay.map_or(Duration::ZERO, seconds),
            health_in_response: is_health_in_response.then(|| seconds(patience.as_secs_f64() * f64::from(retries))),
        }))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(MIN_SECONDS, MAX_SECONDS))
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeResult {
    /// The expected status.
    Success,
    /// Any other result.
    Failure,
    /// The process exited.
    Exited,
}

/// Derives a service's health from its probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HealthTracker {
    retries: u32,
    failures: u32,
    is_healthy: Option<bool>,
}

impl HealthTracker {
    /// For a service that was just started.
    #[must_use]
    pub(super) fn new(retries: u32) -> Self {
        Self { retries, failures: 0, is_healthy: None }
    }

    /// Records a result; returns the new health if it changed.
    #[must_use]
    pub(super) fn record(&mut self, seen: ProbeResult) -> Option<bool> {
        let is_healthy = match seen {
            ProbeResult::Success => {
                self.failures = 0;
                Some(true)
            }
            ProbeResult::Failure => {
                self.failures = self.failures.saturating_add(1);
                if self.failures > self.retries { Some(false) } else { self.is_healthy }
            }
            ProbeResult::Exited => Some(false),
        };
        let changed = is_healthy != self.is_healthy;
        self.is_healthy = is_healthy;
        is_healthy.filter(|_| changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(service: &Value) -> Result<ModelService, ModelError> {
        ModelService::read("m", Some("/models/m"), service, AgentVersion::parse("23.03.8"))
    }

    fn check_of(agent: &str, health_check: &Value) -> Option<HealthCheck> {
        let service = json!({"start_command": ["x"], "port": 9000, "health_check": health_check});
        ModelService::read("m", None, &service, AgentVersion::parse(agent)).unwrap().check
    }

    fn check(health_check: &Value) -> Option<HealthCheck> {
        check_of("23.03.8", health_check)
    }

    #[test]
    fn both_generations_are_read() {
        let old =
            check(&json!({"path": "/h", "max_retries": 3, "max_wait_time": 2.5, "expected_status_code": 204})).unwrap();
        assert_eq!(old.health_in_response, Some(Duration::from_millis(7500)));
        assert_eq!((old.expected_status, old.retries, old.interval), (204, 3, Duration::from_secs(10)));
        let new = check(&json!({"enable": true, "path": "h?x=1", "interval": 1, "initial_delay": 60.0})).unwrap();
        assert_eq!((new.health_in_response, new.target.as_str()), (None, "/h?x=1"));
        assert_eq!((new.initial_delay, new.interval), (Duration::from_mins(1), Duration::from_secs(1)));
        assert_eq!(check(&json!({"enable": false, "path": "/"})), None);
        assert_eq!(check(&Value::Null), None);
        let nulls = check(&json!({"path": "/", "max_retries": null, "max_wait_time": null})).unwrap();
        assert_eq!(
            (nulls.retries, nulls.patience, nulls.health_in_response.unwrap().as_secs()),
            (10, Duration::from_secs(5), 50)
        );
        let model = read(&json!({"start_command": "x", "shell": null, "pre_start_actions": null, "port": 1})).unwrap();
        assert_eq!((model.service_name().as_str(), model.definition.shell), ("m-1", ShellChoice::Split));
    }

    #[test]
    fn only_agents_of_23_3_wait_for_the_verdict() {
        let waits =
            |agent: &str, health_check: Value| check_of(agent, &health_check).unwrap().health_in_response.is_some();
        let older = json!({"path": "/", "max_retries": 10, "max_wait_time": 5, "expected_status_code": 200});
        let agents = ["23.03.8", "23.09.10", "24.03.2", "unknown"];
        assert_eq!(agents.map(|agent| waits(agent, older.clone())), [true, false, false, false]);
        assert!(!waits("23.03.8", json!({"path": "/", "interval": 10})));
        assert!(!waits("23.03.8", json!({"path": "/", "enable": true})));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |service: Value| chain(&read(&service).unwrap_err());
        assert_eq!(error(Value::Null), "service info not provided");
        assert_eq!(error(json!({"port": 1, "start_command": null})), "`service`: missing field `start_command`");
        assert_eq!(error(json!({"start_command": ["x"]})), "`service`: missing field `port`");
        assert_eq!(error(json!({"start_command": ["x"], "port": 0})), "`service`: port 0 is not valid");
        let check =
            |health_check: Value| error(json!({"start_command": ["x"], "port": 1, "health_check": health_check}));
        assert_eq!(check(json!({})), "`health_check`: missing field `path`");
        assert_eq!(check(json!({"path": "a b"})), "`health_check`: invalid path \"/a b\": invalid uri character");
    }

    #[test]
    fn a_flapping_service_is_told_at_each_change_only() {
        let mut health = HealthTracker::new(1);
        let seen = |mut take: Box<dyn FnMut(ProbeResult) -> Option<bool> + '_>| {
            [
                ProbeResult::Failure,
                ProbeResult::Success,
                ProbeResult::Success,
                ProbeResult::Failure,
                ProbeResult::Success,
                ProbeResult::Failure,
                ProbeResult::Failure,
                ProbeResult::Failure,
            ]
            .map(&mut *take)
        };
        let told = seen(Box::new(|what| health.record(what)));
        assert_eq!(told, [None, Some(true), None, None, None, None, Some(false), None]);
        assert_eq!(health.record(ProbeResult::Success), Some(true));
        assert_eq!(health.record(ProbeResult::Exited), Some(false));
        assert_eq!(health.record(ProbeResult::Exited), None);
    }

    proptest! {
        #[test]
        fn verdicts_alternate_and_follow_the_rules(retries in 0_u32..5, successes in prop::collection::vec(any::<bool>(), 0..60)) {
            let mut health = HealthTracker::new(retries);
            let (mut last, mut run) = (None, 0);
            for success in successes {
                run = if success { 0 } else { run + 1 };
                let told = health.record(if success { ProbeResult::Success } else { ProbeResult::Failure });
                let expected = if success { Some(true) } else if run > retries { Some(false) } else { last };
                prop_assert_eq!(told, expected.filter(|_| expected != last));
                last = expected;
            }
        }
    }
}
