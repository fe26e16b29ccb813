//! One line of `/proc/PID/stat`, as far as it is wanted. Pure.

use nix::sys::stat::makedev;

use crate::monitor::process::End;

/// signal(7)
const SIGKILL: u64 = 9;

/// Among the flags of a task: it exits (`PF_EXITING`, include/linux/sched.h).
const EXITING: u64 = 0x4;

/// And: a signal ends it (`PF_SIGNALED`).
const SIGNALED: u64 = 0x400;

/// Among the signals that a task has not taken yet. Each task of a process has it from the moment that a signal is
/// sent which ends the process, whichever signal that is (`complete_signal`, kernel/signal.c).
const PENDING_KILL: u64 = 1 << (SIGKILL - 1);

/// An exit status holds the signal in these bits (wait(2)).
const SIGNAL_BITS: u64 = 0x7f;

/// What is wanted of `/proc/PID/stat`, numbered as in proc(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// 3: a zombie, or about to be none any more. Of a process: its first thread is.
    pub(super) has_ended: bool,
    /// 4
    pub(super) parent_pid: u32,
    /// 7: its controlling terminal; 0 for none.
    pub(super) tty_nr: u32,
    /// From 9 and 31: a signal ends it, or it has begun to exit. Anybody may know.
    pub(super) is_leaving: bool,
    /// 20
    pub(super) threads: u64,
    /// 22
    pub(super) start_ticks: u64,
    /// 23
    pub(super) vm_bytes: u64,
    /// 24
    pub(super) rss_pages: u64,
    /// 38 is -1: what was asked for by number is a thread, which no listing shows (`copy_process`, kernel/fork.c).
    pub(super) is_thread: bool,
    /// 48; 0 for those who may not trace it.
    pub(super) arg_start: u64,
    /// 52; 0 for those who may not trace it. Since 6.0 that of the whole process, from the moment of the signal that
    /// ends it (`do_task_stat`, fs/proc/array.c); before, that of the first thread once it exits.
    pub(super) exit_code: u64,
}

impl Stat {
    /// The whole process has ended, not just its first thread.
    pub(super) fn is_zombie(&self) -> bool {
        self.has_ended && self.threads <= 1
    }

    /// Its controlling terminal as a device number. In the field the minor number is in bits 31 to 20 and 7 to 0, the major
    /// one in 15 to 8 (proc(5)).
    pub(super) fn terminal(&self) -> Option<u64> {
        let device =
            makedev(u64::from(self.tty_nr >> 8 & 0xff), u64::from(self.tty_nr >> 12 & 0xfff00 | self.tty_nr & 0xff));
        (self.tty_nr != 0).then_some(device)
    }

    /// How it ends, if it does and that can be told. `is_ours` says that its exit code is shown to us.
    pub(super) fn end(&self, is_ours: bool) -> Option<End> {
        if self.exit_code & SIGNAL_BITS == SIGKILL {
            return Some(End::Killed);
        }
        (self.is_zombie() && (is_ours || self.exit_code != 0)).then_some(End::Other)
    }

    /// The comm and the rest; `None` for what is no stat line. The comm may hold anything, `)` too.
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
                // Signed, and below 0 for a moment when the counters of several CPUs are summed up.
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
