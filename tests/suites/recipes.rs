//! What can be checked of the recipes in `krunner/dist` without a container engine. `cargo xtask vm --node` carries them out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use krunner_tests::{host, require};

/// Checks the documents of its arguments with the published schemas of several versions of Kubernetes.
const VALIDATE: &str = r#"
import sys, yaml, kubernetes_validate
for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        for version in ["1.30", "1.33", "1.37"]:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit("{}: {} of {}: {}".format(path, document["kind"], version, error.message))
"#;

/// What the recipe with Events has in place of lines of the one without.
const EVENTS: [(&str, &str); 2] = [
    ("automountServiceAccountToken: false", "serviceAccountName: krunner-node"),
    (
        "args: [node, --metrics, '0.0.0.0:9464']",
        "args: [node, --metrics, '0.0.0.0:9464', --events]
          env:
            # Who reports, in the Events.
            - name: NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName",
    ),
];

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
    let files = files(&[".", "recipes/docker", "recipes/kubernetes", "recipes/kubernetes-events"]);
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

#[test]
fn kubernetes_knows_the_objects_and_all_their_fields() {
    let python = require!(host::agent_python_with("kubernetes_validate"));
    let paths = files(&["recipes/kubernetes", "recipes/kubernetes-events"]).into_iter().map(|(path, _)| path);
    let output = Command::new(python).args(["-c", VALIDATE]).args(paths).stdin(Stdio::null()).output().expect("python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn recipe_with_events_is_the_other_with_a_service_account() {
    let text = |folder: &str| {
        let found = files(&[folder]).into_iter().find(|(path, _)| path.ends_with("krunner-node.yaml"));
        found.expect("a recipe").1
    };
    // After the comment.
    let plain = text("recipes/kubernetes").split_once('\n').expect("lines").1.to_owned();
    let expected = EVENTS.iter().fold(plain, |text, (from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text.replace(from, to)
    });
    let with_events = text("recipes/kubernetes-events");
    assert_eq!(with_events.rsplit_once("---\n").expect("documents").1, expected);
}
