//! A `DaemonSet` or a `Pod`, as far as the recipes use them (kubernetes.io/docs/reference/kubernetes-api).
//!
//! Every field is one that was looked at: others are refused. Capabilities and seccomp are applied as containerd and
//! CRI-O do; a container's cgroup is the top of what it sees (cgroup v2).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::rights::{Given, Recipe, capabilities, command, fixed, mebibytes, promise};
use crate::container::Spec;

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Manifest {
    DaemonSet(DaemonSet),
    Pod(Pod),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DaemonSet {
    api_version: String,
    metadata: Metadata,
    spec: DaemonSetSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pod {
    api_version: String,
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DaemonSetSpec {
    selector: Selector,
    template: Template,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    metadata: TemplateMetadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateMetadata {
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodSpec {
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    automount_service_account_token: bool,
    restart_policy: Option<String>,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    #[serde(default)]
    tolerations: Vec<Toleration>,
    containers: Vec<Container>,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Toleration {
    operator: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Container {
    name: String,
    image: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    security_context: SecurityContext,
    resources: Resources,
    #[serde(default)]
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecurityContext {
    #[serde(default)]
    privileged: bool,
    run_as_user: u32,
    run_as_group: u32,
    #[serde(default)]
    run_as_non_root: bool,
    allow_privilege_escalation: Option<bool>,
    #[serde(default)]
    read_only_root_filesystem: bool,
    capabilities: Option<Capabilities>,
    seccomp_profile: Option<SeccompProfile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Capabilities {
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    add: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeccompProfile {
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    requests: Amounts,
    limits: Amounts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Amounts {
    cpu: Option<String>,
    memory: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeMount {
    name: String,
    mount_path: String,
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    host_path: HostPath,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostPath {
    path: String,
    r#type: String,
}

pub(super) fn recipe(text: &str) -> Result<Recipe, String> {
    match serde_saphyr::from_str(text).map_err(|error| error.to_string())? {
        Manifest::DaemonSet(set) => set.recipe(),
        Manifest::Pod(pod) => pod.recipe(),
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl DaemonSet {
    fn recipe(&self) -> Result<Recipe, String> {
        let Template { metadata, spec } = &self.spec.template;
        let wanted = &self.spec.selector.match_labels;
        ensure(self.api_version == "apps/v1", || format!("a DaemonSet is of apps/v1, not {}", self.api_version))?;
        ensure(self.metadata.namespace.is_some(), || "rights like these want a namespace of their own".to_owned())?;
        ensure(*wanted == metadata.labels && *wanted == self.metadata.labels && !wanted.is_empty(), || {
            "selector, template and set do not have the same labels".to_owned()
        })?;
        let is_everywhere = spec.tolerations.iter().any(|toleration| toleration.operator == "Exists");
        ensure(is_everywhere, || "without a toleration of all taints there are nodes without a monitor".to_owned())?;
        let is_linux = spec.node_selector.get("kubernetes.io/os").is_some_and(|os| os == "linux");
        ensure(is_linux, || "krunner is for nodes with Linux".to_owned())?;
        ensure(spec.restart_policy.is_none(), || "a DaemonSet's pods are always restarted".to_owned())?;
        ensure(spec.host_pid, || "without hostPID only the pod's own processes are seen".to_owned())?;
        spec.recipe(&self.metadata)
    }
}

impl Pod {
    fn recipe(&self) -> Result<Recipe, String> {
        ensure(self.api_version == "v1", || format!("a Pod is of v1, not {}", self.api_version))?;
        ensure(self.spec.restart_policy.as_deref() == Some("Never"), || "a session ends once".to_owned())?;
        self.spec.recipe(&self.metadata)
    }
}

impl PodSpec {
    fn recipe(&self, metadata: &Metadata) -> Result<Recipe, String> {
        let [container] = &self.containers[..] else { return Err("one container is what is known here".to_owned()) };
        for name in [&metadata.name, &container.name] {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            ensure(is_name && !name.is_empty(), || format!("{name:?} is no name"))?;
        }
        ensure(!self.automount_service_account_token, || "krunner does not talk to Kubernetes".to_owned())?;
        fixed(&container.image)?;
        let mut spec = container.security_context.spec()?.cgroup_namespace();
        if self.host_pid {
            spec = spec.host_pids();
        }
        for path in self.shown(container)? {
            spec = spec.show(path);
        }
        let (tracer, confidence) = promise(&metadata.annotations)?;
        Ok(Recipe {
            tracer,
            confidence,
            image: Some(container.image.clone()),
            command: container.words(),
            user_id: container.security_context.run_as_user,
            memory_mib: container.resources.limit_mib()?,
            spec,
            given: container.security_context.given()?,
            is_confined: container.security_context.is_confined()?,
        })
    }

    /// What is mounted at the place that it has on the node.
    fn shown(&self, container: &Container) -> Result<Vec<&String>, String> {
        let mounts = &container.volume_mounts;
        ensure(mounts.len() == self.volumes.len(), || "a volume is not mounted, or mounted twice".to_owned())?;
        let place = |mount: &VolumeMount| {
            let volume = self.volumes.iter().find(|volume| volume.name == mount.name);
            let path = volume.map(|volume| &volume.host_path).filter(|path| path.r#type == "Directory");
            path.map(|path| &path.path).filter(|path| **path == mount.mount_path && mount.read_only)
        };
        mounts.iter().map(|mount| place(mount).ok_or_else(|| format!("how is {} mounted?", mount.name))).collect()
    }
}

impl Container {
    /// `command` is what an image calls its entrypoint.
    fn words(&self) -> Vec<String> {
        if self.command.is_empty() {
            command(&self.image, &self.args)
        } else {
            [&self.command[..], &self.args].concat()
        }
    }
}

impl SecurityContext {
    fn spec(&self) -> Result<Spec, String> {
        ensure(self.run_as_user == self.run_as_group, || "tests know one number for user and group".to_owned())?;
        ensure(self.run_as_non_root == (self.run_as_user != 0), || "runAsNonRoot contradicts runAsUser".to_owned())?;
        let mut spec = Spec::plain(0);
        if self.allow_privilege_escalation == Some(false) {
            ensure(!self.privileged, || "privileged and without escalation is refused".to_owned())?;
            spec = spec.no_new_privileges();
        }
        Ok(if self.read_only_root_filesystem { spec.read_only() } else { spec })
    }

    fn given(&self) -> Result<Given, String> {
        match (&self.capabilities, self.privileged) {
            (None, true) => Ok(Given::All),
            (Some(capability), false) => capabilities(&capability.drop, &capability.add),
            _ => Err("either privileged, or capabilities".to_owned()),
        }
    }

    /// Without a profile it depends on the kubelet's `seccompDefault`.
    fn is_confined(&self) -> Result<bool, String> {
        match (self.seccomp_profile.as_ref().map(|profile| profile.r#type.as_str()), self.privileged) {
            (None, true) | (Some("Unconfined"), false) => Ok(false),
            (Some("RuntimeDefault"), false) => Ok(true),
            (other, _) => Err(format!("which seccomp profile is {other:?}?")),
        }
    }
}

impl Resources {
    fn limit_mib(&self) -> Result<u64, String> {
        let (least, most) = (mebibytes(&self.requests.memory, "Mi")?, mebibytes(&self.limits.memory, "Mi")?);
        ensure(least <= most, || format!("{least} MiB are requested, {most} MiB allowed"))?;
        ensure(self.requests.cpu.is_some(), || "no request of cpu".to_owned())?;
        ensure(self.limits.cpu.is_none(), || "a limit of cpu makes krunner late".to_owned())?;
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn with(old: &str, new: &str) -> Result<Recipe, String> {
        let path = super::super::folder().join("kubernetes/node-capabilities.yaml");
        let text = fs::read_to_string(path).expect("a recipe");
        assert!(text.contains(old), "{old}");
        recipe(&text.replace(old, new))
    }

    fn complaint(old: &str, new: &str) -> String {
        with(old, new).expect_err("it is wrong")
    }

    #[test]
    fn nothing_is_ignored() {
        assert!(with("a", "a").is_ok());
        assert!(complaint("hostPID", "hostNetwork").contains("hostNetwork"));
        assert!(complaint("runAsGroup", "runAsGrop").contains("runAsGrop"));
        assert!(complaint("limits:\n              memory: 128Mi", "limits: {}").contains("memory"));
        assert!(complaint("type: RuntimeDefault", "type: Localhost").contains("Localhost"));
        assert!(complaint("kind: DaemonSet", "kind: Deployment").contains("Deployment"));
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused() {
        assert!(complaint("allowPrivilegeEscalation: false", "privileged: true").contains("either privileged"));
        assert!(complaint("matchLabels:\n      app", "matchLabels:\n      ap").contains("same labels"));
        assert!(complaint("apps/v1", "v1").contains("apps/v1"));
    }

    #[test]
    fn what_would_surprise_is_refused() {
        assert!(complaint("krunner:0", "krunner:latest #").contains("another one every day"));
        assert!(complaint("- operator: Exists", "[]").contains("nodes without a monitor"));
        assert!(complaint("memory: 64Mi", "memory: 640Mi").contains("requested"));
        assert!(complaint("            seccompProfile:\n              type: RuntimeDefault\n", "").contains("seccomp"));
    }
}
