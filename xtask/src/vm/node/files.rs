//! Packs the initramfs of a node: busybox, the script that mounts the disk, and the tests, which it puts at `/opt/node`.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::host::BUSYBOX;
use crate::musl::{Arch, Site};
use crate::vm::cpio::Archive;
use crate::workspace::root;

const INIT: &str = include_str!("../../../../tests/vm/node/init.sh");

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
];

/// The programs of a node.
pub(super) struct Programs {
    krunner: PathBuf,
    victim: PathBuf,
    agent: PathBuf,
}

impl Programs {
    pub(super) fn build() -> Result<Self> {
        let site = Site::here()?;
        let native = Arch::native()?;
        Ok(Self {
            krunner: site.build_native()?,
            victim: site.build_test_program("victim", native)?,
            agent: site.build_test_program("vm-node", native)?,
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
            ("node/agent", &self.agent),
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
        archive.finish()?.into_inner().context("cannot write the initramfs")?;
        Ok(())
    }
}

/// The Dockerfile and every recipe of an engine, relative to `dist`.
fn shipped(dist: &Path) -> Result<Vec<String>> {
    let mut names = vec!["Dockerfile".to_owned()];
    for folder in ["recipes/docker", "recipes/kubernetes"] {
        for entry in fs::read_dir(dist.join(folder)).with_context(|| format!("cannot read {folder}"))? {
            names.push(format!("{folder}/{}", entry?.file_name().display()));
        }
    }
    Ok(names)
}
