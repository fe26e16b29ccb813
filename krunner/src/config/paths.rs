//! Every absolute path of the contract, as one value.

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
