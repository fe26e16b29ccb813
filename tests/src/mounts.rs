//! What the agent mounts into every container, asked of the agent's own code (`tests/agent/mounts.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

/// Mounts and variables of a container, in the agent's order.
#[derive(Clone, Debug, Deserialize)]
pub struct Mounts {
    mounts: Vec<Mount>,
    environ: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Mount {
    source: PathBuf,
    target: String,
}

impl Mounts {
    /// Those of the agent in that interpreter's environment, for an image of this distribution.
    pub fn of(python: &Path, distro: &str, volume: &Path) -> Result<Self, String> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/mounts.py");
        let mut command = Command::new(python);
        command.args(["-W", "ignore"]).arg(program).arg(distro).arg(volume).stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("cannot run {}: {error}", python.display()))?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("the agent's mounts: {error}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Mounts another file or folder at that point, which has to be one of the agent's.
    #[track_caller]
    #[must_use]
    pub fn replace(mut self, target: &str, source: impl Into<PathBuf>) -> Self {
        let mount = self.mounts.iter_mut().find(|mount| mount.target == target);
        mount.unwrap_or_else(|| panic!("the agent mounts nothing at {target}")).source = source.into();
        self
    }

    /// What is mounted at that point.
    #[track_caller]
    pub fn source(&self, target: &str) -> &Path {
        let mount = self.mounts.iter().find(|mount| mount.target == target);
        &mount.unwrap_or_else(|| panic!("the agent mounts nothing at {target}")).source
    }

    /// Sources and points.
    pub fn binds(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.mounts.iter().map(|mount| (mount.source.as_path(), mount.target.as_str()))
    }

    /// Environment variables as `NAME=VALUE`.
    pub fn variables(&self) -> impl Iterator<Item = String> {
        self.environ.iter().map(|(name, value)| format!("{name}={value}"))
    }
}
