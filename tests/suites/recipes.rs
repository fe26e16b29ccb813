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

/// The names of krunner's image in a text. Users choose the version of a session's image.
fn images(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|character: char| character.is_ascii_whitespace() || matches!(character, '=' | '`' | '"'));
    words.filter(|word| {
        word.strip_prefix("krunner:").is_some_and(|tag| tag.starts_with(|first: char| first.is_ascii_digit()))
    })
}

#[test]
fn image_of_the_recipes_is_of_this_version() {
    let own = format!("krunner:{}", env!("CARGO_PKG_VERSION"));
    let files = files(&[".", "recipes/docker", "recipes/kubernetes"]);
    let mut naming = 0;
    for (path, text) in &files {
        for image in images(text) {
            assert_eq!(image, own, "{}", path.display());
            naming += 1;
        }
    }
    assert!(naming > 6, "{naming} names");
}

#[test]
fn scripts_are_valid_for_a_shell() {
    for (path, _) in files(&["recipes/docker"]) {
        let status = Command::new("sh").arg("-n").arg(&path).status().expect("a shell");
        assert!(status.success(), "{}", path.display());
    }
}
