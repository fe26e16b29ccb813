//! Audits dependencies with cargo-deny and `deny.toml`: licences, sources, banned crates, advisories and yanked versions.
//!
//! The advisory database is a git repository on a public host that not every machine can reach (ARCHITECTURE.md lists what
//! was tried). `KRUNNER_ADVISORY_DB` names a clone of it. Without a clone, only yanked versions can be found, which the registry
//! knows. cargo-deny checks for yanked versions only together with advisories, and requires a database for that, so it gets a
//! placeholder database with a single entry about a crate that does not exist.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::summary::Check;
use crate::workspace::{cargo, on_path, root, run, step, target_dir};

/// The release that `deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// The checks of cargo-deny that do not need an advisory database.
const CHECKS: [&str; 3] = ["licenses", "bans", "sources"];

/// Names a clone of the advisory database.
const DATABASE: &str = "KRUNNER_ADVISORY_DB";

/// Where cargo-deny clones the database from; git's `insteadOf` redirects this to ours.
const DATABASE_URL: &str = "https://github.com/RustSec/advisory-db";

/// The section of `deny.toml` that gets a `db-path`.
const SECTION: &str = "[advisories]";

/// The only entry of the placeholder database.
const ENTRY: &str = r#"```toml
[advisory]
id = "RUSTSEC-2000-0001"
package = "krunner-placeholder"
date = "2000-01-01"
[versions]
patched = []
```

# No crate has this name
"#;

/// Runs the audit, installing cargo-deny first if it is missing.
pub(crate) fn test() -> Result<Vec<Check>> {
    let deny = ensure()?;
    // cargo-deny also reads the manifests of crates for other platforms, which builds here do not fetch.
    run(&mut cargo(["fetch", "--locked", "--quiet"]))?;
    let mut checks = Vec::new();
    for what in CHECKS {
        checks.push(check(what, Ok(complaints(Command::new(&deny).arg("--offline"), what)?)));
    }
    let database = Database::given_or_placeholder()?;
    checks.push(check(database.what, Ok(database.complaints(&deny)?)));
    Ok(checks)
}

/// The same checks, skipped for this reason.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    CHECKS.iter().chain(&["yanked"]).map(|what| check(what, Err(reason.to_owned()))).collect()
}

fn check(what: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("audit::{what}"), outcome }
}

/// Runs one check of cargo-deny and returns the errors that it reports.
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

/// An advisory database for cargo-deny.
struct Database {
    /// The name of the check that this database permits.
    what: &'static str,
    repository: PathBuf,
    /// Holds cargo-deny's copy and configuration, and the placeholder.
    scratch: TempDir,
}

impl Database {
    fn given_or_placeholder() -> Result<Self> {
        let scratch = tempfile::tempdir().context("no temporary folder")?;
        if let Some(given) = std::env::var_os(DATABASE) {
            let repository = fs::canonicalize(&given)
                .with_context(|| format!("{DATABASE}={} is not a clone of {DATABASE_URL}", given.display()))?;
            if !repository.join("crates").is_dir() {
                bail!("{DATABASE}={} has no crates/ folder; it must be a clone of {DATABASE_URL}", given.display());
            }
            return Ok(Self { what: "advisories", repository, scratch });
        }
        let repository = scratch.path().join("placeholder");
        create_placeholder(&repository)?;
        Ok(Self { what: "yanked", repository, scratch })
    }

    fn complaints(&self, deny: &Path) -> Result<Vec<String>> {
        // The cached registry index may be older than a yank; this refreshes it.
        run(&mut cargo(["update", "--dry-run", "--quiet"]))?;
        let mut command = Command::new(deny);
        command.arg("--config").arg(self.config()?);
        let ours = format!("url.file://{}.insteadOf", self.repository.display());
        command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", ours).env("GIT_CONFIG_VALUE_0", DATABASE_URL);
        complaints(&mut command, "advisories")
    }

    /// Writes a copy of `deny.toml` whose `db-path` is in the scratch folder, not in the user's home.
    fn config(&self) -> Result<PathBuf> {
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

/// Creates a repository with the layout of the advisory database.
fn create_placeholder(repository: &Path) -> Result<()> {
    let folder = repository.join("crates/krunner-placeholder");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(folder.join("RUSTSEC-2000-0001.md"), ENTRY)?;
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=xtask", "-c", "user.email=xtask@localhost", "-c", "commit.gpgSign=false"]);
        run(command.arg("-C").arg(repository).args(arguments.iter().map(OsStr::new)))
    };
    git(&["init", "--quiet", "--initial-branch", "main"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "--message", "Placeholder"])
}

/// The path of cargo-deny, which is installed if it is missing.
pub(crate) fn ensure() -> Result<PathBuf> {
    if on_path("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let tools = target_dir()?.join("tools");
    let deny = tools.join("bin/cargo-deny");
    if !deny.is_file() {
        step(&format!("cargo install cargo-deny {VERSION}"));
        // Not optimized: it runs for a second and would compile for minutes.
        let mut install =
            cargo(["install", "--debug", "--locked", "--quiet", "cargo-deny", "--version", VERSION, "--root"]);
        run(install.arg(&tools).env("CARGO_PROFILE_DEV_DEBUG", "0"))?;
    }
    Ok(deny)
}
