//! All absolute paths of the contract with the agent and the image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Tells programs the path of the input socket if it is not the default one.
pub(crate) const INPUT_SOCKET_VARIABLE: &str = "KRUNNER_INPUT_SOCKET";

const AGENT_VERSION: &str = "opt/backend.ai/lib/python*/site-packages/ai/backend/helpers/VERSION";

/// The paths that the agent and the image agree on. Tests place them all below their own root.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self::below("/")
    }
}

impl Paths {
    /// The contract's paths below `root`; `/` for the real ones.
    #[must_use]
    pub(crate) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Expands a path pattern of the image: components may contain one `*`; the existing paths are returned sorted.
    #[must_use]
    pub(crate) fn find(&self, pattern: &str) -> Vec<PathBuf> {
        let mut found = vec![self.root.clone()];
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            found = match part.split_once('*') {
                None => found.iter().map(|path| path.join(part)).collect(),
                Some((start, end)) => found.iter().flat_map(|folder| matching(folder, start, end)).collect(),
            };
        }
        if pattern.contains('*') {
            found.retain(|path| path.exists());
        }
        found
    }

    /// The user's home and working directory.
    #[must_use]
    pub(crate) fn work(&self) -> PathBuf {
        self.at("home/work")
    }

    /// Host port numbers that the agent chose.
    #[must_use]
    pub(crate) fn intrinsic_ports(&self) -> PathBuf {
        self.at("home/config/intrinsic-ports.json")
    }

    /// Variables that the agent adds to the environment.
    #[must_use]
    pub(crate) fn environ(&self) -> PathBuf {
        self.at("home/config/environ.txt")
    }

    /// The user's start-up script.
    #[must_use]
    pub(crate) fn bootstrap(&self) -> PathBuf {
        self.at("home/work/bootstrap.sh")
    }

    /// The password of the user's account, if the agent's entrypoint made one. It makes one where this file is missing.
    #[must_use]
    pub(crate) fn password(&self) -> PathBuf {
        self.at("home/work/.password")
    }

    /// The folder for logs, which are written only if it exists.
    #[must_use]
    pub(crate) fn logs(&self) -> PathBuf {
        self.at("home/work/.logs")
    }

    /// The message file that Kubernetes shows after the container exits, if it exists.
    #[must_use]
    pub(crate) fn termination_message(&self) -> PathBuf {
        self.at("dev/termination-log")
    }

    /// The folder for files that live as long as the session.
    #[must_use]
    pub(crate) fn temporary(&self) -> PathBuf {
        self.at("tmp")
    }

    /// The socket through which a program in batch mode requests input.
    #[must_use]
    pub(crate) fn input_socket(&self) -> PathBuf {
        self.at("tmp/bai-user-input.sock")
    }

    /// The service definitions of the image, one file each.
    #[must_use]
    pub(crate) fn service_definitions(&self) -> PathBuf {
        self.at("etc/backend.ai/service-defs")
    }

    /// The script that starts the daemon of H2O Driverless AI.
    #[must_use]
    pub(crate) fn h2o_daemon(&self) -> PathBuf {
        self.at("opt/h2oai/dai/run-dai.sh")
    }

    /// Folders that lead `PATH` when they exist; the last one here comes first.
    #[must_use]
    pub(crate) fn promoted_if_present(&self) -> [PathBuf; 3] {
        ["usr/local/cuda/bin", "usr/local/nvidia/bin", "home/linuxbrew/.linuxbrew/bin"].map(|path| self.at(path))
    }

    /// The folder of the user's own programs, always first in `PATH`.
    #[must_use]
    pub(crate) fn user_bin(&self) -> PathBuf {
        self.at("home/work/.local/bin")
    }

    /// Libraries of the `/opt/backend.ai` volume, which user code must not load.
    #[must_use]
    pub(crate) fn volume_libraries() -> &'static Path {
        Path::new("/opt/backend.ai/lib")
    }

    /// The files with the agent's version, one for each Python of the volume.
    #[must_use]
    pub(crate) fn agent_versions(&self) -> Vec<PathBuf> {
        self.find(AGENT_VERSION)
    }

    /// The pattern of [`Self::agent_versions`].
    #[must_use]
    pub(crate) fn agent_version_pattern(&self) -> PathBuf {
        self.at(AGENT_VERSION)
    }

    /// A program of the agent that is not in the user's `PATH`.
    #[must_use]
    pub(crate) fn kernel_program(&self, name: &str) -> PathBuf {
        self.at("opt/kernel").join(name)
    }

    /// The former path of the terminal server, in the `/opt/backend.ai` volume.
    #[must_use]
    pub(crate) fn volume_ttyd(&self) -> PathBuf {
        self.at("opt/backend.ai/bin/ttyd")
    }

    /// A program of the image's `/bin`.
    #[must_use]
    pub(crate) fn image_program(&self, name: &str) -> PathBuf {
        self.at("bin").join(name)
    }

    /// An ssh file provided by the agent: a host key, the cluster's key pair, the cluster's ports.
    #[must_use]
    pub(crate) fn given_ssh(&self, name: &str) -> PathBuf {
        self.at("home/config/ssh").join(name)
    }

    /// The folder in which the runner generates ssh keys.
    #[must_use]
    pub(crate) fn dropbear(&self) -> PathBuf {
        self.at("tmp/dropbear")
    }
}

/// The entries of the folder whose names match, sorted.
fn matching(folder: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let wanted = |name: &OsString| {
        let name = name.as_encoded_bytes();
        name.strip_prefix(start.as_bytes()).is_some_and(|rest| rest.ends_with(end.as_bytes()))
    };
    let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<PathBuf> = names.filter(wanted).map(|name| folder.join(name)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_pattern_stands_for_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        for made in ["jvm/java-17/bin", "jvm/java-11/bin", "jvm/java-8", "jvm/other/bin"] {
            fs::create_dir_all(root.path().join(made)).unwrap();
        }
        let paths = Paths::below(root.path());
        let found = ["jvm/java-11/bin", "jvm/java-17/bin"].map(|path| root.path().join(path));
        assert_eq!(paths.find("/jvm/java-*/bin"), found);
        assert_eq!(paths.find("/nowhere/*"), Vec::<PathBuf>::new());
        assert_eq!(
            paths.find("/jvm/none"),
            [root.path().join("jvm/none")],
            "without a star it is a place, there or not"
        );
        let overlapping = root.path().join("jvm/java-17");
        assert!(!paths.find("/jvm/java-17*-17").contains(&overlapping), "start and end do not share characters");
    }
}
