//! What can be checked of the recipes in `krunner/dist` without a container engine. `cargo xtask vm --node` carries them out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every file in these folders of `krunner/dist`, with its text.
fn files(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../krunner/dist");
    let entries = folders.iter().flat_map(|folder| fs::read_dir(dist.join(folder)).expect("a folder"));
    let paths = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a text");
        (path, text)
    };
    let files: Vec<_> = paths.map(read).collect();
    assert!(!files.is_empty(), "{folders:?} are empty");
    files
}

#[test]
fn image_of_the_recipes_is_of_this_version() {
    let own = format!("krunner:{}", env!("CARGO_PKG_VERSION"));
    // Users choose the version of a session's image.
    let is_of_krunner = |text: &str| text.replace("image-with-krunner:", "").contains("krunner:");
    let naming: Vec<_> = files(&[".", "recipes/docker", "recipes/kubernetes"])
        .into_iter()
        .filter(|(_, text)| is_of_krunner(text))
        .collect();
    for (path, text) in &naming {
        assert!(text.contains(&own), "{} names another version than {own}", path.display());
    }
    assert!(naming.len() > 4, "{naming:?}");
}

#[test]
fn scripts_are_valid_for_a_shell() {
    for (path, _) in files(&["recipes/docker"]) {
        let status = Command::new("sh").arg("-n").arg(&path).status().expect("a shell");
        assert!(status.success(), "{}", path.display());
    }
}
