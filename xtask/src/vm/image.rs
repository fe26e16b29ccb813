//! What a virtual machine finds when its kernel is up: krunner, the battery and a shell, all static, in one archive.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use crate::host::BUSYBOX;
use crate::workspace::{build_binary, on_path, run, step};

/// Static programs run on whatever kernel, without a C library beside them.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// What scenes and the harness call of busybox.
const APPLETS: &[&str] = &["cat", "grep", "mount", "nsenter", "sh", "sleep", "true", "umount", "unshare"];

/// Builds what goes into it and packs it; yields its path.
pub(super) fn pack(folder: &Path) -> Result<PathBuf> {
    ensure_target()?;
    let krunner = build_binary("krunner", "krunner", Some(TARGET))?;
    let victim = build_binary("krunner-tests", "victim", Some(TARGET))?;
    let init = build_binary("krunner-tests", "vm-init", Some(TARGET))?;
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

/// The Rust standard library for static programs.
fn ensure_target() -> Result<()> {
    if has_target()? {
        return Ok(());
    }
    if !on_path("rustup") {
        bail!(
            "this compiler has no standard library for {TARGET}, and there is no rustup to get it with; install it the \
             way the compiler came (Debian has none: use rustup, then `rustup target add {TARGET}`)"
        );
    }
    step(&format!("rustup target add {TARGET}"));
    run(Command::new("rustup").args(["target", "add", TARGET]))
}

fn has_target() -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let output = output.context("cannot run rustc")?;
    Ok(output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}
