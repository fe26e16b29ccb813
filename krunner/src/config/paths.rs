//! Every absolute path of the contract, as one value.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The places that the agent and the image agree on. Tests move them all below a root of their own.
#[derive(Debug, Clone)]
pub struct Paths {
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
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A place in the image; with a `*` in names of its pattern, the places there are, sorted.
    #[must_use]
    pub fn find(&self, pattern: &str) -> Vec<PathBuf> {
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
    pub fn work(&self) -> PathBuf {
        self.at("home/work")
    }

    /// Host port numbers that the agent chose.
    #[must_use]
    pub fn intrinsic_ports(&self) -> PathBuf {
        self.at("home/config/intrinsic-ports.json")
    }

    /// Variables that the agent adds to the environment.
    #[must_use]
    pub fn environ(&self) -> PathBuf {
        self.at("home/config/environ.txt")
    }

    /// The user's start-up script.
    #[must_use]
    pub fn bootstrap(&self) -> PathBuf {
        self.at("home/work/bootstrap.sh")
    }

    /// If this folder exists, logs are kept in it.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.at("home/work/.logs")
    }

    /// For files that live no longer than the session.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.at("tmp")
    }

    /// Where a program in batch mode asks for input.
    #[must_use]
    pub fn input_socket(&self) -> PathBuf {
        self.at("tmp/bai-user-input.sock")
    }

    /// The image's services, a file for each.
    #[must_use]
    pub fn service_definitions(&self) -> PathBuf {
        self.at("etc/backend.ai/service-defs")
    }

    /// Starts the daemon of H2O Driverless AI.
    #[must_use]
    pub fn h2o_daemon(&self) -> PathBuf {
        self.at("opt/h2oai/dai/run-dai.sh")
    }

    /// Folders that lead `PATH` when they exist; the last one here comes first.
    #[must_use]
    pub fn promoted_if_present(&self) -> [PathBuf; 3] {
        ["usr/local/cuda/bin", "usr/local/nvidia/bin", "home/linuxbrew/.linuxbrew/bin"].map(|path| self.at(path))
    }

    /// The folder of the user's own programs: leads `PATH` always.
    #[must_use]
    pub fn user_bin(&self) -> PathBuf {
        self.at("home/work/.local/bin")
    }

    /// Libraries of the `/opt/backend.ai` volume, which user code must not load.
    #[must_use]
    pub fn volume_libraries(&self) -> &'static Path {
        Path::new("/opt/backend.ai/lib")
    }

    /// A program of the agent's that is no business of the user's `PATH`.
    #[must_use]
    pub fn kernel_program(&self, name: &str) -> PathBuf {
        self.at("opt/kernel").join(name)
    }

    /// The terminal server that came with the `/opt/backend.ai` volume before it had a place of its own.
    #[must_use]
    pub fn volume_ttyd(&self) -> PathBuf {
        self.at("opt/backend.ai/bin/ttyd")
    }

    /// A program of the image's `/bin`.
    #[must_use]
    pub fn image_program(&self, name: &str) -> PathBuf {
        self.at("bin").join(name)
    }

    /// A file that the agent gives for ssh: a host key, the cluster's key pair, the cluster's ports.
    #[must_use]
    pub fn given_ssh(&self, name: &str) -> PathBuf {
        self.at("home/config/ssh").join(name)
    }

    /// Where the runner makes ssh keys.
    #[must_use]
    pub fn dropbear(&self) -> PathBuf {
        self.at("tmp/dropbear")
    }
}

/// What is in the folder with such a name, sorted.
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
