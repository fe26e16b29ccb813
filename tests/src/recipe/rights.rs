//! The privileges that a recipe grants, independent of its format, and the container that results.
//!
//! Two labels of a recipe state its expected outcome, `krunner/tracer` and `krunner/confidence`. Unknown syntax
//! is an error, because an ignored flag could change the outcome.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{agent, docker, kubernetes, seccomp};
use crate::container::{DEFAULT_CAPABILITIES, KRUNNER, Spec};
use crate::host;

/// Every capability, in the kernel's order (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A generation of container engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Its seccomp profile allows `bpf` with `CAP_BPF`: Docker since 23.0.
    New,
    /// Its seccomp profile allows `bpf` only with `CAP_SYS_ADMIN`: podman of Debian 12.
    Old,
}

/// A parsed recipe.
#[derive(Debug)]
pub struct Recipe {
    /// The tracer that it promises.
    pub tracer: String,
    /// The confidence of reports that it promises.
    pub confidence: String,
    /// The image, if the recipe names one.
    pub image: Option<String>,
    /// The command, including the image's entrypoint.
    pub command: Vec<String>,
    /// The user in the container.
    pub user_id: u32,
    /// The memory limit.
    pub memory_mib: u64,
    pub(super) spec: Spec,
    pub(super) given: Given,
    pub(super) is_confined: bool,
}

/// The capabilities of a container.
#[derive(Debug)]
pub(super) enum Given {
    /// Every capability that the machine has.
    All,
    /// Only the capabilities in this list.
    These(Vec<&'static str>),
}

impl Recipe {
    /// The container that the engine would create.
    ///
    /// # Errors
    /// If the machine lacks something that the container needs.
    pub fn spec(&self, engine: Engine) -> Result<Spec, String> {
        let spec = self.spec.clone().user(self.user_id).memory(self.memory_mib);
        match &self.given {
            // Neither is root of this machine given what root does not have (CAP_SYS_RESOURCE, in a sandbox).
            Given::All => Ok(spec.exactly(of_this_machine()?).unmasked()),
            Given::These(names) if self.is_confined => {
                let profile = seccomp::default_profile(engine, names)?;
                Ok(spec.exactly(names.clone()).seccomp(profile))
            }
            Given::These(names) => Ok(spec.exactly(names.clone())),
        }
    }
}

/// Applies `--cap-drop` and `--cap-add` as engines and Kubernetes do.
pub(super) fn capabilities(drop: &[String], add: &[String]) -> Result<Given, String> {
    let mut names = match drop {
        [] => DEFAULT_CAPABILITIES.to_vec(),
        [all] if all == "ALL" => Vec::new(),
        other => return Err(format!("which is left after dropping {other:?}? ALL is what can be dropped here")),
    };
    for name in add {
        let full = format!("CAP_{name}");
        let known = CAPABILITIES.iter().find(|known| **known == full);
        names.push(known.ok_or_else(|| format!("{name} is no capability"))?);
    }
    Ok(Given::These(names))
}

fn of_this_machine() -> Result<Vec<&'static str>, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t"));
    let bits =
        bits.and_then(|bits| u64::from_str_radix(bits, 16).ok()).ok_or("no bounding set in /proc/self/status")?;
    Ok(CAPABILITIES.iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1).map(|(_, name)| *name).collect())
}

/// Reads the labels `krunner/tracer` and `krunner/confidence`.
pub(super) fn promise(labels: &BTreeMap<String, String>) -> Result<(String, String), String> {
    let told = |name: &str| labels.get(name).cloned().ok_or_else(|| format!("no label {name}"));
    if let Some(stray) = labels.keys().find(|name| !["krunner/tracer", "krunner/confidence"].contains(&name.as_str())) {
        return Err(format!("what is the label {stray} for?"));
    }
    Ok((told("krunner/tracer")?, told("krunner/confidence")?))
}

/// Fails unless an image has a fixed version.
pub(super) fn fixed(image: &str) -> Result<(), String> {
    match image.rsplit_once(':') {
        Some((_, "latest")) => Err(format!("{image} is another one every day")),
        Some((_, tag)) if !tag.contains('/') => Ok(()),
        _ => Err(format!("{image} has no tag, so it is the latest")),
    }
}

/// Arguments for the image of `krunner/dist/Dockerfile`, or a whole command for another.
pub(super) fn command(image: &str, words: &[String]) -> Vec<String> {
    let entrypoint = image.starts_with("krunner:").then(|| KRUNNER.to_owned());
    entrypoint.into_iter().chain(words.iter().cloned()).collect()
}

/// Parses a size such as `512m` or `512Mi`.
pub(super) fn mebibytes(text: &str, unit: &str) -> Result<u64, String> {
    let number = text.strip_suffix(unit).and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("{text} is no number of MiB ({unit})"))
}

/// The folder with the recipes.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../krunner/dist/recipes")
}

/// The paths of all recipes below [`folder`], sorted.
#[track_caller]
pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    let mut waiting = vec![folder()];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).flatten() {
            if entry.path().is_dir() {
                waiting.push(entry.path());
            } else {
                let path = entry.path();
                names.push(path.strip_prefix(folder()).expect("it is below").to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    names
}

/// Parses a recipe. Panics if it is invalid.
///
/// # Errors
/// If this machine lacks something that parsing needs.
#[track_caller]
pub fn read(name: &str) -> Result<Recipe, String> {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let recipe = match path.extension().and_then(|extension| extension.to_str()) {
        Some("sh") => docker::recipe(&text),
        Some("yaml") => kubernetes::recipe(&text),
        _ => agent::recipe(&text, &host::agent_python()?),
    };
    Ok(recipe.unwrap_or_else(|error| panic!("{name}: {error}")))
}
