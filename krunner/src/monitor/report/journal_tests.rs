//! Journals in temporary folders.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn add(folder: &Path, text: &str) -> io::Result<()> {
    append(&JournalPath::in_folder(folder.to_owned()), text, 8)
}

#[test]
fn lines_are_added_for_the_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    add(folder.path(), "1\n").unwrap();
    add(folder.path(), "2\n").unwrap();
    let path = folder.path().join(SESSION_FILE);
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn missing_folder_is_an_error_and_not_created() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_eq!(add(&missing, "1\n").unwrap_err().to_string(), "the folder does not exist");
    assert!(!missing.exists());
}

#[test]
fn a_full_journal_is_renamed() {
    let folder = tempfile::tempdir().unwrap();
    for line in ["first--\n", "second-\n", "third--\n"] {
        add(folder.path(), line).unwrap();
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!((read("oom.jsonl").as_str(), read("oom.jsonl.1").as_str()), ("third--\n", "second-\n"));
}

#[test]
fn truncated_line_does_not_corrupt_the_next() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(SESSION_FILE), "{\"ev").unwrap();
    add(folder.path(), "2\n").unwrap();
    assert_eq!(fs::read_to_string(folder.path().join(SESSION_FILE)).unwrap(), "{\"ev\n2\n");
}

#[test]
fn links_and_special_files_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    symlink(&elsewhere, folder.path().join(SESSION_FILE)).unwrap();
    assert!(add(folder.path(), "1\n").is_err());
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "");

    let other = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&other.path().join(SESSION_FILE), Mode::S_IRWXU).unwrap();
    assert!(add(other.path(), "1\n").is_err(), "a FIFO without a reader");
    assert!(JournalPath::of_file(&other.path().join(SESSION_FILE)).is_err());
}

#[test]
fn given_file_is_created_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kills.jsonl");
    JournalPath::of_file(&file).unwrap();
    assert!(file.is_file());
    assert!(JournalPath::of_file(&folder.path().join("missing/kills.jsonl")).is_err());
    assert!(JournalPath::of_file(folder.path()).is_err(), "a folder");
}
