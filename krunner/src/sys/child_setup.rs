//! `oom_score_adj` of this process, and of a child between fork and exec.
//!
//! The value belongs to the process and is inherited by fork. Facts from the kernel (`__set_oom_adj`, fs/proc/base.c):
//!
//! - Anyone may raise their own value, and lower it again down to the lowest that was ever set with `CAP_SYS_RESOURCE`. That floor
//!   is inherited too: a child of a runner that lowered itself through `oom_score_adj` could do the same without any
//!   capability. The older file `oom_adj` leaves the floor alone, so it is what [`never_kill_this_process`] writes.
//! - The files of a process that is not dumpable belong to root. A runner with file capabilities is one (see
//!   `privilege`). It may be dumpable for the duration of one write while it still has its capabilities: a process
//!   without them may not trace it (`cap_ptrace_access_check`, `security/commoncap.c`).
//! - A forked child of such a runner is not dumpable either until its exec makes it so. It makes itself dumpable a moment
//!   earlier, and closes everything but pipes first. What another process of the same user could take from it then is output of
//!   that user's own programs, and what the runner's memory holds of their session: no descriptor of BPF, no capability.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use caps::{CapSet, Capability};

const OWN_VALUE: &CStr = c"/proc/self/oom_score_adj";

/// The older file: -17 there is -1000 (`OOM_DISABLE`, include/uapi/linux/oom.h).
const OWN_OLDER_VALUE: &str = "/proc/self/oom_adj";
const OLDER_NEVER: &[u8] = b"-17";

/// The `oom_score_adj` of this process.
///
/// # Errors
/// If `/proc` cannot be read.
pub(crate) fn oom_score_adj() -> io::Result<i16> {
    let text = fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(io::Error::other)
}

/// Exempts this process from the OOM killer if `CAP_SYS_RESOURCE` is permitted; returns whether it is. Children must be
/// given another value; their floor is unchanged.
///
/// # Errors
/// If the kernel refuses, or no longer has `oom_adj`.
pub(crate) fn never_kill_this_process() -> io::Result<bool> {
    let is_permitted =
        caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_RESOURCE).map_err(io::Error::other)?;
    if !is_permitted {
        return Ok(false);
    }
    let was_effective =
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).map_err(io::Error::other)?;
    let was_dumpable = is_dumpable();
    caps::raise(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).map_err(io::Error::other)?;
    nix::sys::prctl::set_dumpable(true)?;
    let written =
        fs::File::options().write(true).open(OWN_OLDER_VALUE).and_then(|mut file| file.write_all(OLDER_NEVER));
    nix::sys::prctl::set_dumpable(was_dumpable)?;
    if !was_effective {
        caps::drop(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).map_err(io::Error::other)?;
    }
    written.map(|()| true)
}

/// Makes the program start with this value. With `is_required` the spawn fails if the value cannot be set.
pub(crate) fn start_with_oom_score_adj(command: &mut Command, value: i16, is_required: bool) {
    let text = value.to_string();
    let set_up = move || {
        let is_set = become_dumpable().and_then(|()| write_once(OWN_VALUE, text.as_bytes()));
        if is_required { is_set } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes system calls on values that were made before, and allocates nothing.
    unsafe { command.pre_exec(set_up) };
}

/// Makes the child write its pid to a pipe before it executes the program.
pub(crate) fn report_pid(command: &mut Command, mut pipe: io::PipeWriter) {
    let report = move || {
        // The reader may be gone.
        let _ = pipe.write_all(&std::process::id().to_ne_bytes());
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls on a value that was made before, and allocates nothing.
    unsafe { command.pre_exec(report) };
}

/// Makes the program start in this directory. Unlike [`Command::current_dir`], after what was registered before.
///
/// # Errors
/// If the path has a NUL.
pub(crate) fn start_in(command: &mut Command, directory: &Path) -> io::Result<()> {
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: a path with its NUL.
    let enter = move || check(unsafe { libc::chdir(directory.as_ptr()) });
    // SAFETY: between fork and exec the closure makes a system call on a value that was made before, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Whether other processes of the same user may trace us; 2 (`fs.suid_dumpable`) allows only root.
fn is_dumpable() -> bool {
    // SAFETY: PR_GET_DUMPABLE takes no argument and returns the value (prctl(2)).
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
}

/// Makes a forked child dumpable if its parent is not.
fn become_dumpable() -> io::Result<()> {
    if is_dumpable() {
        return Ok(());
    }
    close_all_but_pipes()?;
    // SAFETY: PR_SET_DUMPABLE takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })
}

/// Closes every descriptor above stderr that is neither a pipe, as the child's output is, nor a sequenced-packet socket,
/// through which std reports a failed exec (a pipe in older versions). krunner has no other such socket. Does not
/// allocate.
fn close_all_but_pipes() -> io::Result<()> {
    /// The names of some 40 descriptors at a time.
    const LISTING_BYTES: usize = 1024;
    /// Where the name is in a `linux_dirent64` (getdents(2)): behind inode, offset, length and type.
    const NAME: usize = 19;
    /// Where its length is.
    const LENGTH: usize = 16;
    // SAFETY: a path with its NUL; the descriptor is ours alone.
    let folder = unsafe { libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    check(folder)?;
    let mut listing = [0_u8; LISTING_BYTES];
    loop {
        // SAFETY: the kernel writes at most the length that is given, to the array of that length.
        let length = unsafe { libc::syscall(libc::SYS_getdents64, folder, listing.as_mut_ptr(), LISTING_BYTES) };
        let Ok(length @ 1..) = usize::try_from(length) else { break };
        let mut entry = 0;
        while entry + NAME < length {
            let bytes = usize::from(u16::from_ne_bytes([listing[entry + LENGTH], listing[entry + LENGTH + 1]]));
            let digits = listing[entry + NAME..length].iter().take_while(|byte| byte.is_ascii_digit());
            let descriptor = digits.fold(0, |number: i32, digit| number * 10 + i32::from(digit - b'0'));
            let is_kept = is_pipe(descriptor) || is_sequenced_socket(descriptor);
            if descriptor > libc::STDERR_FILENO && descriptor != folder && !is_kept {
                // SAFETY: this child executes a program next; nothing here uses the descriptor any more.
                unsafe { libc::close(descriptor) };
            }
            entry += bytes.max(1);
        }
    }
    // SAFETY: opened above.
    unsafe { libc::close(folder) };
    Ok(())
}

fn is_pipe(descriptor: i32) -> bool {
    // SAFETY: a stat is plain numbers, for which 0 is a value.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat writes one stat, to the one that `status` is.
    let known = unsafe { libc::fstat(descriptor, &raw mut status) } == 0;
    known && status.st_mode & libc::S_IFMT == libc::S_IFIFO
}

fn is_sequenced_socket(descriptor: i32) -> bool {
    let mut kind: libc::c_int = 0;
    let mut bytes = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: getsockopt writes at most `bytes` bytes, to the int that `kind` is.
    let result = unsafe {
        libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut bytes)
    };
    result == 0 && kind == libc::SOCK_SEQPACKET
}

fn write_once(path: &CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: a path with its NUL; the descriptor is ours alone.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    check(file)?;
    // SAFETY: reads `bytes` only.
    let written = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
    let told = if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    told
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;

    fn value_of_child(command: &mut Command) -> String {
        let output = command.stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn child_starts_with_the_value_and_passes_it_on() {
        let base = oom_score_adj().unwrap();
        let value = (base + 123).min(1000);
        let mut command = Command::new("sh");
        command.args(["-c", "cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l"]);
        start_with_oom_score_adj(&mut command, value, true);
        let said = value_of_child(&mut command);
        assert_eq!(said.lines().next(), Some(value.to_string().as_str()));
        assert_eq!(oom_score_adj().unwrap(), base, "ours is as before");
    }

    #[test]
    fn value_that_the_kernel_refuses_stops_the_program_only_where_it_is_required() {
        let start = |is_required| {
            let mut command = Command::new("true");
            start_with_oom_score_adj(&mut command, 1001, is_required);
            command.status()
        };
        assert!(start(true).is_err());
        assert!(start(false).unwrap().success());
    }

    /// Entering a directory may hang as well, and the pid is needed then.
    #[test]
    fn child_reports_its_pid_before_it_enters_its_directory() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("true");
        report_pid(&mut command, writer);
        start_in(&mut command, Path::new("/nowhere")).unwrap();
        assert_eq!(command.status().unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut pid = [0; size_of::<u32>()];
        reader.read_exact(&mut pid).unwrap();
        assert_ne!(u32::from_ne_bytes(pid), std::process::id());
    }
}
