//! JSON Schema (2020-12) of the output of `krunner monitor --json` and of journals. Pure.
//!
//! Derived from the serialized types of this version; objects of older versions may lack fields. Fields are only added, which the
//! test with `schema_fields.txt` ensures.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::monitor::attribution::memory_throttled::MemoryThrottled;
use crate::monitor::attribution::memory_warning::MemoryWarning;
use crate::monitor::attribution::oom_report::OomReport;
use crate::monitor::attribution::rate_limit::Suppressed;
use crate::monitor::model::detection::MonitorStatus;

/// The tracer dropped records; an OOM kill may have been missed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RecordsLost {
    /// Number of dropped records.
    pub(crate) count: u64,
}

/// OOM kills that could not be attributed to a process.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Unattributed<'a> {
    /// Number of kills.
    pub(crate) count: u64,
    /// The reason, where `/proc` hides processes.
    pub(crate) reason: Option<&'a str>,
}

/// The limit is reached and the OOM killer is disabled (`oom_kill_disable`).
#[derive(Debug, JsonSchema)]
struct OomWithoutKill {}

/// The schema of all objects.
#[must_use]
pub(crate) fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let objects = [
        object::<MonitorStatus>(&mut generator, "watching"),
        object::<OomReport>(&mut generator, "oom_kill"),
        object::<Suppressed>(&mut generator, "oom_kills_suppressed"),
        object::<MemoryWarning>(&mut generator, "memory_warning"),
        object::<MemoryThrottled>(&mut generator, "memory_throttled"),
        object::<RecordsLost>(&mut generator, "records_lost"),
        object::<Unattributed<'_>>(&mut generator, "oom_kills_unattributed"),
        object::<OomWithoutKill>(&mut generator, "oom_without_kill"),
    ];
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "krunner monitor",
        "description": "An object of `krunner monitor --json` or of a journal (oom.jsonl); `event` tells which.",
        "oneOf": objects,
        "$defs": generator.take_definitions(true),
    })
}

/// The schema of one object: that of its type, with `event`.
fn object<T: JsonSchema>(generator: &mut SchemaGenerator, event: &str) -> Value {
    json!({
        "type": "object",
        "properties": { "event": { "const": event } },
        "required": ["event"],
        "allOf": [generator.subschema_for::<T>()],
    })
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
