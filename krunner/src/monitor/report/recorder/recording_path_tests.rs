//! Files that may be in the folder of recordings.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::monitor::report::recorder::cause::EndCause;

fn header(nonce: u64) -> RecordingHeader {
    RecordingHeader { boot_id: "one".into(), nonce, ..RecordingHeader::default() }
}

fn now() -> CurrentState {
    CurrentState { boot_id: "one".into(), ..CurrentState::default() }
}

fn open_at(folder: &Path, nonce: u64) -> Result<Option<OpenedRecording>, RecordingPathError> {
    RecordingPath::of_session(folder.to_owned()).open(&header(nonce), &now())
}

fn opened(folder: &Path, nonce: u64) -> OpenedRecording {
    open_at(folder, nonce).unwrap().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn file_is_whole_and_the_owners_only() {
    let folder = tempfile::tempdir().unwrap();
    let opened = opened(folder.path(), 1);
    let about = fs::metadata(&opened.path).unwrap();
    assert_eq!((about.len(), about.permissions().mode() & 0o777), (256 * 1024, 0o600));
    assert!(about.blocks() * 512 >= about.len(), "all of it has room on the disk");
    assert_eq!(names(folder.path()), ["recorder.bin"]);
}

#[test]
fn recording_without_a_goodbye_is_reported_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    drop(opened(folder.path(), 1));
    let second = opened(folder.path(), 2);
    assert_eq!((second.ended.len(), second.problems.len()), (1, 0));
    assert_eq!(second.ended[0].cause, EndCause::Unknown);
    assert_eq!(names(folder.path()), ["recorder.bin", "recorder.bin.1"]);
    let (old, is_locked) = read_file(&folder.path().join("recorder.bin.1")).unwrap();
    assert_eq!((old.unwrap().header, is_locked), (header(1), false));
}

#[test]
fn recording_of_a_live_process_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let first = opened(folder.path(), 1);
    let second = opened(folder.path(), 2);
    assert!(second.ended.is_empty() && second.problems.is_empty());
    assert_eq!(names(folder.path()), ["recorder-2.bin", "recorder.bin"]);
    assert!(read_file(&first.path).unwrap().1 && read_file(&second.path).unwrap().1, "both are locked");
    drop(first);
    let third = opened(folder.path(), 3);
    assert_eq!((third.ended.len(), third.path), (1, folder.path().join("recorder.bin")));
}

#[test]
fn fresh_recording_of_another_boot_may_be_alive_on_another_machine() {
    let folder = tempfile::tempdir().unwrap();
    drop(opened(folder.path(), 1));
    let elsewhere = CurrentState { boot_id: "two".into(), ..CurrentState::default() };
    let place = RecordingPath::of_session(folder.path().to_owned());
    let second = place.open(&header(2), &elsewhere).unwrap().unwrap();
    assert_eq!((second.ended.len(), second.path), (0, folder.path().join("recorder-2.bin")));
}

#[test]
fn missing_folder_is_not_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    assert!(open_at(&folder.path().join("missing"), 1).unwrap().is_none());
}

#[test]
fn links_fifos_and_folders_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "mine").unwrap();
    symlink(&elsewhere, folder.path().join("recorder.bin")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("recorder-2.bin"), Mode::S_IRWXU).unwrap();
    fs::create_dir(folder.path().join("recorder-3.bin")).unwrap();

    let opened = opened(folder.path(), 1);

    assert_eq!(opened.path, folder.path().join("recorder-4.bin"));
    assert_eq!(opened.problems.len(), 3, "{:?}", opened.problems);
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "mine");
    for name in ["recorder.bin", "recorder-2.bin", "recorder-3.bin"] {
        assert!(read_file(&folder.path().join(name)).is_err(), "{name}");
    }
}

#[test]
fn foreign_file_is_renamed() {
    for (content, what) in [(&b""[..], "empty"), (b"KRUNNERR\x09\0\0\0", "version 9"), (b"mine", "not a recording")] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recorder.bin"), content).unwrap();
        let opened = opened(folder.path(), 1);
        assert!(opened.problems[0].contains(what), "{:?}", opened.problems);
        assert_eq!(fs::read(folder.path().join("recorder.bin.1")).unwrap(), content);
    }
}

#[test]
fn large_file_is_read_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = opened(folder.path(), 1).path;
    File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    assert_eq!(read_file(&path).unwrap().0.unwrap().header, header(1));
    let sparse = folder.path().join("sparse");
    File::create(&sparse).unwrap().set_len(1 << 30).unwrap();
    assert_eq!(read_file(&sparse).unwrap().0, Err(NotARecording::Foreign));
}

#[test]
fn read_only_folder_is_a_problem_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = RecordingPath::of_file(&folder.path().join("missing/a.bin")).unwrap();
    assert!(matches!(place.open(&header(1), &now()), Err(RecordingPathError::Io(..))));
    let proc = RecordingPath::of_file(Path::new("/proc/a.bin")).unwrap();
    assert!(matches!(proc.open(&header(1), &now()), Err(RecordingPathError::Io(..))));
}
