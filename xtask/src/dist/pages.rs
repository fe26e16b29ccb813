//! The manual pages and completions of a release, as the binary itself prints them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::printed;

/// Shells, and the name under which each looks for a program's completions.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "krunner.bash"), ("zsh", "_krunner"), ("fish", "krunner.fish")];

/// Has `krunner`, which runs on this machine, write `into/man/*.1` and `into/completions/`.
pub(crate) fn write(krunner: &Path, into: &Path) -> Result<()> {
    printed(Command::new(krunner).args(["man", "--dir"]).arg(into.join("man")))?;
    let folder = into.join("completions");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (shell, name) in COMPLETIONS {
        let script = printed(Command::new(krunner).args(["completions", shell]))?;
        let file = folder.join(name);
        fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_program_that_fails_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("krunner");
        fs::write(&program, "#!/bin/sh\nexit 2\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let error = write(&program, folder.path()).unwrap_err().to_string();
        assert!(error.contains("krunner man failed"), "{error}");
    }
}
