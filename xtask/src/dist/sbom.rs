//! A bill of materials of the crates that are linked into krunner (`CycloneDX` 1.5,
//! <https://cyclonedx.org/docs/1.5/json/>), and the texts of their licences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::musl::Arch;
use crate::workspace::{cargo, printed, root};

/// Names of files with a crate's licence or notices.
const TEXTS: [&str; 5] = ["LICEN", "COPYING", "COPYRIGHT", "NOTICE", "UNLICEN"];

/// What every static Rust program contains besides crates.
const RUNTIME: &str = "\
The Rust standard library (MIT OR Apache-2.0), with the parts of LLVM's libunwind and compiler-rt that it brings
(Apache-2.0 WITH LLVM-exception), and musl (MIT) are linked in as well.
";

/// As `cargo metadata` prints it.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None for those of this workspace.
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// None: it is linked in. The others are `dev` and `build`.
    kind: Option<String>,
}

/// As in `Cargo.lock`.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Writes `krunner.cdx.json` and `LICENSES.txt`.
pub(super) fn write(archs: &[Arch], folder: &Path) -> Result<()> {
    let linked = Linked::find(archs)?;
    let bill = format!("{:#}\n", linked.bill(&checksums()?)?);
    super::write(&folder.join("krunner.cdx.json"), bill.as_bytes(), 0o644)?;
    super::write(&folder.join("LICENSES.txt"), linked.texts()?.as_bytes(), 0o644)
}

/// The packages that are linked in for any of the processors, and what each of them uses.
struct Linked {
    packages: BTreeMap<String, Package>,
    uses: BTreeMap<String, BTreeSet<String>>,
    krunner: String,
}

impl Linked {
    fn find(archs: &[Arch]) -> Result<Self> {
        let mut all = Self { packages: BTreeMap::new(), uses: BTreeMap::new(), krunner: String::new() };
        for &arch in archs {
            all.add(metadata(arch)?, &tree(arch)?)?;
        }
        Ok(all)
    }

    /// Walks from krunner along what is linked in, as far as `tree` has it.
    fn add(&mut self, metadata: Metadata, tree: &BTreeSet<(String, String)>) -> Result<()> {
        let mut packages: BTreeMap<_, _> = metadata.packages.into_iter().map(|each| (each.id.clone(), each)).collect();
        let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|node| (&node.id, node)).collect();
        let krunner = packages.values().find(|each| each.name == "krunner" && each.source.is_none());
        self.krunner.clone_from(&krunner.context("cargo metadata knows no krunner")?.id);
        let mut open = vec![self.krunner.clone()];
        while let Some(id) = open.pop() {
            let Some(package) = packages.remove(&id) else { continue };
            if !tree.contains(&(package.name.clone(), package.version.clone())) {
                continue;
            }
            let node = nodes.get(&id).with_context(|| format!("cargo metadata has no node of {id}"))?;
            let linked = node.deps.iter().filter(|each| each.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            open.extend(linked.clone().map(|each| each.pkg.clone()));
            self.uses.entry(id.clone()).or_default().extend(linked.map(|each| each.pkg.clone()));
            self.packages.insert(id, package);
        }
        Ok(())
    }

    fn bill(&self, checksums: &BTreeMap<(String, String), String>) -> Result<Value> {
        let mut components = Vec::new();
        for package in self.packages.values().filter(|package| package.id != self.krunner) {
            let mut component = package.component()?;
            if let Some(sum) = checksums.get(&(package.name.clone(), package.version.clone())) {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
            }
            components.push(component);
        }
        let uses = self.packages.keys().map(|id| {
            let used: BTreeSet<_> =
                self.uses[id].iter().filter_map(|id| self.packages.get(id)).map(Package::url).collect();
            json!({ "ref": self.packages[id].url(), "dependsOn": used })
        });
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": self.packages[&self.krunner].component()? },
            "components": components,
            "dependencies": uses.collect::<Vec<_>>(),
        }))
    }

    /// Each text once, with the crates that have it.
    fn texts(&self) -> Result<String> {
        let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut list = String::new();
        for package in self.packages.values().filter(|package| package.source.is_some()) {
            writeln!(list, "{} {}: {}", package.name, package.version, package.license()?)?;
            for text in package.texts()? {
                texts.entry(text).or_default().insert(format!("{} {}", package.name, package.version));
            }
        }
        let rule = "-".repeat(100);
        let mut all = format!(
            "krunner is licensed under MIT OR Apache-2.0. Linked into it are these crates:\n\n{list}\n{RUNTIME}"
        );
        for (text, crates) in texts {
            let crates = crates.into_iter().collect::<Vec<_>>().join(", ");
            write!(all, "\n{rule}\n{crates}:\n\n{text}\n")?;
        }
        Ok(all)
    }
}

impl Package {
    fn url(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }

    /// As an SPDX expression; older manifests have a slash for "or".
    fn license(&self) -> Result<String> {
        let license =
            self.license.as_ref().with_context(|| format!("{} {} names no licence", self.name, self.version))?;
        Ok(license.replace('/', " OR ").replace("  ", " "))
    }

    fn component(&self) -> Result<Value> {
        Ok(json!({
            "type": if self.source.is_some() { "library" } else { "application" },
            "bom-ref": self.url(),
            "name": self.name,
            "version": self.version,
            "purl": self.url(),
            "licenses": [{ "expression": self.license()? }],
        }))
    }

    fn texts(&self) -> Result<Vec<String>> {
        let folder = self.manifest_path.parent().context("a manifest is in a folder")?;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            if path.is_file() && TEXTS.iter().any(|start| name.starts_with(start)) {
                files.push(path);
            }
        }
        files.sort();
        files.iter().map(|file| read(file).map(|text| text.trim().replace("\r\n", "\n"))).collect()
    }
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn metadata(arch: Arch) -> Result<Metadata> {
    let arguments = ["metadata", "--locked", "--format-version", "1", "--filter-platform", arch.target()];
    serde_json::from_slice(&printed(&mut cargo(arguments))?).context("cargo metadata is not what we know")
}

/// Names and versions of what is linked in. `cargo metadata` gives every crate the features that any member of the workspace
/// asks for, and with them crates that a build of krunner alone does not have; and it does not tell macros apart.
fn tree(arch: Arch) -> Result<BTreeSet<(String, String)>> {
    let edges = ["tree", "--locked", "--package", "krunner", "--edges", "normal,no-proc-macro"];
    let form = ["--prefix", "none", "--format", "{p}", "--target", arch.target()];
    let told = printed(&mut cargo(edges.iter().chain(&form)))?;
    let text = String::from_utf8(told).context("cargo tree is not what we know")?;
    let named = text.lines().map(|line| {
        let mut words = line.split(' ');
        let version = |words: &mut std::str::Split<'_, char>| words.next()?.strip_prefix('v').map(str::to_owned);
        words
            .next()
            .map(str::to_owned)
            .zip(version(&mut words))
            .with_context(|| format!("cargo tree has a line {line:?}"))
    });
    named.collect()
}

fn checksums() -> Result<BTreeMap<(String, String), String>> {
    let lock: Lock = toml::from_str(&read(&root().join("Cargo.lock"))?).context("Cargo.lock is not what we know")?;
    let known = lock.package.into_iter().filter_map(|each| Some(((each.name, each.version), each.checksum?)));
    Ok(known.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_in_is_listed_and_what_only_builds_is_not() {
        let linked = Linked::find(&Arch::ALL).unwrap();
        let names: BTreeSet<&str> = linked.packages.values().map(|package| package.name.as_str()).collect();
        for name in ["krunner", "krunner-common", "aya", "tokio", "ring", "nix"] {
            assert!(names.contains(name), "{name}");
        }
        for name in ["cc", "proptest", "serde_derive", "syn", "aho-corasick", "krunner-tests", "windows-sys"] {
            assert!(!names.contains(name), "{name}");
        }
    }

    #[test]
    fn every_crate_has_its_checksum_its_licence_and_its_place_in_the_tree() {
        let bill = Linked::find(&Arch::ALL).unwrap().bill(&checksums().unwrap()).unwrap();
        let components = bill["components"].as_array().unwrap();
        for component in components {
            let is_ours = component["name"].as_str().unwrap().starts_with("krunner");
            assert!(is_ours || component["hashes"][0]["content"].as_str().unwrap().len() == 64, "{component}");
            assert!(!component["licenses"][0]["expression"].as_str().unwrap().is_empty(), "{component}");
        }
        assert_eq!(bill["dependencies"].as_array().unwrap().len(), components.len() + 1);
    }
}
