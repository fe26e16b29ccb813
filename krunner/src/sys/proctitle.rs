//! The name that `ps` and `pkill -f` see.

use std::ffi::CString;
use std::io;
use std::sync::OnceLock;

use procfs::process::Stat;

/// Size of the buffer for a title that does not fit over the arguments; longer than any title of krunner.
const ROOM_BYTES: usize = 64;

/// The title, where the kernel reads it from once the argument range was moved. Set once. On the heap, because only anonymous
/// memory is shown (`FOLL_ANON` in `get_mm_cmdline`), which the program's own statics are not.
static SHOWN_TITLE: OnceLock<Box<[u8; ROOM_BYTES]>> = OnceLock::new();

/// Replaces comm and the command line of this process by `title`, truncated to the available space.
///
/// The kernel shows `/proc/PID/cmdline` from the range `arg_start..arg_end` (`get_mm_cmdline`, fs/proc/base.c), whose
/// bounds are fields 48 and 49 of `/proc/PID/stat` (proc(5)). If the title fits, it is written over the arguments,
/// which must have been read before. If not, the range is moved to memory of our own; the environment behind the
/// arguments is unchanged, for [`initial_environment`](super::initial_environment) and `/proc/PID/environ`.
///
/// Call while the process has one thread: moving the range passes the current end of the heap back to the kernel.
///
/// # Errors
/// If `/proc/self/stat` cannot be read or hides the range; comm is set anyway. If the range cannot be moved (a
///   kernel without `CONFIG_CHECKPOINT_RESTORE`); as much of the title as fits is written anyway.
pub(crate) fn set_process_title(title: &str) -> io::Result<()> {
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
    if shown < title.len() { move_arguments(title, &stat) } else { Ok(()) }
}

/// Makes the kernel show the arguments from a copy of `title`.
fn move_arguments(title: &str, stat: &Stat) -> io::Result<()> {
    let hidden = || io::Error::from(io::ErrorKind::PermissionDenied);
    let shown = title.len().min(ROOM_BYTES - 1);
    let area = SHOWN_TITLE.get_or_init(|| {
        let mut area = Box::new([0; ROOM_BYTES]);
        area[..shown].copy_from_slice(&title.as_bytes()[..shown]);
        area
    });
    let arg_start = area.as_ptr().expose_provenance() as u64;
    // SAFETY: sbrk(0) only tells where the heap ends.
    let brk = unsafe { libc::sbrk(0) }.expose_provenance() as u64;
    let map = MemoryMap {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: stat.start_data.ok_or_else(hidden)?,
        end_data: stat.end_data.ok_or_else(hidden)?,
        start_brk: stat.start_brk.ok_or_else(hidden)?,
        brk,
        start_stack: stat.startstack,
        arg_start,
        arg_end: arg_start + shown as u64 + 1,
        env_start: stat.env_start.ok_or_else(hidden)?,
        env_end: stat.env_end.ok_or_else(hidden)?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    let size = size_of::<MemoryMap>();
    // SAFETY: `map` is as large as we say and is only read. It describes the memory of this process as it is, but for the
    // arguments, which lie in memory that a static keeps. Without an auxv and a file those two stay as they are.
    let result = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct prctl_mm_map` (include/uapi/linux/prctl.h). Setting all of it at once needs no capability, unlike the fields one by
/// one (`prctl_set_mm`, kernel/sys.c).
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    /// A pointer; 64 bits on every architecture that krunner is built for.
    auxv: u64,
    auxv_size: u32,
    /// -1 leaves `/proc/PID/exe` alone.
    exe_fd: u32,
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};
    use std::{env, fs};

    use super::*;

    /// Set in the process whose arguments are replaced.
    const INNER: &str = "KRUNNER_TEST_TITLE";
    const NAME: &str = "sys::proctitle::tests::a_title_without_room_is_shown_whole_and_the_environment_stays";
    const TITLE: &str = "backend.ai: kernel runner";

    fn replace_ours() {
        let own = |file: &str| fs::read(format!("/proc/self/{file}")).unwrap();
        let environment = own("environ");
        let stat = procfs::process::Process::myself().unwrap().stat().unwrap();
        move_arguments(TITLE, &stat).unwrap();
        assert_eq!(own("cmdline"), format!("{TITLE}\0").as_bytes());
        assert_eq!(own("environ"), environment);
        // The heap still grows, and programs start.
        assert_eq!(vec![1_u8; 8 << 20].len(), 8 << 20);
        assert!(Command::new("true").status().unwrap().success());
    }

    #[test]
    fn a_title_without_room_is_shown_whole_and_the_environment_stays() {
        if env::var_os(INNER).is_some() {
            replace_ours();
            #[expect(clippy::disallowed_methods, reason = "the end of a forked child")]
            process::exit(0);
        }
        let mut inner = Command::new(env::current_exe().unwrap());
        let status = inner.args(["--exact", NAME]).env(INNER, "1").status().unwrap();
        assert!(status.success(), "{status}");
    }
}
