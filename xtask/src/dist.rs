//! `cargo xtask dist`: builds the release artifacts in one folder.
//!
//! ```text
//! sources ──▶ musl: two static binaries ──▶ x86_64/krunner, aarch64/krunner
//!                       │
//!                       ├─▶ package: the folder and the wheel that replace `ai.backend.kernel`
//!                       ├─▶ pages: manual pages and completions, as the binary itself prints them
//! Cargo.lock ───────────┴─▶ notices: linked crates (CycloneDX) and their licences
//!                                       all of it ──▶ SHA256SUMS
//! ```
//!
//! The artifacts do not depend on the time or place of the build. `verify` builds them again elsewhere and starts the binary
//! for the other processor.

mod elf;
mod package;
mod pages;
mod sbom;
mod sums;
mod verify;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::host;
use crate::musl::{Arch, Site};
use crate::summary::Check;
use crate::workspace::{step, target_dir};

const HELP: &str = "\
Writes to target/dist:
  x86_64/krunner, aarch64/krunner       static binaries, stripped
  x86_64/ai/backend/kernel, aarch64/..  the folder that replaces the agent's package ai.backend.kernel
  backend_ai_kernel-*.whl               the same folders as wheels
  man, completions                      manual pages; completions for bash, zsh and fish
  krunner.cdx.json, LICENSES.txt        linked crates and their licences
  SHA256SUMS                            check with `sha256sum -c SHA256SUMS`

The binaries depend only on the sources and the compiler. --check builds them again from a copy of the sources in another \
folder, with another CARGO_HOME, compares the results, and starts the aarch64 binary under qemu-user.

Needs rustup's standard libraries for musl, which it installs, and clang for aarch64.

Examples:
  cargo xtask dist
  cargo xtask dist --check
  cargo xtask dist --target x86_64
  (cd target/dist && sha256sum -c SHA256SUMS)

Exit codes: 0 success, 1 a build failed, a binary is unfit for release, or the check found a difference, 2 wrong usage.";

/// Arguments of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Build only for these processors; must include this machine's, because its binary prints the manual pages
    #[arg(long, value_name = "PROCESSOR", num_args = 1.., default_values_t = Arch::ALL)]
    target: Vec<Arch>,
    /// Build again elsewhere and compare; start the aarch64 binary
    #[arg(long)]
    check: bool,
}

/// Builds the artifacts. Returns `false` when a check fails.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(missing) = host::missing_for_dist(args.check) {
        bail!("{missing}; `cargo xtask test --all` installs it");
    }
    let dist = make(&args.target)?;
    print!("\n{}", dist.list()?);
    if !args.check {
        return Ok(true);
    }
    let mut is_fine = true;
    for Check { name, outcome } in dist.checks()?.into_iter().chain(dist.compare_with_rebuild(&args.target)?) {
        let problems = outcome.unwrap_or_else(|reason| vec![reason]);
        println!("{name}: {}", if problems.is_empty() { "ok".to_owned() } else { problems.join("\n    ") });
        is_fine &= problems.is_empty();
    }
    Ok(is_fine)
}

/// The checks of `cargo xtask test`, skipped for this reason.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    ["sums", "x86_64", "aarch64", "aarch64_runs", "tested"]
        .iter()
        .map(|name| check(name, Err(reason.to_owned())))
        .collect()
}

fn check(name: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("dist::{name}"), outcome }
}

/// The artifacts of a build.
pub(crate) struct Dist {
    folder: PathBuf,
    binaries: Vec<(Arch, PathBuf)>,
}

/// Builds the artifacts in `target/dist`, which is emptied.
pub(crate) fn make(archs: &[Arch]) -> Result<Dist> {
    make_in("dist", archs)
}

/// Builds those of this machine's processor alone in another folder, so that they can be used while the others are built.
pub(crate) fn make_native() -> Result<Dist> {
    make_in("dist-native", &[Arch::native()?])
}

fn make_in(folder: &str, archs: &[Arch]) -> Result<Dist> {
    if !archs.iter().any(|arch| arch.is_native()) {
        bail!("add --target {}: the manual pages are printed by a binary that runs here", std::env::consts::ARCH);
    }
    let folder = target_dir()?.join(folder);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let site = Site::here()?;
    let mut binaries = Vec::new();
    for (&arch, built) in archs.iter().zip(site.build(archs)?) {
        let problems = elf::problems(&built, arch)?;
        if !problems.is_empty() {
            bail!("{} is unfit for release: {}", built.display(), problems.join("; "));
        }
        let binary = folder.join(arch.name()).join("krunner");
        copy(&built, &binary, 0o755)?;
        binaries.push((arch, binary));
    }
    step("packages, manual pages, SBOM");
    for (arch, binary) in &binaries {
        package::write(binary, *arch, &folder)?;
    }
    let dist = Dist { folder, binaries };
    pages::write(dist.native()?, &dist.folder)?;
    sbom::write(archs, &dist.folder)?;
    sums::write(&dist.folder)?;
    Ok(dist)
}

/// Copies a file and creates its folder.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &content, mode)
}

/// Writes a file and creates its folder.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let parent = path.parent().context("a file is in a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

impl Dist {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A text table of sizes and checksums.
    fn list(&self) -> Result<String> {
        let mut text = String::new();
        for sum in sums::of(&self.folder)? {
            writeln!(text, "{:6} KiB  {}  {}", sum.bytes.div_ceil(1024), &sum.sha256[..16], sum.path.display())?;
        }
        writeln!(text, "in {}", self.folder.display())?;
        Ok(text)
    }

    /// The binary that runs on this machine.
    pub(crate) fn native(&self) -> Result<&Path> {
        self.binary(Arch::native()?)
    }

    fn binary(&self, arch: Arch) -> Result<&Path> {
        let found = self.binaries.iter().find(|(other, _)| *other == arch);
        found.map(|(_, binary)| binary.as_path()).with_context(|| format!("there is no binary for {arch}"))
    }

    /// Checks the checksums with `sha256sum`, the ELF files, and the other processor's binary.
    pub(crate) fn checks(&self) -> Result<Vec<Check>> {
        let mut checks = vec![check("sums", verify::sums(&self.folder))];
        for (arch, binary) in &self.binaries {
            checks.push(check(arch.name(), Ok(elf::problems(binary, *arch)?)));
            if *arch == Arch::Aarch64 {
                checks.push(check("aarch64_runs", Ok(verify::runs(binary, self.native()?))));
            }
        }
        Ok(checks)
    }

    /// Compares the binary of this processor with that in the folder of artifacts that were tested.
    pub(crate) fn compare_with_tested(&self, folder: &Path) -> Result<Check> {
        let native = self.native()?;
        let tested = folder.join(native.strip_prefix(&self.folder)?);
        Ok(check("tested", Ok(verify::differences(&tested, native)?)))
    }

    /// Builds for these processors again elsewhere and compares the binaries.
    fn compare_with_rebuild(&self, archs: &[Arch]) -> Result<Vec<Check>> {
        let elsewhere = verify::Elsewhere::new()?;
        let pairs = archs.iter().zip(elsewhere.build(archs)?);
        let compared = pairs.map(|(arch, rebuilt)| {
            let outcome = verify::differences(self.binary(*arch)?, &rebuilt)?;
            Ok(check(&format!("{}_reproducible", arch.name()), Ok(outcome)))
        });
        compared.collect()
    }
}
