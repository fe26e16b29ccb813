//! A fast scanner of `/proc`.
//!
//! It caches names and command lines between scans, so that only processes changed by an exec are read in full. It does
//! not interpret snapshots; `attribution::history` does. A process costs one `openat`, one `read` and one `close`,
//! relative to a descriptor of the root and into one buffer; unused fields are skipped. The `procfs` crate is not used here,
//! because it allocates for each of the 52 fields. What remains is the kernel's cost of formatting the whole stat line.
//! So a periodic scan reads active processes every time and idle ones in turns ([`Scanner::scan_in_turns`]), and lists
//! all of them. Where only our cgroup counts, its members are listed in place of the whole machine.
//!
//! Reading a command line takes the process's mmap lock (`get_mm_cmdline`, fs/proc/base.c), which a process short of
//! memory may hold for long: only the sampler thread may scan. If the kernel does not show `arg_start` (another user's
//! process), an exec that keeps the name is not noticed.
//!
//! A process that exits during the scan, a malformed stat line and bytes that are not UTF-8 are not errors. With
//! `hidepid` the snapshot has fewer processes.

mod cmdline;
#[cfg(any(test, fuzzing))]
pub(in crate::monitor) mod fuzzing;
mod many_processes;
mod mounts;
mod partial_scan;
mod root;
mod stat;
mod view;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::fmt::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirEntryExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::read;

use super::cgroup::charge::Hold;
use super::cgroup::members;
use super::page_size::page_bytes;
use crate::monitor::model::cgroup::CgroupFilter;
use crate::monitor::model::clock;
use crate::monitor::model::mount::MountUsage;
use crate::monitor::model::process::{ProcessKey, ProcessSample, ScanCost, Snapshot};
use cmdline::{Title, kept_bytes};
pub(crate) use mounts::tmpfs_mounts;
use partial_scan::TrackedProcesses;
pub(crate) use root::ProcRoot;
use stat::Stat;
pub(crate) use view::ProcView;

/// Maximum length of a cached command line: enough to read, and for the beginning of a class path.
const CMDLINE_BYTES: usize = 4096;

/// Maximum length of further command lines once [`CACHE_BYTES`] are used up.
const SHORT_CMDLINE_BYTES: usize = 64;

/// Total size of command lines cached in full: 2,000 processes with 1 KiB each.
const CACHE_BYTES: usize = 2 << 20;

/// Maximum number of processes in a snapshot, about 130 bytes each including the cache: 8 MiB. Larger pids are left out
/// and counted.
const MAX_PROCESSES: usize = 65_536;

/// One byte more than is cached, to detect truncation. A stat line has less than 1 KiB.
const BUFFER_BYTES: usize = CMDLINE_BYTES + 1;

/// Maximum number of threads to read in a process whose first thread has exited.
const MAX_ENDED_THREADS: usize = 64;

/// Number of idle processes that one [`Scanner::scan_in_turns`] reads. A process costs 8 to 10 us, nearly all of it in
/// the kernel, so a scan with 2,000 idle processes takes about 5 ms.
const IDLE_READS: usize = 400;

/// A process is idle after this many reads without a change.
const IDLE_AFTER: u8 = 3;

/// Reads processes and caches what they were at the last read.
#[derive(Debug)]
pub(in crate::monitor) struct Scanner {
    root: ProcRoot,
    cgroup_filter: Option<CgroupFilter>,
    folder: OwnedFd,
    page_bytes: u64,
    buffer: Vec<u8>,
    path: String,
    /// Pid and inode of the processes in the last listing.
    listed: Vec<(u32, u64)>,
    /// The idle process read last; the next turn begins after it.
    turn: u32,
    /// Set in fallback mode, in which more is read and more often.
    tracked: Option<TrackedProcesses>,
    hold: Hold,
    /// Set when a scan is requested while another one is running.
    is_interrupted: Arc<AtomicBool>,
    remembered: HashMap<u32, Remembered>,
    /// Bytes of command lines in `remembered`.
    cmdline_bytes: usize,
    scans: u64,
}

/// A process as it was at the last read.
#[derive(Debug)]
struct Remembered {
    observed: ProcessSample,
    /// Start address of its arguments; 0 if the kernel hides it from us.
    arg_start: u64,
    /// Inode of its directory. Each process gets a new one (`proc_pid_make_inode`, fs/proc/base.c), and the listing
    /// shows it: if it has changed, the pid was reused.
    inode: u64,
    /// Whether it passes the cgroup filter.
    is_inside: bool,
    /// Resident size at the last scan.
    scanned_rss_bytes: u64,
    /// Resident size when its command line was last read.
    rss_bytes_at_title: u64,
    /// Number of reads since its last change.
    unchanged: u8,
    /// Number of the scan that listed it last.
    scan: u64,
}

impl Scanner {
    /// # Errors
    /// When the root cannot be opened.
    pub(in crate::monitor) fn new(root: ProcRoot, cgroup_filter: Option<CgroupFilter>) -> io::Result<Self> {
        let folder = open(root.path(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY, Mode::empty())?;
        Ok(Self {
            root,
            cgroup_filter,
            folder,
            page_bytes: page_bytes(),
            buffer: vec![0; BUFFER_BYTES],
            path: String::new(),
            listed: Vec::new(),
            turn: 0,
            tracked: None,
            hold: Hold::default(),
            is_interrupted: Arc::default(),
            remembered: HashMap::new(),
            cmdline_bytes: 0,
            scans: 0,
        })
    }

    /// Makes the scanner wait for this hold before it opens a file.
    pub(in crate::monitor) fn held_by(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }

    /// Makes scans of many processes end early when this flag is set.
    pub(in crate::monitor) fn interrupted_by(self, is_interrupted: Arc<AtomicBool>) -> Self {
        Self { is_interrupted, ..self }
    }

    /// Reads all processes.
    ///
    /// # Errors
    /// When the root itself cannot be read; `Interrupted` when something more urgent came.
    pub(in crate::monitor) fn scan(&mut self) -> io::Result<Snapshot> {
        let mut snapshot = self.scan_some(usize::MAX)?;
        snapshot.mounts = self.mounts();
        Ok(snapshot)
    }

    /// Usage of tmpfs mounts; unreadable ones are left out.
    fn mounts(&mut self) -> Vec<MountUsage> {
        self.hold.wait();
        let mountinfo = fs::read(self.root.path().join("self/mountinfo")).unwrap_or_default();
        mounts::tmpfs_usage(&String::from_utf8_lossy(&mountinfo))
    }

    /// Lists all processes and reads the new and active ones. Of the idle ones it reads the next [`IDLE_READS`] and
    /// repeats the cached state of the others.
    ///
    /// # Errors
    /// When the root itself cannot be read.
    pub(in crate::monitor) fn scan_in_turns(&mut self) -> io::Result<Snapshot> {
        self.scan_some(IDLE_READS)
    }

    fn scan_some(&mut self, mut idle_reads: usize) -> io::Result<Snapshot> {
        let at_boot_ns = clock::boot_ns();
        let (began, cpu_before) = (Instant::now(), clock::thread_cpu());
        let left_out = self.list()?;
        let listed_boot_ns = clock::boot_ns();
        self.scans += 1;
        let (mut processes, mut vanished) = (Vec::with_capacity(self.listed.len()), Vec::new());
        for index in 0..self.listed.len() {
            if self.is_interrupted.load(Ordering::Relaxed) && self.has_many_processes() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let (pid, inode) = self.listed[index];
            if let Some(idle) = self.idle(pid, inode) {
                if idle_reads == 0 {
                    processes.extend(idle.is_inside.then(|| idle.observed.clone()));
                    continue;
                }
                idle_reads -= 1;
                self.turn = pid;
            }
            match self.read_process(pid, inode) {
                Some((observed, is_inside)) => processes.extend(is_inside.then_some(observed)),
                None => vanished.push(pid),
            }
        }
        self.read_titles_of_largest(&mut processes);
        self.forget_the_gone();
        let cpu = clock::thread_cpu().saturating_sub(cpu_before);
        let cost = ScanCost { wall: began.elapsed(), cpu };
        Ok(Snapshot { at_boot_ns, listed_boot_ns, vanished, processes, left_out, mounts: Vec::new(), cost })
    }

    /// Fills `listed`, beginning after the process read last in turn; returns how many were left out.
    fn list(&mut self) -> io::Result<usize> {
        self.listed.clear();
        self.hold.wait();
        if !self.list_members() {
            self.list_all()?;
        }
        // The kernel lists all processes in this order already.
        self.listed.sort_unstable();
        let left_out = self.listed.len().saturating_sub(MAX_PROCESSES);
        self.listed.truncate(MAX_PROCESSES);
        let next = self.listed.partition_point(|(pid, _)| *pid <= self.turn);
        self.listed.rotate_left(next);
        Ok(left_out)
    }

    fn list_all(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.path())? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            self.listed.extend(pid.map(|pid| (pid, entry.ino())));
        }
        Ok(())
    }

    /// Lists the members of our cgroup, and those that were members before: a process moved to another cgroup still belongs
    /// to its starter, and an exiting one is no member. `false` if all processes must be listed.
    fn list_members(&mut self) -> bool {
        let dir = self.cgroup_filter.as_ref().and_then(|filter| filter.dir.as_deref());
        let Some(Ok(members)) = dir.map(members::members) else { return false };
        let former = self.remembered.iter().filter(|(_, known)| known.is_inside).map(|(pid, _)| *pid);
        let mut pids: Vec<u32> = members.into_iter().chain(former).collect();
        pids.sort_unstable();
        pids.dedup();
        for pid in pids {
            let shown = fstatat(&self.folder, pid.to_string().as_str(), AtFlags::empty());
            self.listed.extend(shown.ok().map(|shown| (pid, shown.st_ino)));
        }
        true
    }

    /// The cached state of a process, if it is idle.
    fn idle(&mut self, pid: u32, inode: u64) -> Option<&Remembered> {
        let known = self.remembered.get_mut(&pid)?;
        if known.inode != inode || known.unchanged < IDLE_AFTER {
            return None;
        }
        known.scan = self.scans;
        Some(known)
    }

    /// Reads a process, and whether it passes the cgroup filter; `None` if it is gone. Little is read of those that do not pass.
    fn read_process(&mut self, pid: u32, inode: u64) -> Option<(ProcessSample, bool)> {
        let length = self.read(format_args!("{pid}/stat"))?;
        let (comm, mut stat) = Stat::parse(&self.buffer[..length]).filter(|(_, stat)| !stat.is_thread)?;
        let key = ProcessKey { pid, start_ticks: stat.start_ticks };
        let name = self.name(key, comm);
        let is_zombie = stat.is_zombie();
        let end = stat.end(self.known(key).is_some_and(|known| known.arg_start != 0));
        let mut shown_by = pid;
        if stat.has_ended
            && !is_zombie
            && let Some((thread, other)) = self.other_thread(pid)
        {
            // Only its first thread has exited: read memory and cgroup from another thread.
            (shown_by, stat) = (thread, Stat { parent_pid: stat.parent_pid, ..other });
        }
        let is_inside = self.is_inside(key, shown_by);
        let title = if is_inside { self.title(key, &name, &stat) } else { Title::default() };
        if is_inside && stat.vm_bytes > 0 && title.cmdline.bytes.is_empty() && !self.has_memory(pid) {
            // It released its memory between the two reads: keep the previous sizes.
            (stat.vm_bytes, stat.rss_pages) = (0, 0);
        }
        let oom_score_adj = if is_inside { self.oom_score_adj(key) } else { 0 };
        let observed = ProcessSample {
            key,
            parent_pid: stat.parent_pid,
            name,
            cmdline: title.cmdline,
            first_cmdline: title.first_cmdline,
            vm_bytes: stat.vm_bytes,
            rss_bytes: stat.rss_pages.saturating_mul(self.page_bytes),
            oom_score_adj,
            is_zombie,
            is_leaving: stat.is_leaving,
            end,
        };
        // Keep the known argument address after the memory is released.
        let arg_start =
            if stat.vm_bytes > 0 { stat.arg_start } else { self.known(key).map_or(0, |known| known.arg_start) };
        self.remember(observed.clone(), inode, arg_start, is_inside, title.rss_bytes);
        Some((observed, is_inside))
    }

    /// Whether a process passes the cgroup filter. Once it has, it always does: a process moved to another cgroup still
    /// belongs to its starter. One that has not is checked again while it is new, since it may be about to be moved in.
    /// `thread` is a thread that has not exited; exited ones are in no cgroup.
    fn is_inside(&mut self, key: ProcessKey, thread: u32) -> bool {
        if let Some(known) = self.known(key)
            && (known.is_inside || known.unchanged >= IDLE_AFTER)
        {
            return known.is_inside;
        }
        let Some(cgroup_filter) = self.cgroup_filter.clone() else { return true };
        let length = self.read(format_args!("{}/task/{thread}/cgroup", key.pid));
        length.is_some_and(|length| cgroup_filter.contains(&String::from_utf8_lossy(&self.buffer[..length])))
    }

    fn known(&self, key: ProcessKey) -> Option<&Remembered> {
        self.remembered.get(&key.pid).filter(|known| known.observed.key == key)
    }

    /// The name, shared with the cached one if equal.
    fn name(&self, key: ProcessKey, comm: &[u8]) -> Arc<str> {
        let name = String::from_utf8_lossy(comm);
        let known = self.known(key).map(|known| &known.observed.name);
        known.filter(|known| ***known == *name).map_or_else(|| name.into(), Arc::clone)
    }

    /// The `oom_score_adj`, read only in fallback mode.
    fn oom_score_adj(&mut self, key: ProcessKey) -> i16 {
        let before = self.known(key).map_or(0, |known| known.observed.oom_score_adj);
        if self.tracked.is_none() {
            return before;
        }
        let length = self.read(format_args!("{}/oom_score_adj", key.pid));
        let text = length.and_then(|length| std::str::from_utf8(&self.buffer[..length]).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(before)
    }

    fn remember(
        &mut self,
        observed: ProcessSample,
        inode: u64,
        arg_start: u64,
        is_inside: bool,
        rss_bytes_at_title: u64,
    ) {
        self.cmdline_bytes += kept_bytes(&observed);
        let scanned_rss_bytes = self.known(observed.key).map_or(0, |known| known.scanned_rss_bytes);
        let known = Remembered {
            observed,
            arg_start,
            inode,
            is_inside,
            scanned_rss_bytes,
            rss_bytes_at_title,
            unchanged: 0,
            scan: self.scans,
        };
        match self.remembered.entry(known.observed.key.pid) {
            Entry::Vacant(entry) => {
                entry.insert(known);
            }
            Entry::Occupied(mut entry) => {
                let before = entry.get();
                self.cmdline_bytes -= kept_bytes(&before.observed);
                let is_same = before.inode == inode && before.arg_start == arg_start;
                let unchanged =
                    if is_same && before.observed == known.observed { before.unchanged.saturating_add(1) } else { 0 };
                entry.insert(Remembered { unchanged, ..known });
            }
        }
    }

    /// A live thread of a process whose first thread has exited.
    fn other_thread(&mut self, pid: u32) -> Option<(u32, Stat)> {
        self.hold.wait();
        let threads = std::fs::read_dir(self.root.path().join(format!("{pid}/task"))).ok()?;
        for thread in threads.take(MAX_ENDED_THREADS) {
            let thread: u32 = thread.ok()?.file_name().to_str()?.parse().ok()?;
            let length = self.read(format_args!("{pid}/task/{thread}/stat"));
            let stat = length.and_then(|length| Stat::parse(&self.buffer[..length])).map(|(_, stat)| stat);
            if let Some(stat) = stat.filter(|stat| !stat.has_ended) {
                return Some((thread, stat));
            }
        }
        None
    }

    /// Reads a file into the buffer; `None` if it cannot be read, usually because the process is gone. A single read
    /// returns the whole file, up to the buffer size.
    fn read(&mut self, path: fmt::Arguments<'_>) -> Option<usize> {
        self.hold.wait();
        self.path.clear();
        write!(self.path, "{path}\0").ok()?;
        let path = CStr::from_bytes_with_nul(self.path.as_bytes()).ok()?;
        let file = openat(&self.folder, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        read(&file, &mut self.buffer).ok()
    }

    fn forget_the_gone(&mut self) {
        let scan = self.scans;
        let cmdline_bytes = &mut self.cmdline_bytes;
        self.remembered.retain(|_, known| {
            let is_there = known.scan == scan;
            *cmdline_bytes -= if is_there { 0 } else { kept_bytes(&known.observed) };
            is_there
        });
    }
}

/// Returns the number of processes and the duration of a scan with a warm cache.
///
/// # Errors
/// When the root cannot be read.
pub(crate) fn time_scan(root: ProcRoot) -> io::Result<(usize, Duration)> {
    let mut scanner = Scanner::new(root, None)?;
    for _ in 0..=IDLE_AFTER {
        scanner.scan_in_turns()?;
    }
    let snapshot = scanner.scan_in_turns()?;
    Ok((snapshot.processes.len(), snapshot.cost.wall))
}

#[cfg(test)]
#[path = "procfs_tests.rs"]
mod tests;
