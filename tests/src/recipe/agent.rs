//! `agent-docker-container-opts.json`: what the agent adds to the containers that it has Docker make.
//!
//! It is merged by the agent's own code into the agent's own configuration, which is cut out of its source. As there,
//! the runner's user is not root: root is who the container starts as, and `su-exec` makes a user of him.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use super::rights::{Recipe, capabilities, promise};
use crate::container::{KRUNNER, Spec};

/// `kernel-uid` of the agent's configuration by default.
const WORK_ID: u32 = 1000;

/// Little, as the agent lets users have.
const MEMORY_MIB: u64 = 512;

/// Prints what Docker would be asked for, without what is no constant in the source.
const MERGE: &str = r#"
import ast, inspect, json, sys, textwrap
from ai.backend.agent.docker.agent import DockerKernelCreationContext, update_nested_dict

def constants(node):
    pairs = zip(node.keys, node.values)
    return {key.value: known for key, value in pairs if (known := constant(value)) is not None}

def constant(node):
    if isinstance(node, ast.Dict):
        return constants(node)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None

source = ast.parse(textwrap.dedent(inspect.getsource(DockerKernelCreationContext.start_container)))
names = [node.value for node in ast.walk(source) if isinstance(node, ast.Constant)]
config, = (
    constants(node.value) for node in ast.walk(source)
    if isinstance(node, ast.AnnAssign) and node.target.id == "container_config"
)
update_nested_dict(config, json.loads(sys.argv[1]))
host = config["HostConfig"]
json.dump({
    "is_read": "agent-docker-container-opts.json" in names,
    "labels": {name: value for name, value in config["Labels"].items() if name.startswith("krunner/")},
    "add": host["CapAdd"],
    "privileged": host.get("Privileged", False),
    "security_options": host.get("SecurityOpt", []),
}, sys.stdout)
"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(rename = "HostConfig")]
    _host_config: HostConfig,
    #[serde(rename = "Labels")]
    _labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostConfig {
    #[serde(rename = "CapAdd")]
    _cap_add: Vec<String>,
}

#[derive(Deserialize)]
struct Merged {
    is_read: bool,
    labels: BTreeMap<String, String>,
    add: Vec<String>,
    privileged: bool,
    security_options: Vec<String>,
}

/// Reads it with the agent's code, which this Python has.
pub(super) fn recipe(text: &str, python: &Path) -> Result<Recipe, String> {
    let _: Options = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let output = Command::new(python).args(["-c", MERGE, text]).output().map_err(|error| error.to_string())?;
    let merged: Merged = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    if !merged.is_read || merged.privileged || !merged.security_options.is_empty() {
        return Err("the agent is another one than the recipe is for".to_owned());
    }
    let (tracer, confidence) = promise(&merged.labels)?;
    Ok(Recipe {
        tracer,
        confidence,
        image: None,
        command: [KRUNNER, "app"].map(str::to_owned).to_vec(),
        user_id: WORK_ID,
        memory_mib: MEMORY_MIB,
        spec: Spec::plain(0),
        given: capabilities(&[], &merged.add)?,
        is_confined: true,
    })
}
