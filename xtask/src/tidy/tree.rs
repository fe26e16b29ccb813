//! Rules over the whole tree: its top-level folders, the names of package registries, and a reason
//! for each dependency.

use super::Complaint;
use super::source::Source;

/// The top-level folders. Folders that open with a dot belong to tools and are free.
const FOLDERS: &[&str] = &["krunner", "krunner-common", "krunner-ebpf", "xtask", "tests", "fuzz", "target"];

/// Host names of package registries, in two parts each: this file must not name them either.
const REGISTRIES: &[(&str, &str)] = &[
    ("crates", "io"),
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("deb.debian", "org"),
    ("security.debian", "org"),
    ("snapshot.debian", "org"),
    ("npmjs", "org"),
    ("npmjs", "com"),
    ("proxy.golang", "org"),
    ("sum.golang", "org"),
];

/// Cargo writes the registry into every entry of its lock file.
const MAY_NAME_REGISTRIES: &[&str] = &["Cargo.lock", "fuzz/Cargo.lock"];

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const MANIFEST: &str = "krunner/Cargo.toml";

/// Complaints about a file of any kind.
pub(super) fn check_file(source: &Source, complaints: &mut Vec<Complaint>) {
    if MAY_NAME_REGISTRIES.contains(&source.path()) {
        return;
    }
    for (name, domain) in REGISTRIES {
        let host = format!("{name}.{domain}");
        for (offset, _) in source.text().match_indices(&host) {
            complaints.push(Complaint::new(
                source.path(),
                source.line_of(offset),
                "names the host of a package registry",
                "name the package and its client (`cargo add`, `pip install`); where it comes from is the machine's matter",
            ));
        }
    }
}

/// Complaints about folders that should not be there.
pub(super) fn check_folders(sources: &[Source], complaints: &mut Vec<Complaint>) {
    let mut seen = Vec::new();
    for source in sources {
        let Some((folder, _)) = source.path().split_once('/') else { continue };
        if folder.starts_with('.') || FOLDERS.contains(&folder) || seen.contains(&folder) {
            continue;
        }
        seen.push(folder);
        complaints.push(Complaint::new(
            source.path(),
            1,
            format!("a new top-level folder, `{folder}`"),
            format!("find it a place in one of {}", FOLDERS.join(", ")),
        ));
    }
}

/// Complaints about dependencies of krunner for which ARCHITECTURE.md gives no reason.
pub(super) fn check_dependencies(sources: &[Source], complaints: &mut Vec<Complaint>, notes: &mut Vec<String>) {
    let find = |path: &str| sources.iter().find(|source| source.path() == path);
    let Some(manifest) = find(MANIFEST) else { return };
    let Some(architecture) = find(ARCHITECTURE) else {
        notes.push(format!("there is no {ARCHITECTURE}, so nobody checked that it gives a reason for each dependency"));
        return;
    };
    for (line, name) in dependencies(manifest.text()) {
        if !mentions(architecture.text(), name) {
            complaints.push(Complaint::new(
                MANIFEST,
                line,
                format!("`{name}` has no reason in {ARCHITECTURE}"),
                "say there why this crate, and not our own code or what we already have",
            ));
        }
    }
}

/// The crates that a manifest names in its tables of dependencies, with their lines; those of this
/// workspace aside.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_table = false;
    for (index, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(table) = line.strip_prefix('[') {
            // `[dependencies.name]` opens a table for one crate.
            let (table, name) = table.trim_end_matches(']').rsplit_once("dependencies").unwrap_or_default();
            in_table = line.ends_with("dependencies]");
            if let Some(name) = name.strip_prefix('.').filter(|_| !table.contains("workspace")) {
                found.push((index + 1, name));
            }
        } else if in_table && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if !name.is_empty() && !name.starts_with("krunner") {
                found.push((index + 1, name));
            }
        }
    }
    found
}

/// Whether `text` has `name` as a crate name: `nix` is not in `unix`, `tokio` not in `tokio-util`.
fn mentions(text: &str, name: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_');
    text.match_indices(name)
        .any(|(offset, _)| !text[..offset].ends_with(is_part) && !text[offset + name.len()..].starts_with(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST_TEXT: &str = "\
[package]
name = \"krunner\"

[dependencies]
nix.workspace = true
# a comment
tokio = { workspace = true }
krunner-common.workspace = true

[target.'cfg(target_os = \"linux\")'.dependencies]
aya.workspace = true

[dev-dependencies.insta]
workspace = true
";

    #[test]
    fn registries_are_not_named() {
        let host = ["crates", "io"].join(".");
        let named = Source::new("README.md", &format!("a\nsee https://{host}/\n"));
        let mut complaints = Vec::new();
        check_file(&named, &mut complaints);
        assert_eq!(complaints.iter().map(|complaint| complaint.line).collect::<Vec<_>>(), [2]);
        check_file(&Source::new("Cargo.lock", &host), &mut complaints);
        check_file(&Source::new("README.md", "cargo install crates from io"), &mut complaints);
        assert_eq!(complaints.len(), 1);
    }

    #[test]
    fn top_level_folders_are_counted_once() {
        let paths = ["README.md", ".ci/run", "krunner/src/lib.rs", "docs/a.md", "docs/b.md"];
        let sources: Vec<Source> = paths.iter().map(|path| Source::new(path, "")).collect();
        let mut complaints = Vec::new();
        check_folders(&sources, &mut complaints);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].problem.contains("docs"));
    }

    #[test]
    fn all_tables_of_dependencies_are_read() {
        let names: Vec<_> = dependencies(MANIFEST_TEXT).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["nix", "tokio", "aya", "insta"]);
    }

    #[test]
    fn each_dependency_has_a_reason() {
        let run = |text: Option<&str>| {
            let mut sources = vec![Source::new(MANIFEST, MANIFEST_TEXT)];
            sources.extend(text.map(|text| Source::new(ARCHITECTURE, text)));
            let (mut complaints, mut notes) = (Vec::new(), Vec::new());
            check_dependencies(&sources, &mut complaints, &mut notes);
            (complaints.into_iter().map(|complaint| complaint.line).collect::<Vec<_>>(), notes.len())
        };
        assert_eq!(run(None), (vec![], 1));
        assert_eq!(run(Some("`nix`, `tokio`, aya and insta: because.")), (vec![], 0));
        assert_eq!(run(Some("unix `tokio-util`, aya, insta")), (vec![5, 7], 0));
    }
}
