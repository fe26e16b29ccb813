//! `cargo xtask dist`: what is handed out, in one folder.
//!
//! ```text
//! sources ──▶ musl: two static binaries ──▶ x86_64/krunner, aarch64/krunner
//!                       │
//!                       ├─▶ package: the folder and the wheel that take the place of `ai.backend.kernel`
//!                       ├─▶ pages: manual pages and completions, as the binary itself prints them
//! Cargo.lock ───────────┴─▶ notices: what is linked in (CycloneDX), and under which licences
//!                                       all of it ──▶ SHA256SUMS
//! ```
//!
//! Nothing in it depends on the time or on where it was made. `trial` builds it once more elsewhere, and starts the binary
//! for the other processor.

mod notices;
mod package;
mod pages;
mod sums;
mod trial;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::host;
use crate::musl::{Arch, Site};
use crate::tally::Check;
use crate::workspace::{step, target_dir};

/// Of one binary. It is copied into containers and mapped by each of them.
const MAX_MIB: u64 = 12;

const HELP: &str = "\
Writes to target/dist:
  x86_64/krunner, aarch64/krunner       static binaries, stripped
  x86_64/ai/backend/kernel, aarch64/..  the folder that takes the place of the agent's package ai.backend.kernel
  backend_ai_kernel-*.whl               the same as wheels
  man, completions                      manual pages; completions for bash, zsh and fish
  krunner.cdx.json, LICENSES.txt        what is linked in, and its licences
  SHA256SUMS                            check with `sha256sum -c SHA256SUMS`

The binaries depend on the sources and the compiler only. --check builds them again from a copy of the sources in another \
folder, with another CARGO_HOME, and compares; and it starts the binary for aarch64 under qemu-user.

Needs rustup's standard libraries for musl (it adds them) and, for aarch64, clang.

Examples:
  cargo xtask dist
  cargo xtask dist --check
  (cd target/dist && sha256sum -c SHA256SUMS)

Exit codes: 0 done, 1 a build failed, a binary is too large, or the check found a difference, 2 wrong usage.";

/// Arguments of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Build again elsewhere and compare; start the binary for aarch64
    #[arg(long)]
    check: bool,
}

/// Makes it; `false` when a check fails.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(missing) = host::missing_for_dist(args.check) {
        bail!("{missing}; `cargo xtask test --all` installs it");
    }
    let dist = make()?;
    print!("\n{}", dist.list()?);
    if !args.check {
        return Ok(true);
    }
    let mut is_fine = true;
    for Check { name, outcome } in dist.checks(&Arch::ALL)? {
        let problems = outcome.unwrap_or_else(|reason| vec![reason]);
        println!("{name}: {}", if problems.is_empty() { "ok".to_owned() } else { problems.join("\n    ") });
        is_fine &= problems.is_empty();
    }
    Ok(is_fine)
}

/// The checks of a run of tests where it is not made.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    ["sums", "aarch64_runs", "x86_64_reproducible"].iter().map(|name| check(name, Err(reason.to_owned()))).collect()
}

fn check(name: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("dist::{name}"), outcome }
}

/// What was made.
pub(crate) struct Dist {
    folder: PathBuf,
}

/// Makes it anew.
pub(crate) fn make() -> Result<Dist> {
    let folder = target_dir()?.join("dist");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let site = Site::here()?;
    let mut binaries = Vec::new();
    for arch in Arch::ALL {
        let built = site.build("krunner", "krunner", arch)?;
        check_size(&built)?;
        let binary = folder.join(arch.name()).join("krunner");
        copy(&built, &binary, 0o755)?;
        binaries.push((arch, binary));
    }
    step("packages, pages, notices");
    for (arch, binary) in &binaries {
        package::write(binary, *arch, &folder)?;
    }
    pages::write(&native(&binaries)?, &folder)?;
    notices::write(&folder)?;
    sums::write(&folder)?;
    Ok(Dist { folder })
}

/// The one that runs here.
fn native(binaries: &[(Arch, PathBuf)]) -> Result<PathBuf> {
    let own = binaries.iter().find(|(arch, _)| arch.name() == std::env::consts::ARCH);
    own.map(|(_, binary)| binary.clone()).context("none of the binaries runs on this processor")
}

fn check_size(binary: &Path) -> Result<()> {
    let bytes = fs::metadata(binary).with_context(|| format!("cannot look at {}", binary.display()))?.len();
    if bytes > MAX_MIB << 20 {
        bail!("{} has {bytes} bytes; at most {MAX_MIB} MiB are handed out", binary.display());
    }
    Ok(())
}

/// Copies a file, making the folder it is in.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &content, mode)
}

/// Writes a file, making the folder it is in.
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

    /// Sizes and sums, for people.
    fn list(&self) -> Result<String> {
        let mut text = String::new();
        for sum in sums::of(&self.folder)? {
            writeln!(text, "{:6} KiB  {}  {}", sum.bytes.div_ceil(1024), &sum.sha256[..16], sum.path.display())?;
        }
        writeln!(text, "in {}", self.folder.display())?;
        Ok(text)
    }

    /// The sums as other tools see them, builds of these elsewhere, the other processor.
    pub(crate) fn checks(&self, rebuilt: &[Arch]) -> Result<Vec<Check>> {
        let mut checks = vec![
            check("sums", trial::sums(&self.folder)),
            check("aarch64_runs", Ok(trial::runs(&self.folder.join("aarch64/krunner")))),
        ];
        let site = trial::Elsewhere::new()?;
        for arch in rebuilt {
            let outcome = site.differences(&self.folder.join(arch.name()).join("krunner"), *arch)?;
            checks.push(check(&format!("{}_reproducible", arch.name()), Ok(outcome)));
        }
        Ok(checks)
    }
}
