//! Who sent a signal to this process.
//!
//! tokio reports a signal without its sender. A second action on the same handler records the sender. The name is read
//! in the handler, because a program like `pkill` exits a moment later.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::c_int;

/// The sender of a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SignalSender {
    /// The kernel itself, as for Ctrl-C at a terminal.
    Kernel,
    /// A process that is not visible in this PID namespace: outside the container.
    Outside {
        /// The uid of the sender, as seen in this user namespace.
        uid: u32,
    },
    /// A process in this PID namespace, or one below.
    Process {
        /// The pid of the sender, which may have been reused since.
        pid: u32,
        /// The uid of the sender.
        uid: u32,
        /// The `comm` of the sender; empty if it had already exited.
        name: String,
    },
}

const NO_NOTE: u64 = 0;
const BEING_WRITTEN: u64 = u64::MAX;

/// Flags above the process ID (22 bits, `PID_MAX_LIMIT`) in the upper half of a note.
const BY_PROCESS: u64 = 1 << 62;
const BY_KERNEL: u64 = 1 << 61;
const PID_SHIFT: u32 = 32;
const PID_MASK: u64 = 0x00ff_ffff;

/// The kernel's `TASK_COMM_LEN`.
const NAME_BYTES: usize = 16;

/// The sender of the first signal since the last [`take`](Self::take). Atomics only, because a signal handler writes
/// it.
#[derive(Debug)]
pub(crate) struct SenderNote {
    /// Flags, process ID, user ID.
    origin: AtomicU64,
    name: [AtomicU64; NAME_BYTES / 8],
}

impl SenderNote {
    /// Creates an empty note.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { origin: AtomicU64::new(NO_NOTE), name: [AtomicU64::new(0), AtomicU64::new(0)] }
    }

    /// Notes senders of this signal from now on. The signal no longer has its default action.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn watch(&'static self, signal: c_int) -> io::Result<()> {
        // SAFETY: the action may run at any moment on any thread: it touches atomics and its own stack, and calls open, read
        // and close, which are async-signal-safe (signal-safety(7)). It does not panic. The handler restores errno.
        unsafe { signal_hook_registry::register_sigaction(signal, |info| self.write(info)) }.map(drop)
    }

    /// Takes the note, if there is one.
    pub(crate) fn take(&self) -> Option<SignalSender> {
        let origin = self.origin.load(Ordering::Acquire);
        if matches!(origin, NO_NOTE | BEING_WRITTEN) {
            return None;
        }
        let name: Vec<u8> = self.name.iter().flat_map(|part| part.load(Ordering::Relaxed).to_ne_bytes()).collect();
        self.origin.store(NO_NOTE, Ordering::Release);
        Some(sender(origin, &name))
    }

    fn write(&self, info: &libc::siginfo_t) {
        let is_first =
            self.origin.compare_exchange(NO_NOTE, BEING_WRITTEN, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !is_first {
            return;
        }
        let mut name = [0; NAME_BYTES];
        let origin = if matches!(info.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL) {
            // SAFETY: with these codes the kernel fills in both (sigaction(2)).
            let (pid, uid) = unsafe { (info.si_pid(), info.si_uid()) };
            let pid = u64::try_from(pid).unwrap_or(0) & PID_MASK;
            if pid != 0 {
                read_name(pid, &mut name);
            }
            BY_PROCESS | pid << PID_SHIFT | u64::from(uid)
        } else {
            BY_KERNEL
        };
        for (part, bytes) in self.name.iter().zip(name.as_chunks::<8>().0) {
            part.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        self.origin.store(origin, Ordering::Release);
    }
}

impl Default for SenderNote {
    fn default() -> Self {
        Self::new()
    }
}

fn sender(origin: u64, name: &[u8]) -> SignalSender {
    if origin & BY_KERNEL != 0 {
        return SignalSender::Kernel;
    }
    // Both fit: they were put there as such.
    let pid = u32::try_from((origin >> PID_SHIFT) & PID_MASK).unwrap_or(0);
    let uid = u32::try_from(origin & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    if pid == 0 {
        return SignalSender::Outside { uid };
    }
    let end = name.iter().position(|byte| matches!(byte, 0 | b'\n')).unwrap_or(name.len());
    SignalSender::Process { pid, uid, name: String::from_utf8_lossy(&name[..end]).into_owned() }
}

/// Reads `/proc/PID/comm`, a zombie's too. In a signal handler: no allocation, no lock.
fn read_name(pid: u64, name: &mut [u8; NAME_BYTES]) {
    let mut path = [0; 32];
    write_path(pid, &mut path);
    // SAFETY: `path` ends in a NUL, as the array is longer than what is written to it.
    let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return;
    }
    // SAFETY: read writes at most as many bytes as `name` has; close gets the descriptor that was opened here.
    unsafe {
        libc::read(fd, name.as_mut_ptr().cast(), NAME_BYTES);
        libc::close(fd);
    }
}

/// `/proc/PID/comm`, which is shorter than the array.
fn write_path(pid: u64, path: &mut [u8; 32]) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    let mut rest = pid;
    while rest > 0 && first > 0 {
        first -= 1;
        digits[first] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    let parts = b"/proc/".iter().chain(&digits[first..]).chain(b"/comm");
    for (place, byte) in path.iter_mut().zip(parts) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{getpid, getuid};

    use super::*;

    #[test]
    fn first_sender_is_noted_until_it_is_taken() {
        static NOTE: SenderNote = SenderNote::new();
        // Nothing else here uses it.
        let signal = Signal::SIGUSR2;
        NOTE.watch(signal as i32).unwrap();
        assert_eq!(NOTE.take(), None);
        for _ in 0..2 {
            kill(getpid(), signal).unwrap();
            let taken = std::iter::repeat_with(|| NOTE.take()).find_map(|taken| taken).unwrap();
            let name = fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned();
            let pid = std::process::id();
            assert_eq!(taken, SignalSender::Process { pid, uid: getuid().as_raw(), name });
            assert_eq!(NOTE.take(), None);
        }
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        assert_eq!(sender(BY_KERNEL, b""), SignalSender::Kernel);
        assert_eq!(sender(BY_PROCESS | u64::from(1000_u32), b""), SignalSender::Outside { uid: 1000 });
        let pid_max = 4_194_304_u64;
        let told = sender(BY_PROCESS | pid_max << PID_SHIFT | u64::from(u32::MAX), b"fifteen letters");
        assert_eq!(told, SignalSender::Process { pid: 4_194_304, uid: u32::MAX, name: "fifteen letters".into() });
    }

    #[test]
    fn path_is_that_of_the_process() {
        for (pid, expected) in [(1, "/proc/1/comm"), (4_194_304, "/proc/4194304/comm")] {
            let mut path = [0; 32];
            write_path(pid, &mut path);
            assert_eq!(path.split(|byte| *byte == 0).next(), Some(expected.as_bytes()));
        }
    }
}
