//! Fuzz targets of `/proc/PID/stat` and `/proc/PID/cmdline`.

use std::io::Cursor;

use procfs::FromRead as _;

use super::Stat;
use super::mounts::tmpfs_mounts;
use super::view::sees_hidden;
use crate::monitor::model::process::Cmdline;

/// The fields are the ones that the `procfs` crate reads.
pub(crate) fn stat(line: &[u8]) {
    let parsed = Stat::parse(line);
    if let Some((comm, stat)) = parsed {
        assert!(comm.len() < line.len());
        for is_ours in [false, true] {
            let _ = stat.end(is_ours);
        }
        assert!(stat.terminal().is_none() || stat.tty_nr != 0);
        assert!(!stat.is_zombie() || stat.has_ended);
    }
    // The crate panics at a line that ends too early, at one without a pid, and at a character of several bytes where a blank
    // should be.
    let has_pid = str::from_utf8(line).is_ok_and(|text| !text.trim_start().starts_with('('));
    if parsed.is_none() || !line.is_ascii() || !has_pid {
        return;
    }
    // What the kernel writes behind the name; the crate takes any white space for a blank, and `+1` for a number.
    let behind_name = line.trim_ascii_end().rsplit(|byte| *byte == b')').next().unwrap_or_default();
    let is_of_kernel = behind_name.iter().all(|byte| byte.is_ascii_alphanumeric() || b" -".contains(byte));
    let Ok(theirs) = procfs::process::Stat::from_read(Cursor::new(line)) else { return };
    let (Some((comm, ours)), true) = (parsed, is_of_kernel) else { return };
    assert_eq!(str::from_utf8(comm), Ok(theirs.comm.as_str()));
    assert_eq!((i64::from(ours.parent_pid), ours.threads), (theirs.ppid.into(), theirs.num_threads.cast_unsigned()));
    assert_eq!((ours.start_ticks, ours.vm_bytes, ours.rss_pages), (theirs.starttime, theirs.vsize, theirs.rss));
    // A state is a letter (`task_state_array`, fs/proc/array.c). Of a word, the crate takes the first one.
    if behind_name.get(2).is_some_and(u8::is_ascii_whitespace) {
        assert_eq!(ours.has_ended, matches!(theirs.state, 'Z' | 'X'));
    }
}

/// A command line is shown in one line that no terminal acts on.
pub(crate) fn cmdline(bytes: &[u8]) {
    let text = Cmdline { bytes: bytes.to_vec(), is_cut: false }.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() <= bytes.len() * 8);
    let again = Cmdline { bytes: text.clone().into_bytes(), is_cut: false }.to_string();
    assert_eq!(again, text.trim_end_matches(' '));
    let _ = str::from_utf8(bytes).is_ok_and(|status| sees_hidden("invisible", 0, status));
}

/// Mounts in a report are few, and their paths are from the text.
pub(crate) fn tmpfs(mountinfo: &str) {
    let mounts = tmpfs_mounts(mountinfo);
    assert!(mounts.len() <= 64 && mounts.iter().map(String::len).sum::<usize>() <= mountinfo.len());
}
