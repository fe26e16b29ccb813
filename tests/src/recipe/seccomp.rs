//! The seccomp profile that container engines apply by default, as a runtime takes it.
//!
//! A profile of theirs has rules for this or that machine and for who has this or that capability; an engine picks
//! those that are in force and hands the rest of it to the runtime (`setupSeccomp`, profiles/seccomp of moby). The
//! profile is podman's, which is derived from moby's and the one that Debian has as a file.

use std::env::consts::ARCH;
use std::fs;

use serde::Deserialize;
use serde_json::{Value, json};

use super::rights::Engine;

/// From Debian's `golang-github-containers-common`.
const FILE: &str = "/usr/share/containers/seccomp.json";

const BPF: &str = "bpf";
const CAP_BPF: &str = "CAP_BPF";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(rename = "defaultErrno")]
    _default_errno: Option<String>,
    arch_map: Vec<Architecture>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architecture {
    architecture: String,
    sub_architectures: Vec<String>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(rename = "errno")]
    _errno: Option<String>,
    args: Option<Vec<Value>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

/// That profile for a container with these capabilities.
///
/// # Errors
/// When there is no such file, or it is none of the kind.
pub(super) fn default_profile(engine: Engine, capabilities: &[&str]) -> Result<Value, String> {
    let text = fs::read_to_string(FILE).map_err(|error| format!("no seccomp profile: {FILE}: {error}"))?;
    let mut profile: Profile = serde_json::from_str(&text).map_err(|error| format!("{FILE}: {error}"))?;
    match (engine, profile.knows_cap_bpf()) {
        (Engine::New, false) => profile.learn_cap_bpf(),
        (Engine::Old, true) => return Err(format!("{FILE} is a new engine's: it lets bpf through for {CAP_BPF}")),
        _ => {}
    }
    Ok(profile.in_force(capabilities))
}

impl Profile {
    fn knows_cap_bpf(&self) -> bool {
        self.syscalls.iter().any(|rule| rule.is_about(BPF) && rule.includes.caps.iter().any(|name| name == CAP_BPF))
    }

    /// What newer ones say of it: allowed with that capability, too.
    fn learn_cap_bpf(&mut self) {
        let about: Vec<Rule> = self.syscalls.iter().filter(|rule| rule.is_about(BPF)).cloned().collect();
        for rule in &mut self.syscalls {
            rule.names.retain(|name| name != BPF);
        }
        for mut rule in about {
            rule.names = vec![BPF.to_owned()];
            if !rule.excludes.caps.is_empty() {
                rule.excludes.caps.push(CAP_BPF.to_owned());
            }
            if !rule.includes.caps.is_empty() {
                self.syscalls.push(rule.clone());
                rule.includes.caps = vec![CAP_BPF.to_owned()];
            }
            self.syscalls.push(rule);
        }
    }

    fn in_force(&self, capabilities: &[&str]) -> Value {
        let arch = format!("SCMP_ARCH_{}", ARCH.to_uppercase());
        let architectures = self.arch_map.iter().filter(|known| known.architecture == arch);
        let architectures: Vec<&String> =
            architectures.flat_map(|known| [&known.architecture].into_iter().chain(&known.sub_architectures)).collect();
        let rules = self.syscalls.iter().filter(|rule| !rule.names.is_empty() && rule.is_in_force(capabilities));
        json!({
            "defaultAction": self.default_action,
            "defaultErrnoRet": self.default_errno_ret,
            "architectures": architectures,
            "syscalls": rules.map(Rule::to_value).collect::<Vec<Value>>(),
        })
    }
}

impl Rule {
    fn is_about(&self, call: &str) -> bool {
        self.names.iter().any(|name| name == call)
    }

    fn is_in_force(&self, capabilities: &[&str]) -> bool {
        let has = |name: &String| capabilities.contains(&name.as_str());
        let is_here = |name: &String| *name == go_arch();
        self.includes.caps.iter().all(has)
            && !self.excludes.caps.iter().any(has)
            && (self.includes.arches.is_empty() || self.includes.arches.iter().any(is_here))
            && !self.excludes.arches.iter().any(is_here)
    }

    fn to_value(&self) -> Value {
        let mut value = json!({ "names": self.names, "action": self.action });
        if let Some(errno) = self.errno_ret {
            value["errnoRet"] = errno.into();
        }
        if let Some(args) = self.args.as_ref().filter(|args| !args.is_empty()) {
            value["args"] = args.clone().into();
        }
        value
    }
}

/// As Go calls it.
fn go_arch() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
