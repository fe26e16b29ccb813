//! `krunner monitor --schema`. What monitors print is judged by it in every suite (`krunner_tests::Monitor`).

use krunner_tests::schema::{assert_valid, printed};
use serde_json::{Value, json};

#[test]
fn schema_is_sound_and_names_every_object() {
    let schema = printed();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    jsonschema::meta::validate(&schema).expect("a schema as 2020-12 has it");
    let objects = schema["oneOf"].as_array().expect("a list of objects");
    let events: Vec<&Value> = objects.iter().map(|object| &object["properties"]["event"]["const"]).collect();
    assert_eq!(
        events,
        [
            "watching",
            "oom_kill",
            "oom_kills_suppressed",
            "memory_warning",
            "memory_throttled",
            "records_lost",
            "oom_kills_unattributed",
            "oom_without_kill"
        ]
    );
}

#[test]
fn rare_objects_are_allowed() {
    assert_valid(&json!({ "event": "oom_without_kill" }));
    assert_valid(&json!({ "event": "records_lost", "count": 3 }));
    assert_valid(&json!({ "event": "oom_kills_unattributed", "count": 3, "reason": null }));
    assert_valid(&json!({ "event": "oom_kills_suppressed", "count": 3, "by_name": { "hog": 3 } }));
}

#[test]
#[should_panic(expected = "does not allow")]
fn unknown_field_is_noticed() {
    assert_valid(&json!({ "event": "records_lost", "count": 3, "more": 1 }));
}

#[test]
#[should_panic(expected = "does not allow")]
fn field_of_another_type_is_noticed() {
    assert_valid(&json!({ "event": "records_lost", "count": "3" }));
}
