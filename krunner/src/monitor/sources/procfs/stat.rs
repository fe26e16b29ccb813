//! Parses the fields of `/proc/PID/stat` that are needed. Pure.

use nix::sys::stat::makedev;

use crate::monitor::model::process::ExitKind;

/// Signal number, see signal(7).
const SIGKILL: u64 = 9;

/// Task flag: the task is exiting (`PF_EXITING`, include/linux/sched.h).
const EXITING: u64 = 0x4;

/// Task flag: a signal is terminating the task (`PF_SIGNALED`).
const SIGNALED: u64 = 0x400;

/// Bit of SIGKILL among the pending signals. When a fatal signal is sent, whichever it is, the kernel sets this bit in
/// every thread of the process (`complete_signal`, kernel/signal.c).
const PENDING_KILL: u64 = 1 << (SIGKILL - 1);

/// Bits of an exit status that hold the signal (wait(2)).
const SIGNAL_BITS: u64 = 0x7f;

/// Fields of `/proc/PID/stat`, numbered as in proc(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// Field 3 is `Z` or `X`: the task, for a process its first thread, has exited.
    pub(super) has_ended: bool,
    /// Field 4, `ppid`.
    pub(super) parent_pid: u32,
    /// Field 7: the controlling terminal, 0 for none.
    pub(super) tty_nr: u32,
    /// From fields 9 and 31: a signal is terminating it, or it is exiting. Visible to all users.
    pub(super) is_leaving: bool,
    /// Field 20, `num_threads`.
    pub(super) threads: u64,
    /// Field 22, in clock ticks since boot.
    pub(super) start_ticks: u64,
    /// Field 23, `vsize`.
    pub(super) vm_bytes: u64,
    /// Field 24, `rss`.
    pub(super) rss_pages: u64,
    /// Field 38 is -1: the id is that of a thread, which listings do not show (`copy_process`, kernel/fork.c).
    pub(super) is_thread: bool,
    /// Field 48; 0 without permission to trace the process.
    pub(super) arg_start: u64,
    /// Field 52; 0 without permission to trace the process. Since 6.0 the exit code of the whole process, from the
    /// moment of the fatal signal (`do_task_stat`, fs/proc/array.c); before, that of the first thread once it exits.
    pub(super) exit_code: u64,
}

impl Stat {
    /// Whether the whole process has exited, not just its first thread.
    pub(super) fn is_zombie(&self) -> bool {
        self.has_ended && self.threads <= 1
    }

    /// The controlling terminal as a device number. Field 7 has the minor number in bits 31 to 20 and 7 to 0, the major
    /// number in bits 15 to 8 (proc(5)).
    pub(super) fn terminal(&self) -> Option<u64> {
        let device =
            makedev(u64::from(self.tty_nr >> 8 & 0xff), u64::from(self.tty_nr >> 12 & 0xfff00 | self.tty_nr & 0xff));
        (self.tty_nr != 0).then_some(device)
    }

    /// How it exits, if it does and the kernel shows it. `is_ours`: we may see its exit code.
    pub(super) fn end(&self, is_ours: bool) -> Option<ExitKind> {
        if self.exit_code & SIGNAL_BITS == SIGKILL {
            return Some(ExitKind::Killed);
        }
        (self.is_zombie() && (is_ours || self.exit_code != 0)).then_some(ExitKind::Other)
    }

    /// Parses a line into comm and fields; `None` if it is malformed. The comm may contain any bytes, including `)`.
    pub(super) fn parse(line: &[u8]) -> Option<(&[u8], Self)> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')').filter(|close| *close > open)?;
        let mut stat = Self::default();
        let mut fields = 2;
        for (number, field) in (3..=52).zip(line.get(close + 2..)?.split(u8::is_ascii_whitespace)) {
            match number {
                3 => stat.has_ended = matches!(field, b"Z" | b"X"),
                4 => stat.parent_pid = decimal(field)?.try_into().ok()?,
                7 => stat.tty_nr = decimal(field).and_then(|number| u32::try_from(number).ok()).unwrap_or(0),
                9 => stat.is_leaving = decimal(field).is_some_and(|flags| flags & (EXITING | SIGNALED) != 0),
                20 => stat.threads = decimal(field)?,
                22 => stat.start_ticks = decimal(field)?,
                23 => stat.vm_bytes = decimal(field)?,
                // Signed: the sum of per-CPU counters may be temporarily negative.
                24 => stat.rss_pages = decimal(field).unwrap_or(0),
                31 => stat.is_leaving |= decimal(field).is_some_and(|pending| pending & PENDING_KILL != 0),
                38 => stat.is_thread = field == b"-1",
                48 => stat.arg_start = decimal(field).unwrap_or(0),
                52 => stat.exit_code = decimal(field).unwrap_or(0),
                _ => {}
            }
            fields = number;
        }
        (fields >= 24).then(|| (&line[open + 1..close], stat))
    }
}

fn decimal(field: &[u8]) -> Option<u64> {
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}
