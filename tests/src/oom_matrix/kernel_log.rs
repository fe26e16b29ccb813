//! Reads OOM kills from the kernel log: a second source of truth, next to wait statuses and the counter.
//!
//! `__oom_kill_process` (`mm/oom_kill.c`) logs each process that it chose and each member of a group kill. Processes that only
//! share the victim's memory are not logged. PIDs are those of the initial PID namespace.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// The maximum size of a record (`PRINTKRB_RECORD_MAX` and its prefix, kernel/printk).
const RECORD_BYTES: usize = 8192;

/// The kernel adds up per-CPU counters, and a process may keep running until it handles the signal.
const TOLERANCE_KIB: u64 = 256;

/// Begins the description of an OOM kill.
const REQUEST: &str = "invoked oom-killer";

/// The names of krunner's threads, without the main thread, which has the process's name.
const RUNNER_THREADS: [&str; 5] = ["oom-sampler", "recorder", "writer", "blocking", "oom-loader"];

/// `/dev/kmsg`, positioned at the end when it was opened.
#[derive(Debug)]
pub struct KernelLog(File);

/// A process that the kernel logged as killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    /// In rare cases a TID, see [`Self::is_thread_of_runner`].
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) memory: Memory,
}

impl Logged {
    /// Whether this is a second line about krunner. If the main thread of a member of a group kill has exited, the kernel logs
    /// another one (`find_lock_task_mm`, `mm/oom_kill.c`).
    fn is_thread_of_runner(&self) -> bool {
        RUNNER_THREADS.contains(&self.name.as_str())
    }
}

/// Resident memory by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the unit belongs in the name")]
pub(super) struct Memory {
    pub(super) anon_kib: u64,
    pub(super) file_kib: u64,
    pub(super) shmem_kib: u64,
}

impl Memory {
    /// Whether both can describe the same process at the same moment.
    pub(super) fn agrees_with(self, other: Self) -> bool {
        let pairs =
            [(self.anon_kib, other.anon_kib), (self.file_kib, other.file_kib), (self.shmem_kib, other.shmem_kib)];
        pairs.into_iter().all(|(one, other)| one.abs_diff(other) <= TOLERANCE_KIB)
    }
}

impl KernelLog {
    /// Returns `None` where the log is unreadable or this process is not in the initial PID namespace.
    pub fn follow() -> Option<Self> {
        /// The inode number is `PROC_PID_INIT_INO` (`include/linux/proc_ns.h`).
        const FIRST: &str = "pid:[4026531836]";
        std::fs::read_link("/proc/self/ns/pid").ok().filter(|link| link == Path::new(FIRST))?;
        let mut file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg").ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// The PIDs of the processes that were killed since the last call, each once. Further threads of krunner are left out.
    ///
    /// # Errors
    /// If records were overwritten before they were read.
    pub fn pids(&mut self) -> Result<BTreeSet<u32>, String> {
        let logged = self.take().ok_or("the kernel log was overwritten")?;
        Ok(logged.into_iter().filter(|logged| !logged.is_thread_of_runner()).map(|logged| logged.pid).collect())
    }

    /// What the kernel logged about the kill of this process since the last call: which process asked for memory, and its kernel
    /// stack (`dump_header`, `mm/oom_kill.c`). `None` if there was no such kill, or its records were overwritten.
    pub fn circumstances_of(&mut self, pid: u32) -> Option<String> {
        let mut circumstances = Vec::new();
        for record in self.records().texts {
            let text = record.split_once(';').map_or("", |(_, text)| text).lines().next().unwrap_or_default();
            if text.contains(REQUEST) {
                circumstances = vec![text.to_owned()];
            } else if text.contains("+0x") {
                circumstances.push(text.trim().to_owned());
            }
            if parse(&record).is_some_and(|logged| logged.pid == pid) {
                circumstances.push(text.to_owned());
                return Some(circumstances.join(" < "));
            }
        }
        None
    }

    /// Returns the kills since the last call; `None` if records were overwritten before they were read.
    pub(super) fn take(&mut self) -> Option<Vec<Logged>> {
        let records = self.records();
        let killed = || records.texts.iter().filter_map(|record| parse(record)).collect();
        (!records.is_incomplete).then(killed)
    }

    /// The records since the last call that were not overwritten.
    fn records(&mut self) -> Records {
        let mut record = [0; RECORD_BYTES];
        let mut records = Records::default();
        loop {
            match self.0.read(&mut record) {
                Ok(bytes) => records.texts.push(String::from_utf8_lossy(&record[..bytes]).into_owned()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The next read returns the oldest record that is left (Documentation/ABI/testing/dev-kmsg).
                Err(error) if error.kind() == ErrorKind::BrokenPipe => records.is_incomplete = true,
                Err(_) => return records,
            }
        }
    }
}

#[derive(Default)]
struct Records {
    texts: Vec<String>,
    is_incomplete: bool,
}

/// `... Killed process PID (COMM) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, ...`
fn parse(record: &str) -> Option<Logged> {
    let (_, rest) = record.split_once("Killed process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    // The comm may contain any byte.
    let (name, counters) = rest.rsplit_once(") total-vm:")?;
    let kib = |name: &str| counters.split_once(name)?.1.split_once("kB")?.0.parse().ok();
    let memory = Memory { anon_kib: kib("anon-rss:")?, file_kib: kib("file-rss:")?, shmem_kib: kib("shmem-rss:")? };
    Some(Logged { pid: pid.parse().ok()?, name: name.to_owned(), memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_of_oddly_named_processes_are_parsed() {
        let line = "3,18772,32971292492,-;Memory cgroup out of memory: Killed process 967 (a) R 1 (b) total-vm:19664kB, \
                    anon-rss:16128kB, file-rss:2156kB, shmem-rss:0kB, UID:0 pgtables:80kB oom_score_adj:0\n";
        let memory = Memory { anon_kib: 16128, file_kib: 2156, shmem_kib: 0 };
        assert_eq!(parse(line), Some(Logged { pid: 967, name: "a) R 1 (b".to_owned(), memory }));
        assert_eq!(parse("4,1,2,-; out_of_memory+0x214/0x500\n"), None);
    }

    /// Logged by Linux 6.12 at a group kill in a container.
    #[test]
    fn second_lines_about_the_runner_are_recognized() {
        let rest = "total-vm:16744kB, anon-rss:2132kB, file-rss:7648kB, shmem-rss:0kB, UID:1000 pgtables:80kB oom_score_adj:652";
        let is_thread = |name: &str| {
            let line = format!("3,1,2,-;Memory cgroup out of memory: Killed process 1129 ({name}) {rest}\n");
            parse(&line).expect("a kill").is_thread_of_runner()
        };
        assert!(is_thread("writer"));
        assert!(!is_thread("backend.ai: ker"));
    }

    #[test]
    fn small_differences_are_tolerated() {
        let memory = Memory { anon_kib: 1000, file_kib: 0, shmem_kib: 0 };
        assert!(memory.agrees_with(Memory { anon_kib: 1000 + TOLERANCE_KIB, ..memory }));
        assert!(!memory.agrees_with(Memory { anon_kib: 0, ..memory }));
    }
}
