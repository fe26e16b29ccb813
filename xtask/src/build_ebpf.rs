//! Builds the eBPF objects and keeps them in the repository, with a digest of what they were built from.
//!
//! Who builds krunner needs none of these tools: the objects that lie next to their sources are embedded.
//! So they must not drift apart. The digest tells that at once and anywhere; `--check` builds anew
//! as well and compares the bytes, which are the same for the same compiler and linker wherever the
//! folders are.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::workspace::{cargo, on_path, root, run, step, target_dir};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "krunner-ebpf";

/// An object: its path and the cargo features that it is built with.
struct Object {
    path: &'static str,
    features: &'static [&'static str],
}

/// The programs as runners load them, with log lines for `--debug`, and with the IDs that `krunner node` needs.
const OBJECTS: &[Object] = &[
    Object { path: "krunner-ebpf/krunner-ebpf.o", features: &[] },
    Object { path: "krunner-ebpf/krunner-ebpf-log.o", features: &["log"] },
    Object { path: "krunner-ebpf/krunner-ebpf-node.o", features: &["namespaces"] },
];

const DIGEST: &str = "krunner-ebpf/krunner-ebpf.digest";

/// The inputs of the objects besides the compiler: files and whole folders.
const SOURCES: &[&str] =
    &["krunner-common/Cargo.toml", "krunner-common/src", "krunner-ebpf/Cargo.toml", "krunner-ebpf/src"];

/// The version of the linker whose output is committed.
const LINKER: &str = "0.13";

const HELP: &str = "\
Needs the compiler's sources (rust-src) and bpf-linker; if one is missing, the error says how to install it. To build \
krunner without changing the eBPF programs you need neither: the objects are committed.

Examples:
  cargo xtask build-ebpf
  cargo xtask build-ebpf --check

Exit codes: 0 written or up to date, 1 an object is stale or could not be built, 2 wrong usage.";

/// Arguments of `cargo xtask build-ebpf`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Build without writing; fail if a committed object differs from what the sources give
    #[arg(long)]
    check: bool,
}

/// Builds the objects. With `--check`, returns whether the committed ones are up to date.
pub(crate) fn run_task(args: &Args) -> Result<bool> {
    let sources = digest_of_sources(&root())?;
    if args.check
        && let Some(difference) = differs(&sources)
    {
        println!("the eBPF objects are stale: {difference}; run: cargo xtask build-ebpf");
        return Ok(false);
    }
    let tools = Tools::find()?;
    let built = OBJECTS.iter().map(|object| Ok((object.path, build(object)?))).collect::<Result<Vec<_>>>()?;
    if args.check {
        return compare(&built, &tools.lines());
    }
    let mut digest = sources;
    for (path, object) in &built {
        fs::write(root().join(path), object).with_context(|| format!("cannot write {path}"))?;
        digest.push_str(&line(object, path));
        step(&format!("{path}: {} bytes", object.len()));
    }
    digest.push_str(&tools.lines());
    fs::write(root().join(DIGEST), digest).with_context(|| format!("cannot write {DIGEST}"))?;
    Ok(true)
}

/// The tools that build the objects, for the digest file and for messages.
struct Tools {
    compiler: String,
    linker: String,
}

impl Tools {
    /// Fails if a tool is missing, and says how to install it.
    fn find() -> Result<Self> {
        let verbose = output(Command::new(rustc()).arg("-vV"))?;
        let field = |name: &str| {
            verbose.lines().find_map(|line| line.strip_prefix(name)).map_or("unknown", str::trim).to_owned()
        };
        let llvm = field("LLVM version:");
        let major = llvm.split('.').next().unwrap_or("unknown").to_owned();
        let mut missing = String::new();

        let sysroot = output(Command::new(rustc()).args(["--print", "sysroot"]))?;
        if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            missing.push_str("\n- the sources of `core`, which is built for BPF: rustup component add rust-src");
        }
        if !on_path("bpf-linker") {
            let _ = write!(
                missing,
                "\n- bpf-linker, built with the compiler's LLVM ({major}): apt-get install llvm-{major}-dev, \
                 then LLVM_PREFIX=/usr/lib/llvm-{major} LLVM_SYS_{major}1_PREFIX=/usr/lib/llvm-{major} \
                 cargo install bpf-linker --version ^{LINKER} --no-default-features --features llvm-{major}"
            );
        }
        if !missing.is_empty() {
            bail!("cannot build the eBPF objects; install what is missing:{missing}");
        }
        let linker = output(Command::new("bpf-linker").arg("--version"))?;
        Ok(Self { compiler: format!("rustc {} (LLVM {llvm})", field("release:")), linker: linker.trim().to_owned() })
    }

    /// The comment lines of the digest file.
    fn lines(&self) -> String {
        format!("# {}\n# {}\n", self.compiler, self.linker)
    }
}

/// The compiler that cargo would call.
fn rustc() -> PathBuf {
    std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Builds in a separate target folder, because the compiler flags differ.
fn build(object: &Object) -> Result<Vec<u8>> {
    step(&format!("building {} for {TARGET} (release)", object.path));
    let target = target_dir()?.join("ebpf");
    let mut command = cargo(["build", "--release", "--locked", "--package", PACKAGE, "--target", TARGET]);
    command.args(["-Z", "build-std=core"]).arg("--target-dir").arg(&target);
    command.args(object.features.iter().flat_map(|feature| ["--features", feature]));
    // A stable compiler builds `core` only with this variable.
    command.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS").env_remove("CARGO_BUILD_RUSTFLAGS");
    // Neither local paths nor a tuned profile of the
    // workspace may change the output.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags().join("\u{1f}"));
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_STRIP", "none");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    command.env("CARGO_PROFILE_RELEASE_LTO", "false");
    run(&mut command)?;
    let built = target.join(TARGET).join("release").join(PACKAGE);
    fs::read(&built).with_context(|| format!("cargo did not build {}", built.display()))
}

fn flags() -> Vec<String> {
    let mut flags = vec![format!("--remap-path-prefix={}=.", root().display())];
    let homes = [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")];
    for (variable, default) in homes {
        let home = std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(default)));
        if let Some(home) = home {
            flags.push(format!("--remap-path-prefix={}={default}", home.display()));
        }
    }
    flags.push("-Dwarnings".to_owned());
    flags
}

/// One line per source file, in the format of sha256sum, so that a difference can be named.
fn digest_of_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(root, Path::new(source), &mut files)?;
    }
    files.sort();
    let mut lines = String::new();
    for file in files {
        let content = fs::read(root.join(&file)).with_context(|| format!("cannot read {}", file.display()))?;
        lines.push_str(&line(&content, &file.display().to_string()));
    }
    Ok(lines)
}

fn collect(root: &Path, path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let full = root.join(path);
    if full.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&full).with_context(|| format!("cannot read {}", full.display()))? {
        collect(root, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

fn line(content: &[u8], name: &str) -> String {
    let mut line = String::new();
    for byte in Sha256::digest(content) {
        let _ = write!(line, "{byte:02x}");
    }
    let _ = writeln!(line, "  {name}");
    line
}

/// Describes how the committed files differ from the sources; `None` if they do not.
fn differs(sources: &str) -> Option<String> {
    let Ok(kept) = fs::read_to_string(root().join(DIGEST)) else {
        return Some(format!("{DIGEST} is missing"));
    };
    let mut expected = sources.to_owned();
    for Object { path, .. } in OBJECTS {
        let Ok(object) = fs::read(root().join(path)) else {
            return Some(format!("{path} is missing"));
        };
        expected.push_str(&line(&object, path));
    }
    first_difference(&kept, &expected)
}

/// The first file whose line is in only one of two digests.
fn first_difference(kept: &str, expected: &str) -> Option<String> {
    let lines =
        |text: &str| -> Vec<String> { text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect() };
    let (kept, expected) = (lines(kept), lines(expected));
    let odd = expected
        .iter()
        .find(|line| !kept.contains(line))
        .or_else(|| kept.iter().find(|line| !expected.contains(line)))?;
    let name = odd.split_whitespace().nth(1).unwrap_or("its digest");
    Some(format!("{name} does not match the digest"))
}

/// Compares built objects with the committed ones.
fn compare(built: &[(&str, Vec<u8>)], tools: &str) -> Result<bool> {
    let mut differing = None;
    for (path, object) in built {
        let kept = fs::read(root().join(path)).with_context(|| format!("cannot read {path}"))?;
        if kept == *object {
            step(&format!("{path} matches its sources ({} bytes)", kept.len()));
        } else {
            differing.get_or_insert(path);
        }
    }
    let Some(path) = differing else { return Ok(true) };
    let recorded = fs::read_to_string(root().join(DIGEST)).with_context(|| format!("cannot read {DIGEST}"))?;
    let comments = |text: &str| text.lines().filter(|line| line.starts_with('#')).collect::<Vec<_>>().join(" ");
    let (then, now) = (comments(&recorded), comments(tools));
    if then == now {
        println!("{path} does not match its sources; run: cargo xtask build-ebpf");
        return Ok(false);
    }
    // Another compiler or linker gives different bytes from the same sources.
    println!(
        "{path} was built with other tools, so its bytes cannot be compared; its sources are unchanged\n  then: {then}\n  now:  {now}"
    );
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_names_what_changed() {
        let kept = "aa  one.rs\nbb  two.rs\n# rustc\n";
        assert_eq!(first_difference(kept, "aa  one.rs\nbb  two.rs\n"), None);
        assert!(first_difference(kept, "aa  one.rs\ncc  two.rs\n").is_some_and(|text| text.starts_with("two.rs")));
        assert!(first_difference(kept, "aa  one.rs\n").is_some_and(|text| text.starts_with("two.rs")));
        assert!(
            first_difference(kept, "aa  one.rs\nbb  two.rs\ndd  new.rs").is_some_and(|text| text.starts_with("new.rs"))
        );
    }

    #[test]
    fn a_line_is_as_sha256sum_prints_it() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty\n";
        assert_eq!(line(b"", "empty"), empty);
    }

    #[test]
    fn the_committed_object_belongs_to_the_sources() {
        let sources = digest_of_sources(&root()).expect("the sources are there");
        assert_eq!(differs(&sources), None, "run: cargo xtask build-ebpf");
    }
}
