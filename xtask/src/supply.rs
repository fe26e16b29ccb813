//! What comes from others: their licences, where they come from, what is banned and what was withdrawn, asked of cargo-deny
//! with the rules of `deny.toml`.
//!
//! The database of advisories is a git repository on a public host that not every machine reaches (ARCHITECTURE.md says what
//! was tried). `KRUNNER_ADVISORY_DB` names a clone of it. Without one, the registry's own word is what can be had: a version
//! that its author withdrew, for a hole or otherwise. cargo-deny looks at that together with advisories only, and at neither
//! without a database; so it is handed one with a single entry, about a crate that does not exist.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::tally::Check;
use crate::workspace::{cargo, on_path, root, run, step, target_dir};

/// The release that `deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// Of cargo-deny's names, those that need the repository only.
const CHECKS: [&str; 3] = ["licenses", "bans", "sources"];

/// A clone of the database of advisories.
const DATABASE: &str = "KRUNNER_ADVISORY_DB";

/// Where cargo-deny would clone it from; git is told to take ours.
const DATABASE_URL: &str = "https://github.com/RustSec/advisory-db";

/// The part of `deny.toml` that says where the copy is.
const SECTION: &str = "[advisories]";

/// The one entry of the stand-in.
const ENTRY: &str = r#"```toml
[advisory]
id = "RUSTSEC-2000-0001"
package = "krunner-stand-in"
date = "2000-01-01"
[versions]
patched = []
```

# No crate has this name
"#;

/// Asks, installing cargo-deny first where it is missing.
pub(crate) fn test() -> Result<Vec<Check>> {
    let deny = ensure()?;
    // It reads the manifests of other platforms' crates, too, which no build here has fetched.
    run(&mut cargo(["fetch", "--locked", "--quiet"]))?;
    let mut checks = Vec::new();
    for what in CHECKS {
        checks.push(check(what, Ok(complaints(Command::new(&deny).arg("--offline"), what)?)));
    }
    let database = Database::given_or_stand_in()?;
    checks.push(check(database.what, Ok(database.complaints(&deny)?)));
    Ok(checks)
}

/// The same where nothing may be installed.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    CHECKS.iter().chain(&["yanked"]).map(|what| check(what, Err(reason.to_owned()))).collect()
}

fn check(what: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("supply::{what}"), outcome }
}

/// What cargo-deny, called with these options, has against the workspace.
fn complaints(deny: &mut Command, what: &str) -> Result<Vec<String>> {
    deny.args(["--locked", "--log-level", "error", "--color", "never", "check"]).arg(what);
    let output = deny.current_dir(root()).stdin(Stdio::null()).output().context("cannot run cargo-deny")?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    let errors: Vec<String> = text.lines().filter(|line| line.starts_with("error")).map(str::to_owned).collect();
    Ok(if errors.is_empty() { vec![format!("cargo deny: {}", output.status)] } else { errors })
}

/// What cargo-deny looks up versions in.
struct Database {
    /// What it answers, as the check's name.
    what: &'static str,
    repository: PathBuf,
    /// Cargo-deny's copy and its rules, and the stand-in.
    scratch: TempDir,
}

impl Database {
    fn given_or_stand_in() -> Result<Self> {
        let scratch = tempfile::tempdir().context("no temporary folder")?;
        if let Some(given) = std::env::var_os(DATABASE) {
            let repository = fs::canonicalize(&given).with_context(|| {
                format!("{DATABASE} is {}: it has to be a clone of {DATABASE_URL}", given.display())
            })?;
            if !repository.join("crates").is_dir() {
                bail!("{DATABASE} is {}: there is no crates/ in it, as {DATABASE_URL} has", given.display());
            }
            return Ok(Self { what: "advisories", repository, scratch });
        }
        let repository = scratch.path().join("stand-in");
        stand_in(&repository)?;
        Ok(Self { what: "yanked", repository, scratch })
    }

    fn complaints(&self, deny: &Path) -> Result<Vec<String>> {
        // What cargo keeps of the registry's index may be from before a version was withdrawn; this asks for all anew.
        run(&mut cargo(["update", "--dry-run", "--quiet"]))?;
        let mut command = Command::new(deny);
        command.arg("--config").arg(self.rules()?);
        let ours = format!("url.file://{}.insteadOf", self.repository.display());
        command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", ours).env("GIT_CONFIG_VALUE_0", DATABASE_URL);
        complaints(&mut command, "advisories")
    }

    /// `deny.toml`, with a folder for the copy that is not the user's.
    fn rules(&self) -> Result<PathBuf> {
        let path = root().join("deny.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (before, after) =
            text.split_once(SECTION).with_context(|| format!("{} has no {SECTION}", path.display()))?;
        let copies = self.scratch.path().join("copies");
        let path = self.scratch.path().join("deny.toml");
        let rules = format!("{before}{SECTION}\ndb-path = '{}'\n{after}", copies.display());
        fs::write(&path, rules).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// A repository of the database's form.
fn stand_in(repository: &Path) -> Result<()> {
    let folder = repository.join("crates/krunner-stand-in");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(folder.join("RUSTSEC-2000-0001.md"), ENTRY)?;
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=xtask", "-c", "user.email=xtask@localhost", "-c", "commit.gpgSign=false"]);
        run(command.arg("-C").arg(repository).args(arguments.iter().map(OsStr::new)))
    };
    git(&["init", "--quiet", "--initial-branch", "main"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "--message", "A stand-in"])
}

fn ensure() -> Result<PathBuf> {
    if on_path("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let tools = target_dir()?.join("tools");
    let deny = tools.join("bin/cargo-deny");
    if !deny.is_file() {
        step(&format!("cargo install cargo-deny {VERSION}"));
        let mut install = cargo(["install", "--locked", "--quiet", "cargo-deny", "--version", VERSION, "--root"]);
        run(install.arg(&tools))?;
    }
    Ok(deny)
}
