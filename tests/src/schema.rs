//! The schema of what a monitor prints, as krunner prints it, and objects judged by it.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use jsonschema::Validator;
use serde_json::Value;

use crate::setup::binary;

/// Fails, with all that is wrong, unless the schema allows the object and knows all of its fields.
#[track_caller]
pub fn assert_valid(object: &Value) {
    let problems: Vec<String> =
        validator().iter_errors(object).map(|error| format!("{} at `{}`", error, error.instance_path())).collect();
    assert!(problems.is_empty(), "`krunner monitor --schema` does not allow {object:#}: {problems:#?}");
}

/// `krunner monitor --schema`.
#[track_caller]
pub fn printed() -> Value {
    let mut command = Command::new(binary());
    let output = command.args(["monitor", "--schema"]).stdin(Stdio::null()).output().expect("the binary runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Read once: it is the same for all objects.
fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        let mut schema = printed();
        forbid_more(&mut schema);
        jsonschema::validator_for(&schema).expect("a schema")
    })
}

/// Others must accept fields of later versions; here a field without a description is a mistake.
fn forbid_more(schema: &mut Value) {
    schema["unevaluatedProperties"] = false.into();
}
