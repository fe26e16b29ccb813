//! What the suites need on the machine besides the Rust toolchain, and how to install it.
//!
//! Only `cargo xtask test --all` installs packages. Otherwise a test whose requirements are missing skips
//! itself and states the reason.

pub(crate) mod apt;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::musl::Arch;
use crate::workspace::{on_path, run, step};
use apt::Apt;

/// How to detect that a package's content is present, however it was installed.
enum Probe {
    Program(&'static str),
    File(&'static str),
}

/// A Debian package that tests use.
struct Package {
    name: &'static str,
    probe: Probe,
    why: &'static str,
}

/// Everything that tests call or compile against. Add new requirements here.
const PACKAGES: &[Package] = &[
    Package { name: "gcc", probe: Probe::Program("gcc"), why: "the `c` runtime compiles with it" },
    Package { name: "libc6-dev", probe: Probe::File("/usr/include/stdio.h"), why: "the headers of compiled programs" },
    Package { name: "g++", probe: Probe::Program("g++"), why: "the `cpp` runtime compiles with it" },
    Package { name: "golang-go", probe: Probe::Program("go"), why: "the `golang` runtime" },
    Package { name: "ghc", probe: Probe::Program("ghc"), why: "the `haskell` runtime" },
    Package { name: "default-jdk-headless", probe: Probe::Program("javac"), why: "the `java` runtime" },
    Package { name: "lua5.4", probe: Probe::Program("lua5.4"), why: "the `lua` runtime" },
    Package { name: "nodejs", probe: Probe::Program("node"), why: "the `nodejs` runtime" },
    Package { name: "octave", probe: Probe::Program("octave-cli"), why: "the `octave` runtime" },
    Package { name: "php-cli", probe: Probe::Program("php"), why: "the `php` runtime" },
    Package { name: "r-base-core", probe: Probe::Program("Rscript"), why: "the `r` runtime" },
    Package { name: "mit-scheme", probe: Probe::Program("mit-scheme"), why: "the `scheme` runtime" },
    Package { name: "make", probe: Probe::Program("make"), why: "`build *` runs a Makefile with it" },
    Package { name: "procps", probe: Probe::Program("pkill"), why: "ps and pkill, as users have them in a terminal" },
    Package { name: "iproute2", probe: Probe::Program("ip"), why: "raises `lo` in a private network namespace" },
    Package { name: "util-linux", probe: Probe::Program("unshare"), why: "private namespaces for suites and bench" },
    Package { name: "openssh-client", probe: Probe::Program("sftp"), why: "logs in to the session's sshd" },
    Package { name: "openmpi-bin", probe: Probe::Program("mpirun"), why: "starts processes on the hosts of a cluster" },
    Package { name: "hostname", probe: Probe::Program("hostname"), why: "names the hosts of a cluster" },
    Package { name: "runc", probe: Probe::Program("runc"), why: "containers with different restrictions" },
    Package { name: QEMU_PACKAGE, probe: Probe::Program(QEMU), why: "other kernels, in virtual machines" },
    Package { name: QEMU_ARM64_PACKAGE, probe: Probe::Program(QEMU_ARM64), why: "arm64 kernels, in virtual machines" },
    Package { name: "mmdebstrap", probe: Probe::Program("mmdebstrap"), why: "the root file system of a node" },
    Package { name: "e2fsprogs", probe: Probe::Program("mke2fs"), why: "the disk of a node" },
    Package { name: "qemu-user", probe: Probe::Program(QEMU_AARCH64), why: "starts the binary for aarch64" },
    Package { name: "clang", probe: Probe::Program("clang"), why: "compiles the C of `ring` for aarch64" },
    Package { name: "mandoc", probe: Probe::Program("mandoc"), why: "checks the manual pages" },
    Package { name: "busybox-static", probe: Probe::File(BUSYBOX), why: "the shell in those machines and in ttyd" },
    Package { name: "git", probe: Probe::Program("git"), why: "used by `%show graph` of the `git` runtime" },
    Package { name: "bash", probe: Probe::File("/bin/bash"), why: "the shell of the terminal" },
    Package { name: "zsh", probe: Probe::Program("zsh"), why: "reads the completions made for it" },
    Package { name: "fish", probe: Probe::Program("fish"), why: "reads the completions made for it" },
    Package { name: "groff", probe: Probe::Program("groff"), why: "renders the manual pages" },
    Package {
        name: "r-cran-irkernel",
        probe: Probe::File("/usr/lib/R/site-library/IRkernel/DESCRIPTION"),
        why: "the Jupyter kernel of the `r` runtime",
    },
    Package {
        name: "chromium-headless-shell",
        probe: Probe::Program("chromium-headless-shell"),
        why: "renders the page of `krunner oom plot`",
    },
    Package { name: "fonts-dejavu-core", probe: Probe::File(DEJAVU), why: "text in that browser" },
    Package { name: "prometheus", probe: Probe::Program("prometheus"), why: "scrapes the metrics of `krunner node`" },
    Package { name: "strace", probe: Probe::Program("strace"), why: "makes system calls of the runner fail" },
    Package { name: "bindfs", probe: Probe::Program("bindfs"), why: "a mount that stops answering while it is in use" },
    Package { name: "openssl", probe: Probe::Program("openssl"), why: "certificates for servers in tests" },
    Package { name: "libcap2-bin", probe: Probe::File("/sbin/setcap"), why: "file capabilities of a non-root runner" },
];

/// A font for the headless browser.
const DEJAVU: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// Runs aarch64 programs.
pub(crate) const QEMU_AARCH64: &str = "qemu-aarch64";

/// Runs virtual machines.
const QEMU: &str = "qemu-system-x86_64";

const QEMU_ARM64: &str = "qemu-system-aarch64";

const QEMU_PACKAGE: &str = "qemu-system-x86";

const QEMU_ARM64_PACKAGE: &str = "qemu-system-arm";

/// The shell and tools in virtual machines.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// The first requirement of virtual machines with this processor that is missing here.
pub(crate) fn missing_for_machines(arch: Arch) -> Option<String> {
    let qemu = match arch {
        Arch::X86_64 => QEMU_PACKAGE,
        Arch::Aarch64 => QEMU_ARM64_PACKAGE,
    };
    missing_of(&[qemu, "busybox-static"])
}

/// The first requirement of virtual machines with container engines that is missing here.
pub(crate) fn missing_for_nodes() -> Option<String> {
    missing_of(&[QEMU_PACKAGE, "busybox-static", "mmdebstrap", "e2fsprogs"])
}

/// The first requirement of `cargo xtask dist` that is missing here.
pub(crate) fn missing_for_dist(with_check: bool) -> Option<String> {
    missing_of(if with_check { &["clang", "qemu-user"] } else { &["clang"] })
}

fn missing_of(needed: &[&str]) -> Option<String> {
    let missing = PACKAGES.iter().find(|package| needed.contains(&package.name) && !package.is_there())?;
    Some(format!("{} is missing: {}", missing.name, missing.why))
}

impl Package {
    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(program) => on_path(program),
            Probe::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs the packages whose content is missing.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| !package.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        step(&format!("{} is missing: {}", package.name, package.why));
    }
    let is_emulator = |name: &&str| [QEMU_PACKAGE, QEMU_ARM64_PACKAGE].contains(name);
    let (emulators, others): (Vec<&str>, Vec<&str>) = missing.iter().map(|package| package.name).partition(is_emulator);
    if !others.is_empty() {
        install(&others)?;
    }
    if !emulators.is_empty() {
        install_emulators(&emulators)?;
    }
    match missing.iter().find(|package| !package.is_there()) {
        Some(package) => bail!("{} is installed but still lacks what tests need", package.name),
        None => Ok(()),
    }
}

/// Installs Debian packages. Fetches the package lists only if the first attempt fails, because
/// they are often present.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install {}", names.join(" "));
    if !on_path("apt-get") {
        bail!("apt-get is missing; install the equivalent of these Debian packages: {}", names.join(" "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing needs root; run: sudo {by_hand}");
    }
    step(&by_hand);
    if run(&mut apt(names)).is_ok() {
        return Ok(());
    }
    step("apt-get update");
    run(Command::new("apt-get").args(["update", "--quiet"])).context("no package lists")?;
    run(&mut apt(names)).with_context(|| format!("try by hand: {by_hand}"))
}

/// Debian 12 has QEMU 7.2, and in its backports 10, which takes two thirds of the time for a node (see `vm/qemu.rs`).
fn install_emulators(names: &[&str]) -> Result<()> {
    const BACKPORTS: &str = "bookworm-backports";
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if release.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        let newer = Apt::of_this_machine(&["bookworm", BACKPORTS]).and_then(|apt| {
            step(&format!("apt-get install --target-release {BACKPORTS} {}", names.join(" ")));
            run(as_install(apt.get().args(["--target-release", BACKPORTS]), names))
        });
        match newer {
            Ok(()) => return Ok(()),
            Err(error) => step(&format!("{error:#}; the QEMU of bookworm is slower, and will do")),
        }
    }
    install(names)
}

fn apt(names: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    as_install(&mut command, names);
    command
}

fn as_install<'a>(command: &'a mut Command, names: &[&str]) -> &'a mut Command {
    command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(names);
    // With SYSTEMD_OFFLINE no service is started by the installation (ENVIRONMENT.md of systemd).
    command.env("DEBIAN_FRONTEND", "noninteractive").env("SYSTEMD_OFFLINE", "1")
}
