//! Model services: what the agent says of one, and when it counts as healthy.
//!
//! ```text
//!            success                        success
//! Unknown ─────────────▶ Healthy ◀──────────────────────── Unhealthy
//!    │                      │  failures in a row: retries       ▲  │ its process ended
//!    │                      └────────────────────────────────────┤  ▼
//!    └── failures in a row: retries, or its process ended ───────┘ (final)
//! ```
//!
//! A success resets the count of failures. Only a change is told. Pure: probes and their clock are elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::PathAndQuery;
use serde::Deserialize;
use serde_json::Value;

use super::action::Action;
use super::definition::{CommandLine, Definition, ShellChoice, command_line, nullable};

/// Defaults of agents, for what they leave out or send as null.
const RETRIES: u32 = 10;
const PROBE_SECONDS: f64 = 5.0;
const INTERVAL_SECONDS: f64 = 10.0;
const STATUS: u16 = 200;

/// Shorter times would probe without a pause.
const MIN_SECONDS: f64 = 0.1;
const MAX_SECONDS: f64 = 24.0 * 3600.0;

/// A model service as it was ordered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model {
    /// Of the model.
    pub(super) name: String,
    /// Where its files are, and the process runs.
    pub(super) directory: Option<PathBuf>,
    /// What to start.
    pub(super) definition: Definition,
    /// Where it is going to listen.
    pub(super) port: u16,
    /// How it is watched; not at all when there is none.
    pub(super) check: Option<HealthCheck>,
}

/// How a model's health is seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HealthCheck {
    /// What is asked for.
    pub(super) target: PathAndQuery,
    /// The answer of a healthy service.
    pub(super) expected_status: u16,
    /// From one probe to the next.
    pub(super) interval: Duration,
    /// For one probe.
    pub(super) patience: Duration,
    /// Failures in a row that make it unhealthy.
    pub(super) retries: u32,
    /// Before the first probe.
    pub(super) initial_delay: Duration,
    /// Older agents take the answer to the order for the verdict: it waits so long for the first success.
    pub(super) verdict_in_answer: Option<Duration>,
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

impl Model {
    /// Reads what the agent says.
    ///
    /// # Errors
    /// Names what is missing or wrong.
    pub(super) fn read(name: &str, model_path: Option<&str>, service: &Value) -> Result<Self, String> {
        if service.is_null() {
            return Err("service info not provided".to_owned());
        }
        let written = WrittenService::deserialize(service).map_err(|error| format!("`service`: {error}"))?;
        if written.start_command.is_none() {
            return Err("`service`: there is no `start_command`".to_owned());
        } else if written.port == 0 {
            return Err("`service`: `port` is 0, not a port".to_owned());
        }
        let definition = Definition {
            command: written.start_command,
            shell: written.shell,
            prestart_actions: written.pre_start_actions,
            ..Definition::default()
        };
        let check = written.health_check.map(HealthCheck::read).transpose()?.flatten();
        Ok(Self {
            name: name.to_owned(),
            directory: model_path.map(PathBuf::from),
            definition,
            port: written.port,
            check,
        })
    }

    /// The name to stop it by.
    #[must_use]
    pub(super) fn service_name(&self) -> String {
        format!("{}-{}", self.name, self.port)
    }
}

impl HealthCheck {
    /// `None` where it is switched off.
    fn read(object: serde_json::Map<String, Value>) -> Result<Option<Self>, String> {
        let is_of_newer_agents = object.contains_key("enable") || object.contains_key("interval");
        let written =
            WrittenCheck::deserialize(Value::Object(object)).map_err(|error| format!("`health_check`: {error}"))?;
        if written.enable == Some(false) {
            return Ok(None);
        }
        let path = if written.path.starts_with('/') { written.path } else { format!("/{}", written.path) };
        let target = PathAndQuery::try_from(path.as_str())
            .map_err(|error| format!("`health_check`: the path {path:?} cannot be asked for: {error}"))?;
        let patience = seconds(written.max_wait_time.unwrap_or(PROBE_SECONDS));
        let retries = written.max_retries.unwrap_or(RETRIES).max(1);
        Ok(Some(Self {
            target,
            expected_status: written.expected_status_code.unwrap_or(STATUS),
            interval: seconds(written.interval.unwrap_or(INTERVAL_SECONDS)),
            patience,
            retries,
            initial_delay: written.initial_delay.map_or(Duration::ZERO, seconds),
            verdict_in_answer: (!is_of_newer_agents).then(|| seconds(patience.as_secs_f64() * f64::from(retries))),
        }))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(MIN_SECONDS, MAX_SECONDS))
}

/// What is seen of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// A probe got the answer it expected.
    Success,
    /// It did not.
    Failure,
    /// The process does not run any more.
    Gone,
}

/// What is known of a service's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    retries: u32,
    failures: u32,
    verdict: Option<bool>,
}

impl Health {
    /// Of a service that has just been started.
    #[must_use]
    pub(super) fn new(retries: u32) -> Self {
        Self { retries, failures: 0, verdict: None }
    }

    /// Takes in what was seen; the new verdict if it changes.
    #[must_use]
    pub(super) fn take_in(&mut self, seen: Seen) -> Option<bool> {
        let verdict = match seen {
            Seen::Success => {
                self.failures = 0;
                Some(true)
            }
            Seen::Failure => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.retries { Some(false) } else { self.verdict }
            }
            Seen::Gone => Some(false),
        };
        let changed = verdict != self.verdict;
        self.verdict = verdict;
        verdict.filter(|_| changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(service: &Value) -> Result<Model, String> {
        Model::read("m", Some("/models/m"), service)
    }

    fn check(health_check: &Value) -> Option<HealthCheck> {
        let service = json!({"start_command": ["x"], "port": 9000, "health_check": health_check});
        read(&service).unwrap().check
    }

    #[test]
    fn both_generations_are_read() {
        let old =
            check(&json!({"path": "/h", "max_retries": 3, "max_wait_time": 2.5, "expected_status_code": 204})).unwrap();
        assert_eq!(old.verdict_in_answer, Some(Duration::from_millis(7500)));
        assert_eq!((old.expected_status, old.retries, old.interval), (204, 3, Duration::from_secs(10)));
        let new = check(&json!({"enable": true, "path": "h?x=1", "interval": 1, "initial_delay": 60.0})).unwrap();
        assert_eq!((new.verdict_in_answer, new.target.as_str()), (None, "/h?x=1"));
        assert_eq!((new.initial_delay, new.interval), (Duration::from_mins(1), Duration::from_secs(1)));
        assert_eq!(check(&json!({"enable": false, "path": "/"})), None);
        assert_eq!(check(&Value::Null), None);
        let nulls = check(&json!({"path": "/", "max_retries": null, "max_wait_time": null})).unwrap();
        assert_eq!(
            (nulls.retries, nulls.patience, nulls.verdict_in_answer.unwrap().as_secs()),
            (10, Duration::from_secs(5), 50)
        );
        let model = read(&json!({"start_command": "x", "shell": null, "pre_start_actions": null, "port": 1})).unwrap();
        assert_eq!((model.service_name().as_str(), model.definition.shell), ("m-1", ShellChoice::Split));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(read(&Value::Null).unwrap_err(), "service info not provided");
        assert_eq!(
            read(&json!({"port": 1, "start_command": null})).unwrap_err(),
            "`service`: there is no `start_command`"
        );
        assert_eq!(read(&json!({"start_command": ["x"]})).unwrap_err(), "`service`: missing field `port`");
        let path = read(&json!({"start_command": ["x"], "port": 1, "health_check": {}})).unwrap_err();
        assert_eq!(path, "`health_check`: missing field `path`");
    }

    #[test]
    fn a_flapping_service_is_told_at_each_change_only() {
        let mut health = Health::new(2);
        let seen = |mut take: Box<dyn FnMut(Seen) -> Option<bool> + '_>| {
            [
                Seen::Failure,
                Seen::Success,
                Seen::Success,
                Seen::Failure,
                Seen::Success,
                Seen::Failure,
                Seen::Failure,
                Seen::Failure,
            ]
            .map(&mut *take)
        };
        let told = seen(Box::new(|what| health.take_in(what)));
        assert_eq!(told, [None, Some(true), None, None, None, None, Some(false), None]);
        assert_eq!(health.take_in(Seen::Success), Some(true));
        assert_eq!(health.take_in(Seen::Gone), Some(false));
        assert_eq!(health.take_in(Seen::Gone), None);
    }

    proptest! {
        #[test]
        fn verdicts_alternate_and_follow_the_rules(retries in 1_u32..5, successes in prop::collection::vec(any::<bool>(), 0..60)) {
            let mut health = Health::new(retries);
            let (mut last, mut run) = (None, 0);
            for success in successes {
                run = if success { 0 } else { run + 1 };
                let told = health.take_in(if success { Seen::Success } else { Seen::Failure });
                let expected = if success { Some(true) } else if run >= retries { Some(false) } else { last };
                prop_assert_eq!(told, expected.filter(|_| expected != last));
                last = expected;
            }
        }
    }
}
