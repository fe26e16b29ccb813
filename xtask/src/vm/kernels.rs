//! Finds, fetches, unpacks and caches Debian's kernel packages without installing them.
//!
//! A private apt configuration in a temporary folder reads the package lists of other Debian suites. The mirror is the one
//! in this machine's own configuration.

use std::cmp::Ordering;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{on_path, step};

/// The oldest supported kernel, two long-term kernels that mark victims differently, and the newest.
pub(super) const DEFAULT: [&str; 4] = ["5.10", "6.1", "6.12", "7"];

/// The Debian suites that together have these kernels.
const SUITES: &[&str] = &["bullseye", "bookworm", "bookworm-backports", "trixie-backports"];

pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A cached kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// The requested version prefix.
    pub(super) wanted: String,
    /// The package that it came in.
    pub(super) package: String,
    pub(super) image: PathBuf,
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
        fetch(&names, folder).with_context(by_hand)?;
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
    image.is_file().then(|| Kernel { wanted: version.to_owned(), package: package.trim().to_owned(), image })
}

fn fetch(versions: &[&str], folder: &Path) -> Result<()> {
    if !on_path("apt-get") || !on_path("dpkg-deb") {
        bail!("fetching Debian's kernel packages needs apt-get and dpkg-deb, which are missing");
    }
    let apt = Apt::new()?;
    step(&format!("package lists of {}", SUITES.join(", ")));
    output(apt.command("apt-get").arg("update"))?;
    let names = output(apt.command("apt-cache").args(["search", "--names-only", "^linux-.*-cloud-amd64$"]))?;
    let names: Vec<&str> = names.lines().filter_map(|line| line.split(' ').next()).collect();
    for version in versions {
        let package = newest(&names, version)
            .with_context(|| format!("no package of {} has a kernel {version}", SUITES.join(", ")))?;
        step(&format!("fetching {package}"));
        output(apt.command("apt-get").args(["download", package]))?;
        unpack(package, &apt.downloaded(package)?, &home(version, folder))?;
    }
    Ok(())
}

/// The newest package with such a kernel. Where Debian has it in a `linux-binary`, its `linux-image` is empty.
fn newest<'a>(names: &[&'a str], version: &str) -> Option<&'a str> {
    let of = |prefix: &str| {
        let wanted = format!("{prefix}{version}");
        let is_it = move |name: &&&str| {
            name.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
                && name.ends_with("-cloud-amd64")
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

/// Extracts the kernel from a package. The folder appears only when it is complete.
fn unpack(package: &str, file: &Path, home: &Path) -> Result<()> {
    let above = home.parent().context("a folder of ours")?;
    fs::create_dir_all(above)?;
    let scratch = tempfile::tempdir_in(above)?;
    let listed = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(file).stdout(Stdio::piped()).spawn()?;
    let mut listed = listed;
    let tar = listed.stdout.take().context("no output")?;
    // In boot/, or since 7.1 beside the modules.
    let untar = Command::new("tar")
        .args(["--extract", "--wildcards", "--transform=s|.*/||", "*/vmlinuz*"])
        .current_dir(scratch.path())
        .stdin(tar)
        .status()
        .context("cannot run tar")?;
    let unpacked = listed.wait()?;
    if !untar.success() || !unpacked.success() {
        bail!("cannot unpack {}: {untar}, {unpacked}", file.display());
    }
    let mut entries = fs::read_dir(scratch.path())?;
    let kernel = entries.next().with_context(|| format!("{package} has no kernel"))??.path();
    fs::rename(kernel, scratch.path().join("vmlinuz"))?;
    fs::write(scratch.path().join("package"), package)?;
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    fs::rename(scratch.path(), home).with_context(|| format!("cannot make {}", home.display()))
}

/// An apt with its own suites and state, separate from this machine's.
struct Apt(tempfile::TempDir);

impl Apt {
    fn new() -> Result<Self> {
        let apt = Self(tempfile::tempdir().context("no temporary folder")?);
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.0.path().join(folder))?;
        }
        let mirror = mirror()?;
        let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let mut sources = fs::File::create(apt.0.path().join("sources.list"))?;
        for suite in SUITES {
            writeln!(sources, "deb {signed}{mirror} {suite} main")?;
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.0.path().join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // Descriptions of desktop programs, half of all that would be fetched.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Release files of old suites have expired.
            "Acquire::Check-Valid-Until=false".to_owned(),
            // apt's sandbox user cannot write to the temporary folder.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).arg("--quiet=2").stdin(Stdio::null());
        command.args(options.iter().flat_map(|option| ["-o", option.as_str()]));
        command
    }

    fn downloaded(&self, package: &str) -> Result<PathBuf> {
        let files = fs::read_dir(self.0.path())?.flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&format!("{package}_")))
        };
        files.into_iter().find(is_it).with_context(|| format!("apt-get has not downloaded {package}"))
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The Debian mirror in this machine's configuration.
pub(super) fn mirror() -> Result<String> {
    let targets = |filter: &[&str]| -> Result<Vec<String>> {
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]).args(filter);
        let output = command.stdin(Stdio::null()).output().context("cannot run apt-get")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    };
    // Who signs the security updates calls them by another label. Where no lists have been fetched, there are no labels.
    let labelled = targets(&["Origin: Debian", "Label: Debian"])?;
    let all = targets(&[])?;
    let named = all.into_iter().filter(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    let found = labelled.into_iter().chain(named).next();
    found.context("this machine's apt configuration has no Debian mirror")
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
        ];
        assert_eq!(newest(&names, "6.1"), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest(&names, "6.12"), Some("linux-image-6.12.95+deb12-cloud-amd64"));
        assert_eq!(newest(&names, "7"), Some("linux-binary-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(&names, "7.2"), Some("linux-binary-7.2.12+deb13-cloud-amd64"));
        assert_eq!(newest(&names, "5.10"), None);
    }
}
