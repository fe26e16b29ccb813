//! Fields are only added, never removed.

use std::collections::BTreeSet;

use super::*;

/// The fields of all objects and the values of enums, such as `oom_kill.explanation.limit.scope=container`.
const FIELDS: &str = include_str!("schema_fields.txt");

/// Adds the fields of a schema under this path.
fn add_fields(root: &Value, schema: &Value, path: &str, fields: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").expect("a reference within the schema");
        add_fields(root, &root["$defs"][name], path, fields);
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten().filter(|(name, _)| *name != "event") {
        let inner_path = format!("{path}.{name}");
        fields.insert(inner_path.clone());
        add_fields(root, inner, &inner_path, fields);
    }
    for choice in ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten() {
        add_fields(root, choice, path, fields);
    }
    if schema["items"].is_object() {
        add_fields(root, &schema["items"], path, fields);
    }
    let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    fields.extend(values.filter_map(Value::as_str).map(|value| format!("{path}={value}")));
}

#[test]
fn fields_are_only_added() {
    let schema = schema();
    let mut fields = BTreeSet::new();
    for object in schema["oneOf"].as_array().unwrap() {
        let event = object["properties"]["event"]["const"].as_str().unwrap();
        fields.insert(event.to_owned());
        add_fields(&schema, object, event, &mut fields);
    }
    let known: BTreeSet<String> = FIELDS.lines().map(str::to_owned).collect();
    let removed: Vec<&String> = known.difference(&fields).collect();
    assert!(removed.is_empty(), "programs rely on these, which were removed or renamed: {removed:#?}");
    let added: Vec<&str> = fields.difference(&known).map(String::as_str).collect();
    assert!(added.is_empty(), "add to schema_fields.txt, sorted:\n{}", added.join("\n"));
}
