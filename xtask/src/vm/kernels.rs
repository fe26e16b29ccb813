//! Finds, fetches, unpacks and caches Debian's kernel packages without installing them.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host::BUSYBOX;
use crate::host::apt::{Apt, debian_name};
use crate::musl::Arch;

/// The oldest supported kernel, two long-term kernels that mark victims differently, and the newest.
pub(super) const DEFAULT: [&str; 4] = ["5.10", "6.1", "6.12", "7"];

/// Kernels for arm64, with pages of 4 KiB and of 16 KiB.
pub(super) const ARM64: [&str; 2] = ["6.12-arm64", "6.12-arm64-16k"];

/// The Debian suites that together have these kernels.
const SUITES: &[&str] = &["bullseye", "bookworm", "bookworm-backports", "trixie-backports"];

/// A cached kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// The requested version prefix and flavour.
    pub(super) wanted: String,
    pub(super) arch: Arch,
    /// The package that it came in.
    pub(super) package: String,
    pub(super) image: PathBuf,
}

/// What Debian builds of a version. Each has BTF and no need for an initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Amd64,
    Arm64,
    /// Pages of 16 KiB.
    Arm64Pages16K,
}

impl Flavour {
    /// Splits `6.12-arm64` into the version prefix and the flavour.
    fn of(wanted: &str) -> (&str, Self) {
        let flavours = [("-arm64-16k", Self::Arm64Pages16K), ("-arm64", Self::Arm64)];
        let split = flavours.iter().find_map(|(end, flavour)| Some((wanted.strip_suffix(end)?, *flavour)));
        split.unwrap_or((wanted, Self::Amd64))
    }

    fn arch(self) -> Arch {
        if self == Self::Amd64 { Arch::X86_64 } else { Arch::Aarch64 }
    }

    /// The end of a package's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Amd64 => "-cloud-amd64",
            Self::Arm64 => "-cloud-arm64",
            Self::Arm64Pages16K => "-arm64-16k",
        }
    }
}

/// The processor of the kernel with this version prefix and flavour.
pub(super) fn arch(wanted: &str) -> Arch {
    Flavour::of(wanted).1.arch()
}

/// Returns the kernels with these versions. Fetches those that are not cached.
pub(super) fn ensure(wanted: &[String], folder: &Path) -> Result<Vec<Kernel>> {
    let missing: Vec<&String> = wanted.iter().filter(|version| kept(version, folder).is_none()).collect();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|version| version.as_str()).collect();
        let by_hand = || {
            let at = home("VERSION", folder).join("vmlinuz");
            format!("no kernel {} (you can put one at {})", names.join(", "), at.display())
        };
        for arch in Arch::ALL {
            let of_arch: Vec<&str> = names.iter().copied().filter(|name| self::arch(name) == arch).collect();
            if !of_arch.is_empty() {
                fetch(&of_arch, arch, folder).with_context(by_hand)?;
            }
        }
    }
    let all = wanted.iter().map(|version| kept(version, folder).with_context(|| format!("kernel {version} is gone")));
    all.collect()
}

fn home(version: &str, folder: &Path) -> PathBuf {
    folder.join("kernels").join(version)
}

fn kept(version: &str, folder: &Path) -> Option<Kernel> {
    let home = home(version, folder);
    let image = home.join("vmlinuz");
    let package = fs::read_to_string(home.join("package")).unwrap_or_else(|_| "a kernel of your own".into());
    let arch = arch(version);
    image.is_file().then(|| Kernel { wanted: version.to_owned(), arch, package: package.trim().to_owned(), image })
}

fn fetch(versions: &[&str], arch: Arch, folder: &Path) -> Result<()> {
    let apt = Apt::updated(SUITES, arch)?;
    let found = apt.search(&format!("^linux-.*-{}", debian_name(arch)))?;
    let names: Vec<&str> = found.iter().map(String::as_str).collect();
    for version in versions {
        let package = newest(&names, version)
            .with_context(|| format!("no package of {} has a kernel {version}", SUITES.join(", ")))?;
        // In boot/, or since 7.1 beside the modules.
        unpack(package, &apt.download(package)?, "*/vmlinuz*", "vmlinuz", &home(version, folder))?;
    }
    Ok(())
}

/// Returns a static busybox for this processor: this machine's own, or one that is fetched and cached.
pub(super) fn busybox(arch: Arch, folder: &Path) -> Result<PathBuf> {
    if arch.is_native() {
        return Ok(BUSYBOX.into());
    }
    let home = folder.join(format!("busybox-{}", debian_name(arch)));
    let busybox = home.join("busybox");
    if !busybox.is_file() {
        // Dropped with what it has downloaded.
        let apt = Apt::updated(SUITES, arch)?;
        let file = apt.download("busybox-static")?;
        unpack("busybox-static", &file, "*/bin/busybox", "busybox", &home)?;
    }
    Ok(busybox)
}

/// The newest package with such a kernel. Where Debian has it in a `linux-binary`, its `linux-image` is empty.
fn newest<'a>(names: &[&'a str], wanted: &str) -> Option<&'a str> {
    let (version, flavour) = Flavour::of(wanted);
    let of = |prefix: &str| {
        let beginning = format!("{prefix}{version}");
        let is_it = move |name: &&&str| {
            name.strip_prefix(&beginning).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
                && name.ends_with(flavour.suffix())
        };
        names.iter().filter(is_it).max_by(|a, b| by_numbers(a, b)).copied()
    };
    of("linux-binary-").or_else(|| of("linux-image-"))
}

/// By the numbers in them, one by one.
fn by_numbers(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|character: char| !character.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// Extracts the one file of a package that matches. Its folder appears only when it is complete.
fn unpack(package: &str, file: &Path, pattern: &str, name: &str, home: &Path) -> Result<()> {
    let above = home.parent().context("a folder of ours")?;
    fs::create_dir_all(above)?;
    let scratch = tempfile::tempdir_in(above)?;
    let mut listed = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(file).stdout(Stdio::piped()).spawn()?;
    let tar = listed.stdout.take().context("no output")?;
    let untar = Command::new("tar")
        .args(["--extract", "--wildcards", "--transform=s|.*/||", pattern])
        .current_dir(scratch.path())
        .stdin(tar)
        .status()
        .context("cannot run tar")?;
    let unpacked = listed.wait()?;
    if !untar.success() || !unpacked.success() {
        bail!("cannot unpack {}: {untar}, {unpacked}", file.display());
    }
    let mut entries = fs::read_dir(scratch.path())?;
    let found = entries.next().with_context(|| format!("{package} has no {pattern}"))??.path();
    fs::rename(found, scratch.path().join(name))?;
    fs::write(scratch.path().join("package"), package)?;
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    fs::rename(scratch.path(), home).with_context(|| format!("cannot make {}", home.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_line_is_taken_from_where_it_is() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.90+deb12.1-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64-dbg",
            "linux-image-6.12.90+deb12-arm64-16k",
            "linux-image-6.12.95+deb12-arm64-16k",
            "linux-image-6.12.95+deb12-cloud-arm64",
            "linux-image-6.12.95+deb12-cloud-arm64-unsigned",
        ];
        assert_eq!(newest(&names, "6.1"), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest(&names, "6.12"), Some("linux-image-6.12.95+deb12-cloud-amd64"));
        assert_eq!(newest(&names, "7"), Some("linux-binary-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(&names, "7.2"), Some("linux-binary-7.2.12+deb13-cloud-amd64"));
        assert_eq!(newest(&names, "5.10"), None);
        assert_eq!(newest(&names, "6.12-arm64"), Some("linux-image-6.12.95+deb12-cloud-arm64"));
        assert_eq!(newest(&names, "6.12-arm64-16k"), Some("linux-image-6.12.95+deb12-arm64-16k"));
        assert_eq!(newest(&names, "6.1-arm64"), None);
    }
}
