//! SHA-256 sums of all files of a folder, in the form of `sha256sum`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// The name of the file that has them.
pub(super) const NAME: &str = "SHA256SUMS";

/// A file and its sum.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sum {
    /// From the folder on.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// In hexadecimal digits.
    pub(super) sha256: String,
}

/// The sum of these bytes, in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Of all files in it, by path, less the file of sums itself.
pub(super) fn of(folder: &Path) -> Result<Vec<Sum>> {
    let mut sums = Vec::new();
    walk(folder, &mut |path| {
        let relative = path.strip_prefix(folder).context("below the folder")?;
        if relative != Path::new(NAME) {
            let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            sums.push(Sum { path: relative.to_owned(), bytes: content.len() as u64, sha256: sha256(&content) });
        }
        Ok(())
    })?;
    sums.sort();
    Ok(sums)
}

/// Writes the file of sums.
pub(super) fn write(folder: &Path) -> Result<()> {
    let lines: Vec<_> = of(folder)?.iter().map(|sum| format!("{}  {}\n", sum.sha256, sum.path.display())).collect();
    super::write(&folder.join(NAME), lines.concat().as_bytes(), 0o644)
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, visit)? } else { visit(&path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_its_line_but_the_sums_themselves() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), "abc").unwrap();
        fs::write(folder.path().join("c"), "").unwrap();
        write(folder.path()).unwrap();
        write(folder.path()).unwrap();
        // FIPS 180-2, appendix B.1; and the sum of nothing.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a/b\n\
                        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  c\n";
        assert_eq!(fs::read_to_string(folder.path().join(NAME)).unwrap(), expected);
    }
}
