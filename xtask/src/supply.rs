//! What comes from others: their licences, where they come from, and what is banned, asked of cargo-deny with the rules of
//! `deny.toml`.
//!
//! Advisories are not asked for here: their database is a git repository of its own on a public host, which neither this
//! project's CI nor its mirrors of registries have (ARCHITECTURE.md says what was tried). Where it can be reached,
//! `cargo deny check advisories` does it, with the same file.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::tally::Check;
use crate::workspace::{cargo, on_path, root, run, step, target_dir};

/// The release that `deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// cargo-deny's names.
const CHECKS: [&str; 3] = ["licenses", "bans", "sources"];

/// Asks, installing cargo-deny first where it is missing.
pub(crate) fn test() -> Result<Vec<Check>> {
    let deny = ensure()?;
    CHECKS.iter().map(|what| Ok(check(what, Ok(complaints(&deny, what)?)))).collect()
}

/// The same where nothing may be installed.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    CHECKS.iter().map(|what| check(what, Err(reason.to_owned()))).collect()
}

fn check(what: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("supply::{what}"), outcome }
}

fn complaints(deny: &PathBuf, what: &str) -> Result<Vec<String>> {
    let mut command = Command::new(deny);
    command.args(["--offline", "--locked", "--log-level", "error", "--color", "never", "check"]).arg(what);
    let output = command.current_dir(root()).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", deny.display()))?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    let errors: Vec<String> = text.lines().filter(|line| line.starts_with("error")).map(str::to_owned).collect();
    Ok(if errors.is_empty() { vec![format!("cargo deny: {}", output.status)] } else { errors })
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
