//! `krunner doctor --agent PATH`: which runner the agent there mounts into its sessions, and whether it may use BPF.
//!
//! An agent mounts the folder `kernel` beside its own package `ai.backend.runner` (`resolve_krunner_filepath` of its Docker
//! back end), so the question is where that package is. `locate` answers it; this file says what is in the folder.

mod locate;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use self::locate::Located;
use crate::error::chain;
use crate::monitor::tracer::probe::{CheckState, HostCheck};
use crate::sys::FileCapabilities;

pub(super) use self::locate::PexRoots;

/// What the agent at that path mounts.
pub(super) fn checks(agent: &Path, roots: &PexRoots) -> Vec<HostCheck> {
    let located = match locate::locate(agent, roots) {
        Ok(located) => located,
        Err(error) => {
            let remedy = "name the agent's program, its PEX or scie file, its virtual environment or its site-packages";
            return vec![check("agent-files", CheckState::Missing, chain(&error), Some(remedy.to_owned()))];
        }
    };
    let mut checks = vec![form(&located)];
    checks.extend(located.packages.iter().flat_map(|package| package_checks(package, &located)));
    checks.push(check(
        "agent-start",
        CheckState::Note,
        "sessions start with `python -m ai.backend.kernel`".to_owned(),
        Some(
            "if no runner starts at all: the image must not set PYTHONHOME, and the session's home must not have a folder \
             `ai` with an __init__.py"
                .to_owned(),
        ),
    ));
    checks
}

fn check(name: &'static str, state: CheckState, found: String, remedy: Option<String>) -> HostCheck {
    HostCheck { check: name, state, found, remedy }
}

fn form(located: &Located) -> HostCheck {
    let found =
        format!("{}{}", located.form, located.version.as_ref().map(|v| format!(", agent {v}")).unwrap_or_default());
    if !located.packages.is_empty() {
        return check("agent-files", CheckState::Ok, found, None);
    }
    let remedy = if located.form.is_unpacked_at_start() {
        "start the agent once, replace `ai/backend/kernel` in the folder it unpacked itself to, and restart it"
    } else {
        "install the agent's package `backend.ai-kernel`, or name another path"
    };
    check("agent-files", CheckState::Missing, format!("{found}: ai/backend/kernel not found"), Some(remedy.to_owned()))
}

/// A folder `ai/backend/kernel`.
fn package_checks(package: &Path, located: &Located) -> Vec<HostCheck> {
    let program = package.join("krunner");
    let version = fs::read_to_string(package.join("VERSION")).unwrap_or_default();
    let shown = package.display();
    let Ok(about) = fs::metadata(&program) else {
        let again = if located.form.is_unpacked_at_start() {
            "; an upgrade unpacks a new folder: check again after each"
        } else {
            "; an upgrade of the agent restores it"
        };
        let remedy = format!("replace it with `ai/backend/kernel` of `cargo xtask dist`{again}");
        let found = format!("{shown}: the Python runner {}", version.trim());
        return vec![check("agent-runner", CheckState::Missing, found, Some(remedy))];
    };
    let mut checks = Vec::new();
    let is_complete =
        package.join("__main__.py").is_file() && about.is_file() && about.permissions().mode() & 0o111 != 0;
    checks.push(if is_complete {
        check("agent-runner", CheckState::Ok, format!("{shown}: krunner ({})", version.trim()), None)
    } else {
        let remedy = "copy the folder again and preserve file modes (cp -a)".to_owned();
        check("agent-runner", CheckState::Missing, format!("{shown}: krunner, but not executable"), Some(remedy))
    });
    checks.push(capabilities(&program));
    checks
}

/// Of the file, which a session's user gets by starting it.
fn capabilities(program: &Path) -> HostCheck {
    const NAME: &str = "agent-capabilities";
    let held = match FileCapabilities::of(program) {
        Ok(held) => held,
        Err(error) => return check(NAME, CheckState::Note, format!("{}: {error}", program.display()), None),
    };
    let is_nosuid = statvfs(program).is_ok_and(|about| about.flags().contains(FsFlags::ST_NOSUID));
    if held.may_trace() && is_nosuid {
        let remedy = "install the agent on a file system without `nosuid`".to_owned();
        return check(
            NAME,
            CheckState::Missing,
            format!("{held}, but the file system is mounted `nosuid`"),
            Some(remedy),
        );
    }
    if held.may_trace() {
        return check(NAME, CheckState::Ok, held.to_string(), None);
    }
    let remedy = format!("setcap cap_bpf,cap_perfmon+p {}; repeat after each copy", program.display());
    check(
        NAME,
        CheckState::Missing,
        format!("{held}: OOM kills are inferred in sessions of users who are not root"),
        Some(remedy),
    )
}

/// Folders that unpacked PEX files are in.
impl PexRoots {
    /// Those of the caller: `PEX_ROOT`, else the two that PEX uses by default.
    pub(super) fn of_caller() -> Self {
        let given = std::env::var_os("PEX_ROOT").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        Self(given.map_or_else(|| vec![cache.join("pex"), home.join(".pex")], |root| vec![root]))
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
