//! Agents in each form, made of temporary folders: what is said of their runner.

use std::io::Write as _;

use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

const HASH: &str = "0123abcd";

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Packages of an agent with the Python runner.
fn packages(below: &Path) {
    let backend = below.join("ai/backend");
    write(&backend.join("agent/VERSION"), b"24.12.0\n");
    write(&backend.join("kernel/VERSION"), b"24.12.0\n");
    write(&backend.join("kernel/__main__.py"), b"");
}

fn with_krunner(below: &Path, mode: u32) {
    let kernel = below.join("ai/backend/kernel");
    write(&kernel.join("VERSION"), b"23.3.8+krunner.0.1.0\n");
    write(&kernel.join("krunner"), b"\x7fELF");
    fs::set_permissions(kernel.join("krunner"), fs::Permissions::from_mode(mode)).unwrap();
}

fn pex(shebang: &[u8]) -> Vec<u8> {
    let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file("PEX-INFO", SimpleFileOptions::default()).unwrap();
    archive.write_all(format!(r#"{{"pex_hash":"{HASH}"}}"#).as_bytes()).unwrap();
    [shebang, &archive.finish().unwrap().into_inner()].concat()
}

/// State and finding of a check; the folder's own name is left out.
fn found(agent: &Path, root: &Path, name: &str) -> (CheckState, String) {
    let checks = checks(agent, &PexRoots(vec![root.join("pex")]));
    let check = checks.iter().find(|check| check.check == name).unwrap_or_else(|| panic!("{name}: {checks:#?}"));
    (check.state, check.found.replace(&root.display().to_string(), "ROOT"))
}

#[test]
fn runner_of_a_virtual_environment_is_told() {
    let folder = TempDir::new().unwrap();
    let root = &folder.path().canonicalize().unwrap();
    let site = root.join("venv/lib/python3.12/site-packages");
    packages(&site);
    write(&root.join("venv/pyvenv.cfg"), b"");
    let script = root.join("venv/bin/backend.ai");
    write(&script, format!("#!{}/venv/bin/python\n", root.display()).as_bytes());
    let kernel = "ROOT/venv/lib/python3.12/site-packages/ai/backend/kernel";
    for named in [&script, &root.join("venv"), &site, &site.join("ai"), &site.join("ai/backend/kernel")] {
        let python = found(named, root, "agent-runner");
        assert_eq!(
            python,
            (CheckState::Missing, format!("{kernel}: the Python runner 24.12.0")),
            "{}",
            named.display()
        );
    }
    assert_eq!(
        found(&script, root, "agent-files"),
        (CheckState::Ok, "a script of ROOT/venv, agent 24.12.0".to_owned())
    );

    with_krunner(&site, 0o755);
    assert_eq!(
        found(&script, root, "agent-runner"),
        (CheckState::Ok, format!("{kernel}: krunner (23.3.8+krunner.0.1.0)"))
    );
    let capabilities = found(&script, root, "agent-capabilities");
    assert_eq!(capabilities.0, CheckState::Missing);
    assert!(capabilities.1.starts_with("no capabilities: "), "{}", capabilities.1);
    with_krunner(&site, 0o644);
    let broken = found(&script, root, "agent-runner");
    assert_eq!(broken, (CheckState::Missing, format!("{kernel}: krunner, but not executable")));
}

#[test]
fn pex_file_is_known_by_where_it_unpacked_itself() {
    let folder = TempDir::new().unwrap();
    let root = &folder.path().canonicalize().unwrap();
    let agent = root.join("agent.pex");
    write(&agent, &pex(b"#!/usr/bin/env python3.11\n"));
    let (state, text) = found(&agent, root, "agent-files");
    assert_eq!((state, text.contains("ai/backend/kernel not found")), (CheckState::Missing, true), "{text}");

    packages(&root.join("pex/unzipped_pexes/4").join(HASH));
    packages(&root.join("pex/unzipped_pexes/4/fedcba"));
    let runner = found(&agent, root, "agent-runner");
    assert_eq!(
        runner,
        (CheckState::Missing, format!("ROOT/pex/unzipped_pexes/4/{HASH}/ai/backend/kernel: the Python runner 24.12.0"))
    );
    let old = root.join("pex/venvs").join(HASH).join("contents/lib/python3.11/site-packages");
    packages(&old);
    with_krunner(&old, 0o755);
    let checks = checks(&agent, &PexRoots(vec![root.join("pex")]));
    let runners: Vec<_> =
        checks.iter().filter(|check| check.check == "agent-runner").map(|check| check.state).collect();
    assert_eq!(runners, [CheckState::Ok], "a PEX file that makes virtual environments runs from there");
}

#[test]
fn scie_file_carries_a_pex() {
    let folder = TempDir::new().unwrap();
    let root = &folder.path().canonicalize().unwrap();
    let agent = root.join("agent");
    let other = {
        let mut other = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        other.start_file("x", SimpleFileOptions::default()).unwrap();
        other.finish().unwrap().into_inner()
    };
    write(&agent, &[&b"\x7fELF jump"[..], &other, &pex(b"#!/usr/bin/env python3\n"), b"{\"scie\":{}}"].concat());
    packages(&root.join("pex/unzipped_pexes").join(HASH));
    assert_eq!(found(&agent, root, "agent-runner").0, CheckState::Missing);
    assert!(found(&agent, root, "agent-files").1.starts_with("a scie file"));
}

#[test]
fn what_is_no_agent_is_named() {
    let folder = TempDir::new().unwrap();
    let root = &folder.path().canonicalize().unwrap();
    write(&root.join("program"), b"\x7fELF nothing else");
    write(&root.join("script"), b"#!/bin/sh\n");
    for (name, expected) in [
        ("nowhere", "ROOT/nowhere: No such file or directory (os error 2)"),
        ("program", "ROOT/program is an executable without an embedded PEX file"),
        ("script", "ROOT/script is neither a script of a virtual environment nor a PEX or scie file"),
        ("", "a folder: ai/backend/kernel not found"),
    ] {
        assert_eq!(found(&root.join(name), root, "agent-files"), (CheckState::Missing, expected.to_owned()));
    }
}
