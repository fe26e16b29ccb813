//! What the suites need from the machine beyond the Rust toolchain, and how to get it.
//!
//! Only `cargo xtask test --all` installs. Everywhere else a test that misses something skips
//! itself and says why.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{on_path, run, step};

/// How to tell that a package's content is there, whoever put it there.
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

/// Everything that tests call or compile against. A new need is a line here.
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
    Package { name: "runc", probe: Probe::Program("runc"), why: "containers, each with another handicap" },
    Package {
        name: "golang-github-containers-common",
        probe: Probe::File("/usr/share/containers/seccomp.json"),
        why: "the default seccomp profile of container engines",
    },
    Package { name: "qemu-system-x86", probe: Probe::Program(QEMU), why: "other kernels, in virtual machines" },
    Package { name: "qemu-user", probe: Probe::Program(QEMU_AARCH64), why: "starts the binary for aarch64" },
    Package { name: "clang", probe: Probe::Program("clang"), why: "compiles the C of `ring` for aarch64" },
    Package {
        name: "golang-github-containers-common",
        probe: Probe::File("/usr/share/containers/seccomp.json"),
        why: "an engine's own seccomp profile",
    },
    Package { name: "mandoc", probe: Probe::Program("mandoc"), why: "judges the manual pages" },
    Package { name: "busybox-static", probe: Probe::File(BUSYBOX), why: "the shell in those machines and in ttyd" },
    Package { name: "git", probe: Probe::Program("git"), why: "`%show graph` of the `git` runtime asks it" },
    Package { name: "bash", probe: Probe::File("/bin/bash"), why: "the shell of the terminal" },
    Package { name: "zsh", probe: Probe::Program("zsh"), why: "reads the completions made for it" },
    Package { name: "fish", probe: Probe::Program("fish"), why: "reads the completions made for it" },
    Package { name: "groff", probe: Probe::Program("groff"), why: "sets the manual pages" },
    Package {
        name: "r-cran-irkernel",
        probe: Probe::File("/usr/lib/R/site-library/IRkernel/DESCRIPTION"),
        why: "the Jupyter kernel of the `r` runtime",
    },
    Package { name: "openssl", probe: Probe::Program("openssl"), why: "certificates for servers in tests" },
    Package { name: "libcap2-bin", probe: Probe::File("/sbin/setcap"), why: "file capabilities of a non-root runner" },
];

/// Runs programs of that processor.
pub(crate) const QEMU_AARCH64: &str = "qemu-aarch64";

/// Runs virtual machines.
const QEMU: &str = "qemu-system-x86_64";

/// Goes into them.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// What virtual machines need and this machine has not.
pub(crate) fn missing_for_machines() -> Option<String> {
    missing_of(&["qemu-system-x86", "busybox-static"])
}

/// What `cargo xtask dist` needs, with its check or without, and this machine has not.
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

/// Installs the packages whose content is not on this machine.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| !package.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        step(&format!("{} is missing: {}", package.name, package.why));
    }
    install(&missing.iter().map(|package| package.name).collect::<Vec<_>>())?;
    match missing.iter().find(|package| !package.is_there()) {
        Some(package) => bail!("{} is installed, and what tests need of it is still not there", package.name),
        None => Ok(()),
    }
}

/// Installs Debian packages. The package lists are fetched only when the first try fails, since
/// they are often there already.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install {}", names.join(" "));
    if !on_path("apt-get") {
        bail!("this is no Debian; install by other means what these packages hold: {}", names.join(" "));
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

fn apt(names: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(names);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
