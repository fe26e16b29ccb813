//! What a virtual machine finds when its kernel is up: krunner, the battery and a shell, all static, in one archive.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use crate::host::BUSYBOX;
use crate::musl::{Arch, Site};

/// What scenes and the harness call of busybox.
const APPLETS: &[&str] = &["cat", "grep", "ip", "mount", "nsenter", "sh", "sleep", "true", "umount", "unshare"];

/// Builds what goes into it and packs it; yields its path.
pub(super) fn pack(folder: &Path) -> Result<PathBuf> {
    let site = Site::here()?;
    let krunner = site.build("krunner", "krunner", Arch::X86_64)?;
    let victim = site.build("krunner-tests", "victim", Arch::X86_64)?;
    let init = site.build("krunner-tests", "vm-init", Arch::X86_64)?;
    let image = folder.join("initramfs");
    let sink = File::create(&image).with_context(|| format!("cannot write {}", image.display()))?;
    let mut archive = Archive::new(BufWriter::new(sink));
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.folder(name)?;
    }
    // The kernel opens it for the first process, before that one can mount anything.
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
