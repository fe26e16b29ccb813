//! Why a program did not start: which file or folder the kernel's error is about.
//!
//! `execve` fails with ENOENT if the interpreter of a script or the loader of a program is missing, and with EACCES if
//! a directory cannot be entered (execve(2)). `execvp` fails with EACCES if a name was not found and a directory of
//! `PATH` could not be searched (exec(3)). This code runs only after a failed start.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// How much of a script's first line the kernel reads (`BINPRM_BUF_SIZE`).
const FIRST_LINE_BYTES: u64 = 256;

/// Another file that a program needs in order to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExecInterpreter {
    /// The interpreter of a script, as its first line names it.
    Script(OsString),
    /// The dynamic loader of an ELF program.
    Loader,
}

/// Whether this user may execute the file.
#[must_use]
pub(crate) fn is_executable(file: &Path) -> bool {
    access(file, AccessFlags::X_OK).is_ok()
}

/// The result of looking up a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The path of the program.
    Found(PathBuf),
    /// No directory has the program; `closed` could not be searched.
    Missing { closed: Vec<PathBuf> },
}

/// Looks up a program as `execvp` does; `directory` is its requested working directory.
pub(super) fn look_up(program: &OsStr, path: Option<&OsStr>, directory: Option<&Path>) -> Lookup {
    let in_directory = |path: PathBuf| directory.map_or_else(|| path.clone(), |directory| directory.join(&path));
    if program.as_bytes().contains(&b'/') {
        let file = in_directory(program.into());
        return if file.is_file() { Lookup::Found(file) } else { Lookup::Missing { closed: Vec::new() } };
    }
    let mut closed = Vec::new();
    for folder in std::env::split_paths(path.unwrap_or_default()).map(in_directory) {
        match fs::metadata(folder.join(program)) {
            Ok(data) if data.is_file() => return Lookup::Found(folder.join(program)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => closed.push(folder),
            _ => {}
        }
    }
    Lookup::Missing { closed }
}

/// The interpreter or loader that the kernel must find to execute the file.
pub(super) fn interpreter(file: &Path) -> Option<ExecInterpreter> {
    // Opening a FIFO would wait for a writer.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file).ok()?;
    let mut start = Vec::new();
    file.take(FIRST_LINE_BYTES).read_to_end(&mut start).ok()?;
    interpreter_in(&start)
}

fn interpreter_in(start: &[u8]) -> Option<ExecInterpreter> {
    if start.starts_with(b"\x7fELF") {
        return Some(ExecInterpreter::Loader);
    }
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let name = line.split(is_blank).find(|word| !word.is_empty())?;
    Some(ExecInterpreter::Script(OsString::from_vec(name.to_vec())))
}

/// An interpreter name ends in a carriage return if the script has DOS line endings.
pub(super) fn without_carriage_return(name: &OsStr) -> Option<&OsStr> {
    name.as_bytes().strip_suffix(b"\r").map(OsStr::from_bytes)
}

/// Checks that a process could have this directory as its working directory.
///
/// # Errors
/// The OS error, if it could not.
pub(crate) fn enter(folder: &Path) -> io::Result<()> {
    if !fs::metadata(folder)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(access(folder, AccessFlags::X_OK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_first_line_names_the_interpreter() {
        let script = |name: &str| Some(ExecInterpreter::Script(name.into()));
        assert_eq!(interpreter_in(b"#!/bin/bash\r\necho\r\n"), script("/bin/bash\r"));
        assert_eq!(interpreter_in(b"#! /usr/bin/env python\n"), script("/usr/bin/env"));
        assert_eq!(interpreter_in(b"#!/bin/sh"), script("/bin/sh"));
        assert_eq!(interpreter_in(b"\x7fELF\x02"), Some(ExecInterpreter::Loader));
        assert_eq!(interpreter_in(b"echo\n"), None);
        assert_eq!(interpreter_in(b"#!\n"), None);
        assert_eq!(without_carriage_return(OsStr::new("/bin/bash\r")), Some(OsStr::new("/bin/bash")));
        assert_eq!(without_carriage_return(OsStr::new("/bin/bash")), None);
    }

    #[test]
    fn a_program_is_looked_for_where_the_kernel_does() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("bin");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("tool"), "").unwrap();
        let path = std::env::join_paths([root.path(), &folder]).unwrap();
        let found = Lookup::Found(folder.join("tool"));
        assert_eq!(look_up(OsStr::new("tool"), Some(&path), None), found);
        assert_eq!(look_up(OsStr::new("./tool"), None, Some(&folder)), Lookup::Found(folder.join("./tool")));
        let missing = Lookup::Missing { closed: Vec::new() };
        assert_eq!(look_up(OsStr::new("other"), Some(&path), None), missing);
        assert_eq!(look_up(OsStr::new("bin"), Some(&path), None), missing, "a folder is no program");
    }

    #[test]
    fn a_folder_says_itself_why_it_cannot_be_entered() {
        let root = tempfile::tempdir().unwrap();
        let kind = |folder: &Path| enter(folder).map_err(|error| error.kind());
        assert_eq!(kind(root.path()), Ok(()));
        assert_eq!(kind(&root.path().join("none")), Err(io::ErrorKind::NotFound));
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(kind(&file), Err(io::ErrorKind::NotADirectory));
        if !nix::unistd::geteuid().is_root() {
            let closed = root.path().join("closed");
            fs::create_dir(&closed).unwrap();
            fs::set_permissions(&closed, Permissions::from_mode(0o600)).unwrap();
            assert_eq!(kind(&closed), Err(io::ErrorKind::PermissionDenied));
        }
    }
}
