//! Builds the replacement of the Python package `ai.backend.kernel`: a folder that the agent mounts into containers, and a
//! wheel that installs that folder where the agent looks for it.
//!
//! The agent requires exactly the package version that it was released with. Ours is a local version of it (PEP 440),
//! which satisfies the requirement and identifies krunner.

use std::io::{Cursor, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::musl::Arch;
use crate::workspace::root;

/// The version of the package that it replaces.
const REPLACED: &str = "23.3.8";

/// The path of the package below `site-packages`.
const PACKAGE: &str = "ai/backend/kernel";

/// A file of the package.
struct File {
    path: String,
    content: Vec<u8>,
    mode: u32,
}

/// Writes folder and wheel around that binary.
pub(super) fn write(krunner: &Path, arch: Arch, into: &Path) -> Result<()> {
    let files = files(krunner)?;
    for file in &files {
        super::write(&into.join(arch.name()).join(&file.path), &file.content, file.mode)?;
    }
    let tag = format!("py3-none-linux_{}", arch.name());
    let wheel = wheel(files, &tag)?;
    super::write(&into.join(format!("backend_ai_kernel-{}-{tag}.whl", version())), &wheel, 0o644)
}

fn version() -> String {
    format!("{REPLACED}+krunner.{}", env!("CARGO_PKG_VERSION"))
}

fn files(krunner: &Path) -> Result<Vec<File>> {
    let sources = root().join("krunner/dist/agent");
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let file = |name: &str, content, mode| File { path: format!("{PACKAGE}/{name}"), content, mode };
    Ok(vec![
        file("VERSION", format!("{}\n", version()).into_bytes(), 0o644),
        file("__init__.py", read(&sources.join("__init__.py"))?, 0o644),
        file("__main__.py", read(&sources.join("__main__.py"))?, 0o644),
        file("krunner", read(krunner)?, 0o755),
    ])
}

/// A wheel (packaging.python.org, "Binary distribution format"). The same files give the same bytes.
fn wheel(mut files: Vec<File>, tag: &str) -> Result<Vec<u8>> {
    let version = version();
    let folder = format!("backend_ai_kernel-{version}.dist-info");
    let metadata = format!(
        "Metadata-Version: 2.1\nName: backend.ai-kernel\nVersion: {version}\n\
         Summary: krunner, in the place of Backend.AI's kernel runner {REPLACED}\nLicense: MIT OR Apache-2.0\n"
    );
    let form = format!("Wheel-Version: 1.0\nGenerator: cargo xtask dist\nRoot-Is-Purelib: true\nTag: {tag}\n");
    for (name, content) in [("METADATA", metadata), ("WHEEL", form)] {
        files.push(File { path: format!("{folder}/{name}"), content: content.into_bytes(), mode: 0o644 });
    }
    let record = format!("{folder}/RECORD");
    let lines: Vec<_> = files.iter().map(File::recorded).collect();
    files.push(File { content: format!("{}{record},,\n", lines.concat()).into_bytes(), path: record, mode: 0o644 });

    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for file in &files {
        // The default time is constant, the format's earliest (1980).
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        archive.start_file(&file.path, options.unix_permissions(file.mode)).context("cannot write the wheel")?;
        archive.write_all(&file.content)?;
    }
    Ok(archive.finish().context("cannot write the wheel")?.into_inner())
}

impl File {
    /// The file's line in `RECORD`.
    fn recorded(&self) -> String {
        let sum = URL_SAFE_NO_PAD.encode(Sha256::digest(&self.content));
        format!("{},sha256={sum},{}\n", self.path, self.content.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn made() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("krunner");
        std::fs::write(&binary, "a program").unwrap();
        wheel(files(&binary).unwrap(), "py3-none-linux_x86_64").unwrap()
    }

    #[test]
    fn the_same_files_make_the_same_wheel() {
        assert_eq!(made(), made());
    }

    #[test]
    fn a_wheel_records_every_file_and_keeps_the_program_executable() {
        let mut archive = zip::ZipArchive::new(Cursor::new(made())).unwrap();
        let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
        let mut record = String::new();
        let folder = format!("backend_ai_kernel-{}.dist-info", version());
        archive.by_name(&format!("{folder}/RECORD")).unwrap().read_to_string(&mut record).unwrap();
        assert_eq!(record.lines().count(), names.len());
        assert!(names.iter().all(|name| record.lines().any(|line| line.starts_with(&format!("{name},")))), "{record}");
        // `printf 'a program' | openssl dgst -sha256 -binary | basenc --base64url`
        assert!(record.contains("/krunner,sha256=1p6ozaJDNzPBzgLeZdqPSOaj27prsYh2ogYpCOVO98s,9\n"), "{record}");
        let program = archive.by_name("ai/backend/kernel/krunner").unwrap();
        assert_eq!(program.unix_mode().unwrap() & 0o777, 0o755);
    }
}
