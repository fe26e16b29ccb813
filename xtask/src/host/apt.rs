//! Debian's package manager with the package lists of suites that this machine's own configuration need not have.
//!
//! Its configuration and state are in a temporary folder. The mirror is the one in this machine's configuration.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::musl::Arch;
use crate::workspace::{on_path, step};

/// The keys of Debian's archive.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The packages that are installed on this machine.
const INSTALLED: &str = "/var/lib/dpkg/status";

/// An apt that has read the package lists of its suites.
pub(crate) struct Apt {
    folder: tempfile::TempDir,
    arch: Arch,
    /// The packages that count as installed.
    status: PathBuf,
}

impl Apt {
    /// Fetches packages of these suites for this processor. Nothing counts as installed.
    pub(crate) fn updated(suites: &[&str], arch: Arch) -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let status = folder.path().join("status");
        fs::write(&status, "")?;
        Self::read_lists(Self { folder, arch, status }, suites)
    }

    /// Installs packages of these suites on this machine.
    pub(crate) fn of_this_machine(suites: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        Self::read_lists(Self { folder, arch: Arch::native()?, status: INSTALLED.into() }, suites)
    }

    fn read_lists(self, suites: &[&str]) -> Result<Self> {
        if !on_path("apt-get") || !on_path("dpkg-deb") {
            bail!("fetching Debian's packages needs apt-get and dpkg-deb, which are missing");
        }
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.at(folder))?;
        }
        let mirror = mirror()?;
        let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let mut sources = fs::File::create(self.at("sources.list"))?;
        for suite in suites {
            writeln!(sources, "deb {signed}{mirror} {suite} main")?;
        }
        step(&format!("package lists of {} for {}", suites.join(", "), debian_name(self.arch)));
        output(self.get().arg("update"))?;
        Ok(self)
    }

    /// The names of the packages whose name matches this regular expression.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// Fetches a package; the file is gone with this value.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        step(&format!("fetching {package}"));
        output(self.get().args(["download", package]))?;
        let files = fs::read_dir(self.folder.path())?.flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&format!("{package}_")))
        };
        files.into_iter().find(is_it).with_context(|| format!("apt-get has not downloaded {package}"))
    }

    /// An `apt-get` with these lists.
    pub(crate) fn get(&self) -> Command {
        self.command("apt-get")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.at(name).display().to_string();
        let arch = debian_name(self.arch);
        let options = [
            format!("APT::Architecture={arch}"),
            format!("APT::Architectures={arch}"),
            format!("Dir::State::Status={}", self.status.display()),
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
        command.current_dir(self.folder.path()).arg("--quiet=2").stdin(Stdio::null());
        command.args(options.iter().flat_map(|option| ["-o", option.as_str()]));
        command
    }
}

/// Debian's name of a processor.
pub(crate) fn debian_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

/// The Debian mirror in this machine's configuration.
pub(crate) fn mirror() -> Result<String> {
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

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
