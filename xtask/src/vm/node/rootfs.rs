//! The root file system of a node: Debian, made by mmdebstrap, kept in `target/vm/nodes` until its ingredients change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::host::apt::{Apt, KEYRING, mirror};
use crate::musl::Arch;
use crate::workspace::{on_path, run, step};

/// What both suites have.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,kmod,udev,iproute2,iptables,nftables,procps,\
    util-linux,busybox-static,apparmor,docker.io,podman,containerd,runc,crun,conmon,tini,fuse-overlayfs,slirp4netns,uidmap,\
    containernetworking-plugins,ca-certificates,python3-minimal,python3-grpcio,python3-protobuf,python3-yaml,\
    protobuf-compiler,libcap2-bin,musl,earlyoom,systemd-oomd,openssh-client";

/// What only trixie has, or packages apart.
const SINCE_TRIXIE: &str = ",docker-cli,docker-buildx,netavark,aardvark-dns,passt";

/// The container runtime interface's messages, of a suite that has them; every node gets the same.
const CRI_API: (&str, &str) = ("trixie", "golang-github-kubernetes-cri-api-dev");

const CUSTOMIZE: &str = include_str!("customize.sh");

/// Seconds. Takes a minute beside a mirror.
const DEADLINE: &str = "900";

/// Sparse; a quarter of it is used.
const SIZE: &str = "3G";

/// A disk with a node, and its kernel.
pub(super) struct Rootfs {
    pub(super) disk: PathBuf,
    pub(super) kernel: PathBuf,
}

/// Returns the root file system of this Debian suite. Makes it if it is not cached.
pub(super) fn ensure(suite: &str, folder: &Path) -> Result<Rootfs> {
    let nodes = folder.join("nodes");
    let home = nodes.join(format!("{suite}-{}", key(suite)));
    if !home.is_dir() {
        fs::create_dir_all(&nodes).with_context(|| format!("cannot make {}", nodes.display()))?;
        remove_older(suite, &nodes)?;
        make(suite, &nodes, &home)?;
    }
    Ok(Rootfs { disk: home.join("disk"), kernel: home.join("vmlinuz") })
}

fn packages(suite: &str) -> String {
    let further = if suite == "bookworm" { "" } else { SINCE_TRIXIE };
    format!("{PACKAGES}{further}")
}

fn key(suite: &str) -> String {
    let digest = Sha256::digest(format!("{}\n{CUSTOMIZE}{SIZE}{CRI_API:?}", packages(suite)));
    let mut first = [0; 8];
    first[2..].copy_from_slice(&digest[..6]);
    format!("{:012x}", u64::from_be_bytes(first))
}

fn remove_older(suite: &str, nodes: &Path) -> Result<()> {
    for entry in fs::read_dir(nodes)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{suite}-")) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The folder appears only when it is complete.
fn make(suite: &str, nodes: &Path, home: &Path) -> Result<()> {
    for program in ["mmdebstrap", "mke2fs", "timeout"] {
        if !on_path(program) {
            bail!("{program} is missing; `cargo xtask test --all` installs it");
        }
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("making a root file system needs root");
    }
    step(&format!("making a root file system of Debian {suite} (one or two minutes)"));
    let scratch = tempfile::tempdir_in(nodes)?;
    let (root, made) = (scratch.path().join("root"), scratch.path().join("made"));
    fs::create_dir(&made)?;
    bootstrap(suite, scratch.path(), &root)?;
    fs::rename(root.join("boot/vmlinuz"), made.join("vmlinuz")).context("the root file system has no kernel")?;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-m", "0", "-O", "^has_journal,^metadata_csum", "-d"]);
    run(command.arg(&root).arg(made.join("disk")).arg(SIZE))?;
    fs::rename(&made, home).with_context(|| format!("cannot make {}", home.display()))
}

fn bootstrap(suite: &str, scratch: &Path, root: &Path) -> Result<()> {
    let (sources, customize) = (scratch.join("sources.list"), scratch.join("customize.sh"));
    let mirror = mirror()?;
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let line = |suite: &str| format!("deb {signed}{mirror} {suite} main\n");
    fs::write(&sources, line(suite) + &line(&format!("{suite}-updates")))?;
    fs::write(&customize, CUSTOMIZE)?;
    let apt = Apt::updated(&[CRI_API.0], Arch::native()?)?;
    let cri = apt.download(CRI_API.1)?;
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", DEADLINE, "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]);
    command.args(["--format=directory", &format!("--include={}", packages(suite))]);
    command.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
    for folder in ["man", "doc", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    command.arg(format!("--customize-hook=sh '{}' '{}' \"$1\"", customize.display(), cri.display()));
    run(command.arg(suite).arg(root).arg(&sources))
}
