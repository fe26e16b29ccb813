//! Packs the initramfs of a virtual machine: krunner, the OOM matrix and a shell, all static.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use crate::host::BUSYBOX;
use crate::musl::Site;

/// The busybox applets that scenarios and the harness call.
const APPLETS: &[&str] = &["cat", "grep", "ip", "mount", "nsenter", "sh", "sleep", "true", "umount", "unshare"];

/// Builds the programs, packs the image and returns its path.
pub(super) fn pack(folder: &Path) -> Result<PathBuf> {
    let site = Site::here()?;
    let krunner = site.build_native()?;
    let victim = site.build_test_program("victim")?;
    let init = site.build_test_program("vm-init")?;
    let image = folder.join("initramfs");
    let sink = File::create(&image).with_context(|| format!("cannot write {}", image.display()))?;
    let mut archive = Archive::new(BufWriter::new(sink));
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.folder(name)?;
    }
    // The kernel opens it for init, before init can mount anything.
    archive.device("dev/console", (5, 1))?;
    let programs = [("init", init), ("bin/krunner", krunner), ("bin/victim", victim), ("bin/busybox", BUSYBOX.into())];
    for (name, path) in programs {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.program(name, &content)?;
    }
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    archive.finish()?.into_inner().context("cannot write the image")?;
    Ok(image)
}
