//! Names of pods and containers from files: no API, no socket of an engine.
//!
//! The kubelet keeps a link for each container, `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log` (`legacyLogSymlink`,
//! pkg/kubelet/kuberuntime of kubernetes). Docker and Podman keep their state in JSON files. What is missing, unreadable or
//! malformed has no name; the ID remains.
//!
//! Bounded: a folder is listed at most once in [`LIST_INTERVAL`], [`MAX_LINKS`] entries of it; files up to [`MAX_FILE_BYTES`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::names::Owner;

/// Where the kubelet keeps its links.
const KUBELET: &str = "var/log/containers";

/// Docker's folder of containers.
const DOCKER: &str = "var/lib/docker/containers";

/// Podman's list of containers, of root.
const PODMAN: &str = "var/lib/containers/storage/overlay-containers/containers.json";

/// Containers appear slower than kills.
const LIST_INTERVAL: Duration = Duration::from_secs(1);

/// Twenty times the containers of a large node.
const MAX_LINKS: usize = 10_000;

const MAX_FILE_BYTES: u64 = 4 << 20;

/// Owners by container ID.
const MAX_KNOWN: usize = 4096;

/// Longest name of a Kubernetes object (RFC 1123 subdomain).
const MAX_NAME_BYTES: usize = 253;

/// Names by container ID.
#[derive(Debug)]
pub(super) struct NameFiles {
    root: PathBuf,
    known: BTreeMap<String, Names>,
    listed: Option<Instant>,
}

/// What files know of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    namespace: Option<String>,
    pod: Option<String>,
    container: Option<String>,
}

impl NameFiles {
    /// Reads below this folder; `/` for the real files.
    #[must_use]
    pub(super) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: BTreeMap::new(), listed: None }
    }

    /// The owner of the cgroup at this path, with names if they are known. May list a folder.
    #[must_use]
    pub(super) fn owner(&mut self, path: &str) -> Owner {
        let owner = Owner::of_path(path);
        let Some(id) = owner.container_id.clone().filter(|_| !is_users_own(path)) else { return owner };
        if !self.known.contains_key(&id) {
            self.look_up(&id);
        }
        let Names { namespace, pod, container } = self.known.get(&id).cloned().unwrap_or_default();
        Owner { namespace, pod, container, ..owner }
    }

    fn look_up(&mut self, id: &str) {
        if self.listed.is_none_or(|listed| listed.elapsed() >= LIST_INTERVAL) {
            self.list_kubelet();
            self.list_podman();
            self.listed = Some(Instant::now());
        }
        if !self.known.contains_key(id)
            && let Some(name) = docker_name(&self.root.join(DOCKER).join(id).join("config.v2.json"))
        {
            self.learn(id, Names { container: Some(name), ..Names::default() });
        }
    }

    fn list_kubelet(&mut self) {
        let Ok(links) = fs::read_dir(self.root.join(KUBELET)) else { return };
        for link in links.take(MAX_LINKS).flatten() {
            if let Some((id, names)) = link.file_name().to_str().and_then(of_link) {
                self.learn(id, names);
            }
        }
    }

    fn list_podman(&mut self) {
        let Some(Value::Array(containers)) = read_json(&self.root.join(PODMAN)) else { return };
        for container in containers {
            let (id, name) = (&container["id"], container["names"].get(0));
            if let (Some(id), Some(name)) = (id.as_str(), name.and_then(Value::as_str).and_then(printable)) {
                self.learn(id, Names { container: Some(name), ..Names::default() });
            }
        }
    }

    fn learn(&mut self, id: &str, names: Names) {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(id.to_owned(), names);
    }
}

/// Parses `POD_NAMESPACE_CONTAINER-ID.log`. No name contains `_`.
fn of_link(name: &str) -> Option<(&str, Names)> {
    let (rest, id) = name.strip_suffix(".log")?.rsplit_once('-')?;
    let mut parts = rest.split('_').map(printable);
    let (pod, namespace, container) = (parts.next()??, parts.next()??, parts.next()??);
    let is_whole = parts.next().is_none() && id.len() == 64;
    is_whole.then_some((id, Names { namespace: Some(namespace), pod: Some(pod), container: Some(container) }))
}

fn docker_name(file: &Path) -> Option<String> {
    let name = read_json(file)?;
    printable(name["Name"].as_str()?.trim_start_matches('/'))
}

fn read_json(file: &Path) -> Option<Value> {
    let mut text = Vec::new();
    File::open(file).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A name as engines allow it.
fn printable(name: &str) -> Option<String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (!name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(is_name)).then(|| name.to_owned())
}

/// Whether a user made the cgroup, below that of the own service manager: the user also chose its name, which may be the ID of
/// a container of the machine.
fn is_users_own(path: &str) -> bool {
    path.split('/').any(|step| step.starts_with("user@") && step.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn files() -> (TempDir, NameFiles) {
        let root = TempDir::new().unwrap();
        for folder in [KUBELET, &format!("{DOCKER}/{}", id('b')), "var/lib/containers/storage/overlay-containers"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let link = format!("web-0_shop_nginx-{}.log", id('a'));
        symlink("/does/not/exist", root.path().join(KUBELET).join(link)).unwrap();
        let config = root.path().join(DOCKER).join(id('b')).join("config.v2.json");
        fs::write(config, r#"{"ID":"x","Name":"/pensive_hopper"}"#).unwrap();
        let podman = format!(r#"[{{"id":"{}","names":["quiet_one"]}},{{"id":7}}]"#, id('c'));
        fs::write(root.path().join(PODMAN), podman).unwrap();
        let names = NameFiles::below(root.path());
        (root, names)
    }

    #[test]
    fn names_come_from_the_files_of_each_engine() {
        let (_root, mut names) = files();
        let mut text = |path: String| names.owner(&path).text();
        assert_eq!(text(format!("/kubepods/podx/{}", id('a'))).as_deref(), Some("shop/web-0/nginx"));
        assert_eq!(text(format!("/docker/{}", id('b'))).as_deref(), Some("pensive_hopper"));
        assert_eq!(text(format!("/machine.slice/libpod-{}.scope", id('c'))).as_deref(), Some("quiet_one"));
        assert_eq!(text(format!("/docker/{}", id('d'))), Some(id('d')), "unknown: the ID");
    }

    #[test]
    fn hostile_links_and_files_have_no_name() {
        let (root, mut names) = files();
        for name in ["_", "a_b_c-x.log", "a_b_c\n-1.log", "-.log", "....log"] {
            let _ = symlink("/", root.path().join(KUBELET).join(name));
        }
        let config = root.path().join(DOCKER).join(id('b')).join("config.v2.json");
        fs::write(config, "{\"Name\":\"/a\\u001b[31mb\"}").unwrap();
        assert_eq!(names.owner(&format!("/docker/{}", id('b'))).text(), Some(id('b')));
        assert_eq!(names.owner(&format!("/x/{}", id('a'))).pod.as_deref(), Some("web-0"));
    }

    #[test]
    fn cgroups_below_a_users_service_manager_are_the_users() {
        assert!(is_users_own("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-1.scope"));
        assert!(
            !is_users_own("/system.slice/docker-1.scope")
                && !is_users_own("/user.slice/user-1000.slice/session-3.scope")
        );
    }
}
