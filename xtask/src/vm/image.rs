//! Packs the initramfs of a virtual machine: krunner, the OOM matrix and a shell, all static.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::kernels::busybox;
use crate::musl::{Arch, Site};

/// The busybox applets that scenarios and the harness call.
const APPLETS: &[&str] = &["cat", "grep", "ip", "mount", "nsenter", "sh", "sleep", "true", "umount", "unshare"];

/// Builds the programs for this processor, packs the image and returns its path.
pub(super) fn pack(arch: Arch, folder: &Path) -> Result<PathBuf> {
    let site = Site::here()?;
    let krunner = site.build(&[arch])?.pop().context("nothing was built")?;
    let victim = site.build_test_program("victim", arch)?;
    let init = site.build_test_program("vm-init", arch)?;
    let busybox = busybox(arch, folder)?;
    let image = folder.join(format!("initramfs-{arch}"));
    let sink = File::create(&image).with_context(|| format!("cannot write {}", image.display()))?;
    let mut archive = Archive::new(BufWriter::new(sink));
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.folder(name)?;
    }
    // The kernel opens it for init, before init can mount anything.
    archive.device("dev/console", (5, 1))?;
    let programs = [("init", init), ("bin/krunner", krunner), ("bin/victim", victim), ("bin/busybox", busybox)];
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
