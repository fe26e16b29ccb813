//! For unit tests of plans: a folder of files, and a plan as text.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use super::plan::Plan;

/// A folder with these files, all executable.
pub(super) fn folder(files: &[impl AsRef<Path>]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// A line for each command, or exit code and message.
pub(super) fn shown(plan: &Plan) -> Vec<String> {
    match plan {
        Plan::Run(commands) => commands.iter().map(ToString::to_string).collect(),
        Plan::Nothing { message, exit_code, .. } => vec![format!("{exit_code}: {message}")],
    }
}
