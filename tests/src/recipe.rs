//! The recipes of `krunner/dist`, read for what they give a container: a line of `docker run`, a Kubernetes manifest, the
//! agent's options. What is not known here is an error, so that a recipe cannot say more than its test does.

use std::fs;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::container::Spec;

/// podman's default profile, which is derived from Docker's.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// A container as a recipe has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// What the recipe says will result: `bpf` or `snapshot`. None where it only looks.
    pub tracer: Option<String>,
    /// What krunner is called with.
    pub arguments: Vec<String>,
    /// What the container may.
    pub rights: Rights,
}

/// What a container may.
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in the recipes")]
pub struct Rights {
    privileged: bool,
    host_pids: bool,
    user_id: Option<u32>,
    drops_all: bool,
    added: Vec<String>,
    no_new_privileges: bool,
}

impl Rights {
    /// Whether krunner has its capabilities from its file.
    pub fn needs_file_capabilities(&self) -> bool {
        self.user_id.is_some_and(|user_id| user_id != 0) && !self.added.is_empty()
    }

    /// A container of that kind with these rights, and the filter that an engine puts before it.
    pub fn apply(&self, mut spec: Spec) -> Result<Spec, String> {
        if self.host_pids {
            spec = spec.host_pids();
        }
        if self.privileged {
            return Ok(spec.privileged());
        }
        if self.drops_all {
            spec = spec.no_capabilities();
        }
        let added: Vec<String> = self.added.iter().map(|name| format!("CAP_{name}")).collect();
        spec = spec.capabilities(&added.iter().map(String::as_str).collect::<Vec<_>>());
        if self.no_new_privileges {
            spec = spec.no_new_privileges();
        }
        let filter = dockers_profile(spec.held())?;
        Ok(spec.user(self.user_id.unwrap_or(0)).seccomp(filter))
    }
}

/// Reads a line of `docker run`.
pub fn docker(line: &str) -> Result<Recipe, String> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "run").skip(1);
    let mut recipe = Recipe::default();
    let rights = &mut recipe.rights;
    loop {
        let word = words.next().ok_or("no image")?;
        let mut value = || words.next().ok_or_else(|| format!("{word} without a value"));
        match word {
            "--rm" | "--read-only" => {}
            "--privileged" => rights.privileged = true,
            "--pid" => rights.host_pids = value()? == "host",
            "--user" => rights.user_id = Some(value()?.parse().map_err(|error| format!("--user: {error}"))?),
            "--cap-drop" => rights.drops_all = value()? == "ALL",
            "--cap-add" => rights.added.push(value()?.to_owned()),
            "--memory" => drop(value()?),
            "--security-opt" => match value()? {
                "no-new-privileges" => rights.no_new_privileges = true,
                other => return Err(format!("--security-opt {other} is not known")),
            },
            "--label" => {
                let label = value()?;
                let tracer = label.strip_prefix("krunner.tracer=").ok_or_else(|| format!("--label {label}"))?;
                recipe.tracer = Some(tracer.to_owned());
            }
            option if option.starts_with('-') => return Err(format!("{option} is not known")),
            _image => break,
        }
    }
    // The image's entrypoint is krunner, or the line names it.
    recipe.arguments = words.filter(|word| *word != "krunner").map(str::to_owned).collect();
    Ok(recipe)
}

/// Reads a manifest: a pod, or a set with a template of one. The container is the last one.
pub fn kubernetes(manifest: &str) -> Result<Recipe, String> {
    let manifest: Manifest = serde_saphyr::from_str(manifest).map_err(|error| error.to_string())?;
    let (metadata, pod) = match manifest.spec {
        Body::Pod(pod) => (manifest.metadata, pod),
        Body::Set { template, selector } => {
            if Some(&selector.match_labels) != template.metadata.labels.as_ref() {
                return Err("the selector is not that of the template".into());
            }
            (template.metadata, template.spec)
        }
    };
    for container in &pod.containers {
        let (_, tag) = container.image.rsplit_once(':').ok_or_else(|| format!("{} has no tag", container.image))?;
        if tag == "latest" || container.resources.limits.get("memory").is_none() {
            return Err(format!("{} needs a tag other than latest, and a limit of memory", container.name));
        }
    }
    let container = pod.containers.into_iter().last().ok_or("no container")?;
    let security = container.security_context.unwrap_or_default();
    let capabilities = security.capabilities.unwrap_or_default();
    let line = container.command.iter().flatten().next_back().cloned().unwrap_or_default();
    // `krunner monitor --json & exec worker`
    let called = line.split('&').next().unwrap_or_default().split_whitespace().filter(|word| *word != "krunner");
    let arguments = container.args.unwrap_or_else(|| called.map(str::to_owned).collect());
    let annotations = metadata.annotations.unwrap_or_default();
    if security.run_as_non_root == Some(true) && security.run_as_user.is_none_or(|user_id| user_id == 0) {
        return Err("runAsNonRoot needs a user".into());
    }
    Ok(Recipe {
        tracer: annotations.get("krunner/tracer").and_then(Value::as_str).map(str::to_owned),
        arguments,
        rights: Rights {
            privileged: security.privileged,
            host_pids: pod.host_pid,
            user_id: security.run_as_user,
            drops_all: capabilities.drop == ["ALL"],
            added: capabilities.add,
            no_new_privileges: security.allow_privilege_escalation == Some(false),
        },
    })
}

/// Reads the agent's `agent-docker-container-opts.json`, which adds to what it gives each session itself.
pub fn agents_options(text: &str) -> Result<Recipe, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct Options {
        host_config: HostConfig,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct HostConfig {
        cap_add: Vec<String>,
    }
    let options: Options = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let added = options.host_config.cap_add;
    let rights = Rights { added, user_id: Some(1000), ..Rights::default() };
    Ok(Recipe { tracer: Some("bpf".into()), arguments: vec!["monitor".into()], rights })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that it is there and a text is checked")]
struct Manifest {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that it is a text is checked")]
struct Metadata {
    name: Option<String>,
    labels: Option<Value>,
    annotations: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    Set { selector: Selector, template: Box<Template> },
    Pod(Pod),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    metadata: Metadata,
    spec: Pod,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pod {
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default, rename = "shareProcessNamespace")]
    _shares: bool,
    #[serde(default, rename = "tolerations")]
    _tolerations: Vec<Value>,
    containers: Vec<PodContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodContainer {
    name: String,
    image: String,
    args: Option<Vec<String>>,
    command: Option<Vec<String>>,
    security_context: Option<SecurityContext>,
    resources: Resources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    #[serde(default, rename = "requests")]
    _requests: Value,
    limits: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecurityContext {
    #[serde(default)]
    privileged: bool,
    run_as_user: Option<u32>,
    run_as_non_root: Option<bool>,
    allow_privilege_escalation: Option<bool>,
    #[serde(default, rename = "readOnlyRootFilesystem")]
    _read_only: bool,
    capabilities: Option<Capabilities>,
    #[serde(rename = "seccompProfile")]
    _seccomp: Option<RuntimeDefault>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Capabilities {
    drop: Vec<String>,
    add: Vec<String>,
}

/// The profile that is applied here anyway.
#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum RuntimeDefault {
    RuntimeDefault {},
}

/// What podman puts before a container with these capabilities (`profiles/seccomp` of containers/common).
pub fn podmans_profile(held: &[String]) -> Result<Value, String> {
    let text = fs::read_to_string(PROFILE).map_err(|error| format!("{PROFILE}: {error}"))?;
    let profile: Value = serde_json::from_str(&text).map_err(|error| format!("{PROFILE}: {error}"))?;
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        names(&includes["caps"]).all(|name| held.contains(name))
            && !names(&excludes["caps"]).any(|name| held.contains(name))
            && (includes["arches"].is_null() || names(&includes["arches"]).any(|name| name == "amd64"))
    };
    let rule = |rule: &Value| {
        let mut call = json!({ "names": rule["names"], "action": rule["action"] });
        for field in ["errnoRet", "args"] {
            if rule[field].is_number() || rule[field].as_array().is_some_and(|args| !args.is_empty()) {
                call[field] = rule[field].clone();
            }
        }
        call
    };
    let rules: Vec<Value> = profile["syscalls"].as_array().into_iter().flatten().filter(applies).map(rule).collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }))
}

fn names(list: &Value) -> impl Iterator<Item = &String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| if let Value::String(name) = name { Some(name) } else { None })
}

/// A stand-in for Docker's own profile, which no Debian package has as a file: podman's, with what Docker allows beyond it
/// since 23.0 (moby pull request 43987).
pub fn dockers_profile(held: &[String]) -> Result<Value, String> {
    let mut profile = podmans_profile(held)?;
    for (capability, call) in [("CAP_BPF", "bpf"), ("CAP_PERFMON", "perf_event_open")] {
        if held.iter().any(|name| name == capability) {
            let rules = profile["syscalls"].as_array_mut().ok_or("a profile has rules")?;
            for names in rules.iter_mut().filter_map(|rule| rule["names"].as_array_mut()) {
                names.retain(|name| name != call);
            }
            rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
            rules.push(json!({ "names": [call], "action": "SCMP_ACT_ALLOW" }));
        }
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_what_is_not_known_is_refused() {
        let line =
            "docker run --rm --user 7 --cap-drop ALL --cap-add BPF --label krunner.tracer=bpf image monitor --json";
        let recipe = docker(line).unwrap();
        let rights = Rights { user_id: Some(7), drops_all: true, added: vec!["BPF".into()], ..Rights::default() };
        assert_eq!(recipe.rights, rights);
        assert_eq!(
            (recipe.tracer.as_deref(), recipe.arguments),
            (Some("bpf"), vec!["monitor".into(), "--json".into()])
        );
        assert_eq!(docker("docker run --gpus all image").unwrap_err(), "--gpus is not known");
        assert_eq!(docker("docker run --rm --user").unwrap_err(), "--user without a value");
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        let manifest = |field: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{ name: a }}\nspec:\n  containers:\n    - name: a\n      image: a:1\n      \
                 {field}\n      resources: {{ limits: {{ memory: 1Mi }} }}\n"
            )
        };
        assert!(kubernetes(&manifest("args: [monitor]")).is_ok());
        assert!(kubernetes(&manifest("volumeMounts: []")).is_err());
    }
}
