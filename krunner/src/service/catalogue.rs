//! The definitions of an image: a directory of files, read once.
//!
//! A file that cannot be used is reported and skipped. Reading takes bounded memory, and never blocks on a named pipe
//! without a writer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::definition::{Definition, DefinitionError};
use crate::error::chain;

/// Limit of one file, hundreds of times the largest known definition.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Limit of all files together.
const MAX_TOTAL_BYTES: u64 = 16 * 1024 * 1024;

/// The usable definitions, and the problems of the others.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Catalogue {
    /// Definitions by service name.
    pub services: BTreeMap<String, Definition>,
    /// Problems by service name; the text names the file.
    pub problems: BTreeMap<String, String>,
}

impl Catalogue {
    /// Reads all `NAME.json` files of a directory, which need not exist.
    #[must_use]
    pub(crate) fn load(folder: &Path) -> Self {
        let mut catalogue = Self::default();
        let mut room = MAX_TOTAL_BYTES;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return catalogue,
            Err(error) => {
                catalogue
                    .problems
                    .insert(String::new(), format!("{}: {error}; no services are available", folder.display()));
                return catalogue;
            }
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        for path in paths {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let read = read(&path, room).and_then(|text| {
                room -= text.len() as u64;
                Ok(Definition::parse(&text)?)
            });
            match read {
                Ok(definition) => _ = catalogue.services.insert(name, definition),
                Err(error) => {
                    catalogue.problems.insert(name, format!("{}: {}", path.display(), chain(&error)));
                }
            }
        }
        catalogue
    }
}

/// Why a file is skipped.
#[derive(Debug, thiserror::Error)]
enum SkipReason {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// A directory has the name of a definition.
    #[error("a directory, not a file")]
    Directory,
    /// Reading could block or never end.
    #[error("a device or a pipe, not a file")]
    Device,
    /// It is larger than any definition.
    #[error("larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// The files before it left too little room.
    #[error("all definitions together are larger than {MAX_TOTAL_BYTES} bytes")]
    TotalTooLarge,
    /// Its text is no valid definition.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
}

fn read(path: &Path, room: u64) -> Result<Vec<u8>, SkipReason> {
    let mut file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        return Err(if kind.is_dir() { SkipReason::Directory } else { SkipReason::Device });
    }
    let limit = MAX_FILE_BYTES.min(room);
    let mut text = Vec::new();
    file.by_ref().take(limit + 1).read_to_end(&mut text)?;
    if text.len() as u64 > limit {
        return Err(if limit < MAX_FILE_BYTES { SkipReason::TotalTooLarge } else { SkipReason::TooLarge });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usable_is_used_and_the_rest_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        put("good.json", r#"{"command": ["x"]}"#);
        put("bad.json", r#"{"command": ["x"], "odd": 1}"#);
        put("broken.json", "{");
        put("readme.txt", "no definition");
        fs::create_dir(folder.path().join("folder.json")).unwrap();
        File::create(folder.path().join("huge.json")).unwrap().set_len(100 * 1024 * 1024).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("link.json")).unwrap();
        let catalogue = Catalogue::load(folder.path());
        assert_eq!(catalogue.services.keys().collect::<Vec<_>>(), ["good"]);
        let problem = |name: &str| catalogue.problems[name].replace(&folder.path().display().to_string(), "");
        assert!(problem("bad").starts_with("/bad.json: unknown field `odd`"), "{}", problem("bad"));
        assert!(problem("broken").starts_with("/broken.json: EOF while parsing"));
        assert_eq!(problem("folder"), "/folder.json: a directory, not a file");
        assert_eq!(problem("huge"), "/huge.json: larger than 1048576 bytes");
        assert_eq!(problem("pipe"), "/pipe.json: a device or a pipe, not a file");
        assert!(problem("link").starts_with("/link.json: No such file"));
        assert_eq!(catalogue.problems.len(), 6);
        assert_eq!(Catalogue::load(&folder.path().join("nothing")), Catalogue::default());
        let no_room = read(&folder.path().join("good.json"), 1).unwrap_err();
        assert_eq!(chain(&no_room), "all definitions together are larger than 16777216 bytes");
    }
}
