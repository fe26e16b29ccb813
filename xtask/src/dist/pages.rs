//! Manual pages and completions, as the binary prints them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{named, run};

/// Shells, and how their files are called.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "krunner.bash"), ("zsh", "_krunner"), ("fish", "krunner.fish")];

/// Has that binary, which has to run here, write them.
pub(super) fn write(krunner: &Path, into: &Path) -> Result<()> {
    let pages = into.join("man");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    run(Command::new(krunner).args(["man", "--dir"]).arg(&pages))?;
    for (shell, name) in COMPLETIONS {
        let mut command = Command::new(krunner);
        let output = command.args(["completions", shell]).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot run {}", named(&command)))?;
        if !output.status.success() {
            bail!("{} failed: {}", named(&command), output.status);
        }
        super::write(&into.join("completions").join(name), &output.stdout, 0o644)?;
    }
    Ok(())
}
