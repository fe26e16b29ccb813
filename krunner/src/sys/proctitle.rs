//! The name that `ps` and `pkill -f` see.

use std::ffi::CString;
use std::io;

/// Replaces comm and the command line of this process by `title`, cut to the room there is.
///
/// The arguments have to be read before: their memory is what is overwritten. The kernel shows
/// `/proc/PID/cmdline` from the range `arg_start..arg_end` (`get_mm_cmdline`, fs/proc/base.c), whose
/// bounds are fields 48 and 49 of `/proc/PID/stat` (proc(5)).
///
/// # Errors
/// When `/proc/self/stat` cannot be read or hides the range; comm is set all the same.
pub fn set_process_title(title: &str) -> io::Result<()> {
    if let Ok(comm) = CString::new(title) {
        nix::sys::prctl::set_name(&comm)?;
    }
    let stat = procfs::process::Process::myself().and_then(|me| me.stat()).map_err(io::Error::other)?;
    let (Some(start), Some(end)) = (stat.arg_start, stat.arg_end) else {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    };
    let (start, end) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
    let room = end.saturating_sub(start);
    if start == 0 || room == 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    // The last byte stays NUL; another value would make the kernel read on into the environment.
    let shown = title.len().min(room - 1);
    let area = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: start..end is the argument area that the kernel laid out on our initial stack: mapped,
    // writable, ours. std's `args` reads it, so the caller has collected the arguments before.
    unsafe {
        std::ptr::copy_nonoverlapping(title.as_ptr(), area, shown);
        std::ptr::write_bytes(area.add(shown), 0, room - shown);
    }
    Ok(())
}
