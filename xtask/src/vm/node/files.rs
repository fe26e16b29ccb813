//! Packs the initramfs of a node: busybox, the script that mounts the disk, and the tests, which it puts at `/opt/node`.
//!
//! The agent is not there, but what it asks Docker for, made by its own code on this machine, and its entrypoint.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host::BUSYBOX;
use crate::musl::{Arch, Site};
use crate::venv;
use crate::vm::cpio::Archive;
use crate::workspace::{printed, root};

const INIT: &str = include_str!("../../../../tests/vm/node/init.sh");

/// Prints the agent's request for a container, merged with the options in its argument.
const REQUEST: &str = include_str!("agent_request.py");

/// The options of the agent's containers, below `krunner/dist`.
const AGENT_OPTIONS: &str = "agent-docker-container-opts.json";

/// What the agent mounts into every container, by its name here and in its package `ai.backend.runner`.
const AGENT_FILES: [(&str, &str); 5] = [
    ("entrypoint.sh", "entrypoint.sh"),
    ("su-exec", "su-exec.alpine3.8.x86_64.bin"),
    ("dropbear", "dropbear.alpine3.8.x86_64.bin"),
    ("dropbearkey", "dropbearkey.alpine3.8.x86_64.bin"),
    ("dropbearconvert", "dropbearconvert.alpine3.8.x86_64.bin"),
];

/// The terminal server, in the package `ai.backend.krunner.static_gnu`.
const TTYD: &str = "ttyd_linux.x86_64.bin";

const CRI: &str = include_str!("../../../../tests/vm/node/cri.py");

const FOLDERS: &[&str] = &[
    "bin",
    "dev",
    "root",
    "node",
    "node/dist",
    "node/dist/x86_64",
    "node/recipes",
    "node/recipes/docker",
    "node/recipes/kubernetes",
    "node/systemd",
    "node/agent",
];

/// The programs of a node.
pub(super) struct Programs {
    krunner: PathBuf,
    victim: PathBuf,
    tests: PathBuf,
    /// With the packages of the agent.
    python: PathBuf,
}

impl Programs {
    pub(super) fn build() -> Result<Self> {
        let site = Site::here()?;
        let native = Arch::native()?;
        Ok(Self {
            krunner: site.build_native()?,
            victim: site.build_test_program("victim", native)?,
            tests: site.build_test_program("vm-node", native)?,
            python: venv::ensure()?,
        })
    }

    /// Writes an initramfs for these containers; all if there are none.
    pub(super) fn pack(&self, only: &[String], image: &Path) -> Result<()> {
        let sink = File::create(image).with_context(|| format!("cannot write {}", image.display()))?;
        let mut archive = Archive::new(BufWriter::new(sink));
        for folder in FOLDERS {
            archive.folder(folder)?;
        }
        // The kernel opens it for init, before init can mount anything.
        archive.device("dev/console", (5, 1))?;
        archive.program("init", INIT.as_bytes())?;
        archive.program("node/cri.py", CRI.as_bytes())?;
        archive.program("node/only", only.join("\n").as_bytes())?;
        let programs = [
            ("bin/busybox", Path::new(BUSYBOX)),
            ("node/tests", &self.tests),
            ("node/victim", &self.victim),
            ("node/dist/x86_64/krunner", &self.krunner),
        ];
        let dist = root().join("krunner/dist");
        let shipped = shipped(&dist)?;
        let shipped = shipped.iter().map(|name| (format!("node/{name}"), dist.join(name)));
        for (name, path) in programs.map(|(name, path)| (name.to_owned(), path.to_owned())).into_iter().chain(shipped) {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.program(&name, &content)?;
        }
        for (name, content) in self.agent_files(&dist)? {
            archive.program(&format!("node/agent/{name}"), &content)?;
        }
        archive.finish()?.into_inner().context("cannot write the initramfs")?;
        Ok(())
    }
}

impl Programs {
    /// The folder of a package.
    fn package(&self, name: &str) -> Result<PathBuf> {
        let find = format!("import {name} as package; print(list(package.__path__)[0])");
        let folder =
            printed(Command::new(&self.python).args(["-c", &find])).with_context(|| format!("no package {name}"))?;
        Ok(PathBuf::from(String::from_utf8(folder)?.trim()))
    }

    /// The files that the agent mounts, and its requests: one for each recipe with options.
    fn agent_files(&self, dist: &Path) -> Result<Vec<(String, Vec<u8>)>> {
        let folder = self.package("ai.backend.runner")?;
        let ttyd = self.package("ai.backend.krunner.static_gnu")?.join(TTYD);
        let programs = AGENT_FILES.map(|(name, file)| (name, folder.join(file))).into_iter().chain([("ttyd", ttyd)]);
        let mut files = Vec::new();
        for (name, path) in programs {
            files.push((name.to_owned(), fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?));
        }
        for (name, path) in
            [("plain", AGENT_OPTIONS.to_owned()), ("with-node", format!("agent-with-node/{AGENT_OPTIONS}"))]
        {
            let path = dist.join("recipes").join(path);
            let options = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let request = printed(Command::new(&self.python).args(["-c", REQUEST, &options]))
                .with_context(|| format!("the agent's code cannot use {}", path.display()))?;
            files.push((format!("{name}.json"), request));
        }
        Ok(files)
    }
}

/// The Dockerfile and every recipe of an engine, relative to `dist`.
fn shipped(dist: &Path) -> Result<Vec<String>> {
    let mut names = vec!["Dockerfile".to_owned()];
    for folder in ["recipes/docker", "recipes/kubernetes", "systemd"] {
        for entry in fs::read_dir(dist.join(folder)).with_context(|| format!("cannot read {folder}"))? {
            names.push(format!("{folder}/{}", entry?.file_name().display()));
        }
    }
    Ok(names)
}
