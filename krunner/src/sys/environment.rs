//! The environment as passed by our parent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::{io, slice};

/// The environment that this process was started with, `LD_PRELOAD` and its like included.
///
/// If the executable has file capabilities, glibc removes those names before `main` (`__libc_enable_secure`, elf/rtld.c
/// and its `unsecure-envvars.h`). It removes pointers; the text stays on the initial stack, whose bounds are fields 50
/// and 51 of `/proc/PID/stat` (proc(5)). `/proc/self/environ` would show the same, and is not readable for such a
/// program.
///
/// Our own process does not use these variables. Children do, because they have no such capabilities.
///
/// # Errors
/// If `/proc/self/stat` cannot be read or hides the range.
pub(crate) fn initial_environment() -> io::Result<Vec<(OsString, OsString)>> {
    let stat = procfs::process::Process::myself().and_then(|me| me.stat()).map_err(io::Error::other)?;
    let (Some(start), Some(end)) = (stat.env_start, stat.env_end) else {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    };
    let (start, end) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
    if start == 0 || end < start {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let area = std::ptr::with_exposed_provenance::<u8>(start);
    // SAFETY: start..end is the environment area that the kernel laid out on our initial stack: mapped and
    // readable as long as the process lives. Nothing here writes to it: std's `set_var` keeps copies elsewhere,
    // and `set_process_title` leaves it alone. The bytes are copied before this returns.
    let text = unsafe { slice::from_raw_parts(area, end - start) }.to_vec();
    Ok(variables(&text))
}

/// `K=V` strings, each ended by NUL. As std has it, a `=` in front belongs to the name.
fn variables(text: &[u8]) -> Vec<(OsString, OsString)> {
    let entries = text.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    let pairs = entries.filter_map(|entry| {
        let at = entry.iter().skip(1).position(|byte| *byte == b'=')? + 1;
        Some((OsString::from_vec(entry[..at].to_vec()), OsString::from_vec(entry[at + 1..].to_vec())))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    #[test]
    fn nothing_is_missing_that_the_process_was_started_with() {
        let initial = initial_environment().unwrap();
        assert!(!initial.is_empty());
        // Cargo's own, which no test changes.
        let name = OsString::from("CARGO_MANIFEST_DIR");
        assert_eq!(initial.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value), env::var_os(&name));
    }

    #[test]
    fn odd_entries_are_read_as_std_does() {
        let pair = |key: &str, value: &str| (OsString::from(key), OsString::from(value));
        assert_eq!(
            variables(b"A=1\0=B=2\0none\0\0C=\0D=x=y\0"),
            [pair("A", "1"), pair("=B", "2"), pair("C", ""), pair("D", "x=y")]
        );
    }
}
