//! What engines of Debian 12 lack, and what a user does instead: `dist/README.md`, "What engines must allow".
//!
//! | engine | lacks | instead |
//! |---|---|---|
//! | Docker before 23.0 | CAP_BPF | CAP_SYS_ADMIN, as root; the agent's containers, whose user is not root, get no BPF |
//! | earlyoom before 1.8 | `--ignore` | not tried: it would kill other programs |
//! | podman with containers-common before 0.62 | bpf(2) with CAP_BPF in its seccomp profile | no profile |

use std::fs;
use std::sync::LazyLock;

use crate::command::{command, outcome, output};
use crate::engine::Engine;

const PROFILE: &str = "/usr/share/containers/seccomp.json";

const NO_PROFILE: [&str; 2] = ["--security-opt", "seccomp=unconfined"];

/// Whether Docker knows `CAP_BPF`.
static DOCKER_KNOWS_BPF: LazyLock<bool> = LazyLock::new(|| {
    let version = output(&mut command(&["docker", "version", "--format", "{{.Server.Version}}"])).unwrap_or_default();
    // One that does not answer is not taken for an older one.
    version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_none_or(|major| major >= 23)
});

/// Whether podman's seccomp profile allows bpf(2) with `CAP_BPF`.
static PODMAN_ALLOWS_BPF: LazyLock<bool> =
    LazyLock::new(|| fs::read_to_string(PROFILE).map_or(true, |profile| profile.contains("CAP_BPF")));

/// The options of a container that this machine's engine accepts.
pub(crate) fn accepted(engine: Engine, flags: &[&'static str]) -> Vec<&'static str> {
    let asks_for_bpf = flags.contains(&"BPF");
    match engine {
        Engine::Docker if asks_for_bpf && !*DOCKER_KNOWS_BPF => flags
            .iter()
            .map(|flag| match *flag {
                "BPF" | "PERFMON" => "SYS_ADMIN",
                other => other,
            })
            .collect(),
        Engine::Podman if asks_for_bpf && !*PODMAN_ALLOWS_BPF => [flags, &NO_PROFILE].concat(),
        _ => flags.to_vec(),
    }
}

/// A recipe for Docker that this machine's Docker accepts.
pub(crate) fn accepted_recipe(text: &str) -> String {
    if *DOCKER_KNOWS_BPF || !text.contains("--cap-add BPF") {
        return text.to_owned();
    }
    text.replace("--cap-add BPF --cap-add PERFMON", "--cap-add SYS_ADMIN").replace("--user 1000:1000", "--user 0:0")
}

/// Why this Docker cannot do what the agent asks for; `None` if it can.
pub(crate) fn refuses_request(request: &str) -> Option<&'static str> {
    let asks_for_bpf = fs::read_to_string(request).is_ok_and(|text| text.contains("\"BPF\""));
    refuses_bpf_to_a_user().filter(|_| asks_for_bpf)
}

/// Why a user who is not root gets no BPF from Docker here; `None` if one does.
pub(crate) fn refuses_bpf_to_a_user() -> Option<&'static str> {
    (!*DOCKER_KNOWS_BPF).then_some("this Docker knows no CAP_BPF")
}

/// Why earlyoom cannot be kept from killing other programs; `None` if it can.
pub(crate) fn refuses_to_ignore() -> Option<&'static str> {
    let help = outcome(&mut command(&["earlyoom", "--help"]));
    let can_ignore = help.map_or(true, |(_, stdout, stderr)| (stdout + &stderr).contains("--ignore REGEX"));
    (!can_ignore).then_some("this earlyoom has no --ignore")
}
