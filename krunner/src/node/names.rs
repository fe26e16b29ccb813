//! Who a cgroup belongs to, from its path alone. Pure; `name_files` adds what files know.
//!
//! | path | from |
//! |---|---|
//! | `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope` | kubelet, systemd driver |
//! | `kubepods/burstable/podUID/ID` | kubelet, cgroupfs driver |
//! | `system.slice/docker-ID.scope`, `docker/ID` | Docker |
//! | `machine.slice/libpod-ID.scope`, `libpod_parent/libpod-ID` | Podman |
//! | `crio-ID.scope`, `crio-ID` | CRI-O |
//! | `NAMESPACE/ID` | containerd's own clients |
//! | `machine.slice/systemd-nspawn@NAME.service` | systemd-nspawn |
//! | `system.slice/NAME.service`, `user-1000.slice/session-3.scope` | systemd |

use serde::Serialize;

/// Length of the containers' IDs that all engines use.
const ID_LENGTH: usize = 64;

/// Who a cgroup belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Owner {
    /// The container engine: `containerd`, `cri-o`, `docker`, `podman`, `nspawn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) runtime: Option<&'static str>,
    /// The container's ID, 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container_id: Option<String>,
    /// The pod's UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod_uid: Option<String>,
    /// The pod's quality of service: `guaranteed`, `burstable`, `besteffort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) qos: Option<&'static str>,
    /// The innermost systemd service, scope or slice that is not a container's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<String>,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<String>,
    /// Name of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<String>,
}

/// Prefixes of the scopes and folders of containers.
const ENGINES: &[(&str, &str)] = &[
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("docker-", "docker"),
    ("libpod-", "podman"),
];

impl Owner {
    /// The owner of the cgroup at this path.
    #[must_use]
    pub(super) fn of_path(path: &str) -> Self {
        let mut owner = Self::default();
        let mut above = "";
        for step in path.split('/').filter(|step| !step.is_empty()) {
            owner.add_step(step, above);
            above = step;
        }
        if owner.pod_uid.is_some() {
            owner.qos.get_or_insert("guaranteed");
        }
        owner
    }

    /// The outermost container counts: those below it are made by its own processes, which choose their names.
    fn add_step(&mut self, step: &str, above: &str) {
        if self.container_id.is_some() || self.container.is_some() {
            return;
        }
        let name = step.trim_end_matches(".scope").trim_end_matches(".slice");
        if let Some((runtime, id)) = container(name) {
            self.runtime = runtime.or(self.runtime).or(if above == "docker" { Some("docker") } else { None });
            self.container_id = Some(id.to_owned());
        } else if let Some(uid) = pod_uid(name) {
            self.pod_uid = Some(uid);
            self.qos = qos(name).or(self.qos);
            self.unit = None;
        } else if let Some(machine) =
            step.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"))
        {
            self.runtime = Some("nspawn");
            self.container = Some(machine.to_owned());
        } else if name.contains("kubepods") || self.pod_uid.is_none() && matches!(name, "burstable" | "besteffort") {
            self.qos = qos(name).or(self.qos);
        } else if self.container_id.is_none() && self.container.is_none() && is_unit(step) {
            self.unit = Some(step.to_owned());
        }
    }

    /// The shortest text that names it: pod and container, container, or unit.
    #[must_use]
    pub(super) fn text(&self) -> Option<String> {
        match (&self.namespace, &self.pod, &self.container) {
            (Some(namespace), Some(pod), Some(container)) => Some(format!("{namespace}/{pod}/{container}")),
            (_, _, Some(container)) => Some(container.clone()),
            _ => self.container_id.clone().or_else(|| self.unit.clone()),
        }
    }
}

/// The part of a cgroup's path that names who is accountable for it: the outermost container, nspawn machine or user manager, else
/// the outermost service or scope; all of the path if there is none of them. Processes may name the cgroups below it as they
/// like, and none beside it.
#[must_use]
pub(super) fn accountable(path: &str) -> &str {
    let mut end = 0;
    let mut unit = None;
    for step in path.split_inclusive('/') {
        let name = step.trim_end_matches('/');
        end += name.len();
        let is_manager =
            ["user@", "systemd-nspawn@"].iter().any(|kind| name.starts_with(kind)) && name.ends_with(".service");
        let is_container = container(name.trim_end_matches(".scope")).is_some();
        if is_container || is_manager {
            return &path[..end];
        }
        if [".service", ".scope"].iter().any(|kind| name.ends_with(kind)) {
            unit = unit.or(Some(end));
        }
        end += step.len() - name.len();
    }
    &path[..unit.unwrap_or(path.len())]
}

/// Whether the kubelet made this cgroup of a pod. Services and containers can name the cgroups below their own as they like.
#[must_use]
pub(super) fn is_of_kubelet(path: &str) -> bool {
    let mut steps = path.split('/').filter(|step| !step.is_empty());
    let is_others =
        |step: &str| [".service", ".scope"].iter().any(|kind| step.ends_with(kind)) || container(step).is_some();
    steps.by_ref().find(|step| step.contains("kubepods") || is_others(step)).is_some_and(|step| !is_others(step))
}

/// The engine, if the name tells it, and the ID of a container's cgroup.
fn container(name: &str) -> Option<(Option<&'static str>, &str)> {
    if is_id(name) {
        return Some((None, name));
    }
    let (prefix, runtime) = ENGINES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let id = &name[prefix.len()..];
    is_id(id).then_some((Some(*runtime), id))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// `pod` and a UID, at the end of a slice's name with `_` for `-` (`escapeSystemdCgroupName`, pkg/kubelet/cm of kubernetes).
fn pod_uid(name: &str) -> Option<String> {
    let uid = name.rsplit_once("-pod").map_or_else(|| name.strip_prefix("pod"), |(_, uid)| Some(uid))?;
    let uid = uid.replace('_', "-");
    // Static pods have 32 digits, the hash of their manifest.
    let is_uid =
        (uid.len() == 36 || uid.len() == 32) && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then_some(uid)
}

fn qos(name: &str) -> Option<&'static str> {
    ["burstable", "besteffort"].into_iter().find(|class| name.split('-').any(|part| part == *class))
}

fn is_unit(step: &str) -> bool {
    [".service", ".scope", ".slice"].iter().any(|kind| step.ends_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e2d1c0b9a88776655443322110fff3f4e2d1c0b9a88776655443322110fff";
    const UID: &str = "0b1f6a52-9c1d-4a7e-8f53-2a5a0f7d9c11";

    fn owner(pattern: &str) -> Owner {
        Owner::of_path(&pattern.replace("ID", ID).replace("UUU", UID).replace("U_U", &UID.replace('-', "_")))
    }

    #[test]
    fn pods_of_the_kubelet_are_told_from_those_that_others_name_so() {
        let pod = "kubepods.slice/kubepods-podU.slice/cri-containerd-x.scope";
        assert!(is_of_kubelet(&format!("/{pod}")) && is_of_kubelet(&format!("/kubelet.slice/{pod}")));
        for above in ["system.slice/x.service", "user.slice/user-1000.slice/session-1.scope", &format!("docker/{ID}")] {
            assert!(!is_of_kubelet(&format!("/{above}/{pod}")), "{above}");
        }
        assert!(!is_of_kubelet("/system.slice/cron.service") && !is_of_kubelet("/"));
    }

    /// Paths as engines and kubelets make them.
    #[test]
    fn containers_are_named_by_their_paths() {
        let paths = [
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_U.slice/cri-containerd-ID.scope",
                "containerd",
            ),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podU_U.slice/cri-containerd-ID.scope",
                "containerd",
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_U.slice/crio-ID.scope/container",
                "cri-o",
            ),
            ("/system.slice/docker-ID.scope", "docker"),
            ("/docker/ID", "docker"),
            ("/docker/ID/job-3", "docker"),
            ("/machine.slice/libpod-ID.scope/container", "podman"),
            ("/libpod_parent/libpod-ID", "podman"),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope", "podman"),
            ("/../../system.slice/docker-ID.scope", "docker"),
        ];
        for (path, runtime) in paths {
            let owner = owner(path);
            assert_eq!((owner.runtime, owner.container_id.as_deref()), (Some(runtime), Some(ID)), "{path}");
            assert_eq!(
                owner.pod_uid.as_deref(),
                path.contains("pod").then_some(UID).filter(|_| path.contains("kubepods")),
                "{path}"
            );
        }
        let plain = owner("/k8s.io/ID");
        assert_eq!((plain.runtime, plain.container_id.as_deref()), (None, Some(ID)));
    }

    #[test]
    fn pods_have_a_uid_and_a_class() {
        let paths = [
            ("/kubepods/burstable/podUUU/ID", "burstable"),
            ("/kubepods/besteffort/podUUU/ID", "besteffort"),
            ("/kubepods/podUUU/ID", "guaranteed"),
            ("/kubepods.slice/kubepods-podU_U.slice/cri-containerd-ID.scope", "guaranteed"),
            ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_U.slice/crio-ID.scope", "besteffort"),
        ];
        for (path, class) in paths {
            let owner = owner(path);
            assert_eq!((owner.pod_uid.as_deref(), owner.qos), (Some(UID), Some(class)), "{path}");
            assert_eq!((owner.container_id.as_deref(), owner.unit), (Some(ID), None), "{path}");
        }
    }

    #[test]
    fn units_and_machines_are_named() {
        let text = |path: &str| owner(path).text();
        assert_eq!(text("/system.slice/nginx.service").as_deref(), Some("nginx.service"));
        assert_eq!(text("/user.slice/user-1000.slice/session-3.scope").as_deref(), Some("session-3.scope"));
        assert_eq!(text("/system.slice/nginx.service/workers").as_deref(), Some("nginx.service"));
        assert_eq!(text("/machine.slice/systemd-nspawn@box.service/payload").as_deref(), Some("box"));
        assert_eq!([text("/"), text("/jobs/one")], [None, None]);
    }

    /// A container's processes may make cgroups below their own and give them any name.
    #[test]
    fn names_below_a_container_are_not_its_owners() {
        let other = ID.replace('3', "e");
        for below in ["docker-OTHER.scope", "podUUU/OTHER", "systemd-nspawn@box.service", "nginx.service"] {
            let path = format!("/system.slice/docker-ID.scope/{}", below.replace("OTHER", &other));
            assert_eq!(owner(&path), owner("/system.slice/docker-ID.scope"), "{path}");
        }
        let nspawn = owner(&format!("/machine.slice/systemd-nspawn@box.service/docker/{other}"));
        assert_eq!((nspawn.container_id, nspawn.container.as_deref()), (None, Some("box")));
    }

    #[test]
    fn accountable_is_who_cannot_choose_the_path() {
        let own = |path: &str| path.replace("ID", ID).replace("U_U", &UID.replace('-', "_"));
        let cases = [
            ("/system.slice/docker-ID.scope", ""),
            ("/system.slice/docker-ID.scope", "/job-3"),
            ("/system.slice/docker-ID.scope", "/docker/ID"),
            ("/docker/ID", "/nginx.service"),
            ("/kubepods.slice/kubepods-podU_U.slice/cri-containerd-ID.scope", "/init.scope"),
            ("/system.slice/docker.service/docker/ID", "/a"),
            ("/machine.slice/libpod-ID.scope", "/container"),
            ("/machine.slice/systemd-nspawn@box.service", "/payload/docker/ID"),
            ("/system.slice/nginx.service", "/workers"),
            ("/user.slice/user-1000.slice/user@1000.service", "/user.slice/libpod-ID.scope"),
            ("/user.slice/user-1000.slice/session-3.scope", ""),
            ("/../../system.slice/docker-ID.scope", "/a"),
            ("/jobs/one", ""),
            ("/", ""),
            ("", ""),
        ];
        for (above, below) in cases {
            let (above, path) = (own(above), own(&format!("{above}{below}")));
            assert_eq!(accountable(&path), above, "{path}");
        }
    }

    #[test]
    fn hostile_names_are_not_ids() {
        for path in
            ["/docker/../ID", "/docker-\u{fffd}.scope", "/pod", "/kubepods/pod", "/docker-ID0.scope", "/-pod-pod"]
        {
            let owner = owner(path);
            assert!(owner.pod_uid.is_none() && owner.container_id.is_none_or(|id| id == ID), "{path}");
        }
    }
}
