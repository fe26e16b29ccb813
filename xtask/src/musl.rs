//! Static binaries, linked with musl. They run on any distribution and in any container, including `FROM scratch`.
//!
//! Builds are reproducible: the same sources give the same bytes on any machine. Local paths, which panic messages
//! contain, are remapped. Anyone with the sources can verify released binaries (`cargo xtask dist --check`).

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{cargo, on_path, printed, root, run, step, target_dir};

/// The build profile in `Cargo.toml`.
const PROFILE: &str = "static";

/// The profile of programs that only tests run.
const TEST_PROFILE: &str = "static-tests";

/// A processor that static binaries are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The name that `uname -m` prints.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The processor of this machine.
    pub(crate) fn native() -> Result<Self> {
        let native = Self::ALL.into_iter().find(|arch| arch.is_native());
        native.with_context(|| format!("krunner is not built for this processor, {}", std::env::consts::ARCH))
    }

    /// Whether its programs run on this machine.
    pub(crate) fn is_native(self) -> bool {
        self.name() == std::env::consts::ARCH
    }

    /// Whether this compiler has a standard library for the target.
    fn is_installed(self) -> Result<bool> {
        let folder = rustc(&["--print", "target-libdir", "--target", self.target()])?;
        Ok(Path::new(&folder).is_dir())
    }

    /// Installs that library with `rustup`.
    pub(crate) fn ensure(self) -> Result<()> {
        if self.is_installed()? {
            return Ok(());
        }
        let target = self.target();
        if !on_path("rustup") {
            bail!(
                "this compiler has no standard library for {target}, and there is no rustup to get it with; install it the \
                 way the compiler came (Debian has none: use rustup, then `rustup target add {target}`)"
            );
        }
        step(&format!("rustup target add {target}"));
        run(Command::new("rustup").args(["target", "add", target]))
    }
}

/// The name on the command line.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The folders of a build.
pub(crate) struct Site {
    pub(crate) sources: PathBuf,
    pub(crate) cargo_home: PathBuf,
    pub(crate) target_dir: PathBuf,
}

impl Site {
    /// Builds in this checkout.
    pub(crate) fn here() -> Result<Self> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
        let cargo_home = home.context("neither CARGO_HOME nor HOME says where cargo keeps its files")?;
        Ok(Self { sources: root(), cargo_home, target_dir: target_dir()? })
    }

    /// Builds krunner for these processors at the same time and returns the paths in their order: each build optimizes for
    /// minutes on one core.
    pub(crate) fn build(&self, archs: &[Arch]) -> Result<Vec<PathBuf>> {
        self.build_with(PROFILE, "krunner", "krunner", archs)
    }

    /// Builds krunner for this machine and returns its path.
    pub(crate) fn build_native(&self) -> Result<PathBuf> {
        self.build(&[Arch::native()?])?.pop().context("nothing was built")
    }

    /// Builds a program of the tests, without optimizing it, and returns its path.
    pub(crate) fn build_test_program(&self, name: &str, arch: Arch) -> Result<PathBuf> {
        self.build_with(TEST_PROFILE, "krunner-tests", name, &[arch])?.pop().context("nothing was built")
    }

    fn build_with(&self, profile: &str, package: &str, name: &str, archs: &[Arch]) -> Result<Vec<PathBuf>> {
        let targets: Vec<_> = archs.iter().map(|arch| arch.target()).collect();
        archs.iter().try_for_each(|arch| arch.ensure())?;
        step(&format!("building {name} ({profile}, {})", targets.join(", ")));
        // The folder of unpacked crates is named after the registry and exists only after fetching.
        let targets: Vec<_> = targets.iter().flat_map(|target| ["--target", *target]).collect();
        run(self.cargo().args(["fetch", "--locked", "--quiet"]).args(&targets))?;
        let mut command = self.cargo();
        command.args(["build", "--locked", "--profile", profile, "--package", package, "--bin", name]).args(&targets);
        command.env("CARGO_ENCODED_RUSTFLAGS", self.flags()?);
        // The system has no linker for that target; the compiler ships one.
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
        run(&mut command)?;
        let built = archs.iter().map(|arch| {
            let binary = self.target_dir.join(arch.target()).join(profile).join(name);
            if !binary.is_file() {
                bail!("cargo did not build {}", binary.display());
            }
            Ok(binary)
        });
        built.collect()
    }

    fn cargo(&self) -> Command {
        let mut command = cargo::<&str>([]);
        command.current_dir(&self.sources).env("CARGO_HOME", &self.cargo_home);
        command.env("CARGO_TARGET_DIR", &self.target_dir);
        command
    }

    /// The value of `CARGO_ENCODED_RUSTFLAGS`.
    fn flags(&self) -> Result<OsString> {
        let mut renamed = vec![(self.sources.clone(), "/krunner")];
        let crates = self.cargo_home.join("registry/src");
        for entry in fs::read_dir(&crates).with_context(|| format!("cannot read {}", crates.display()))? {
            renamed.push((entry?.path(), "/crates"));
        }
        renamed.push((PathBuf::from(rustc(&["--print", "sysroot"])?), "/rust"));
        let mut flags = Vec::new();
        for (path, name) in renamed {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(path);
            flag.push("=");
            flag.push(name);
            flags.push(flag);
        }
        Ok(flags.join(&OsString::from("\u{1f}")))
    }
}

/// The first line that the compiler prints.
fn rustc(arguments: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = printed(Command::new(rustc).args(arguments))?;
    Ok(String::from_utf8_lossy(&told).trim().to_owned())
}
