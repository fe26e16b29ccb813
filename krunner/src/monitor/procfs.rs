//! Reads `/proc`: all processes, often, for little.
//!
//! Owns what has to be remembered between two scans: names and command lines, so that only what an
//! exec has changed is read again. Decides nothing; what a snapshot means is `history`'s matter. One
//! `openat`, one `read` and one `close` for each process, relative to a descriptor of the root, into one
//! buffer; fields that nobody asked for are stepped over. The `procfs` crate is not used here, because
//! it allocates for each of the 52 fields. What remains is the kernel's work: it prints all of a stat line
//! whoever wants what of it. So the periodic scan takes those that change at every turn, and the quiet ones
//! in turns ([`Scanner::scan_in_turns`]); who is there is known of all.
//!
//! Reading a command line takes the process's mmap lock (`get_mm_cmdline`, fs/proc/base.c), which a
//! process short of memory may hold for long: only the sampler's own thread may scan. Where the kernel does not tell us
//! `arg_start` (another user's process), an exec that keeps the name goes unseen.
//!
//! A process that vanishes meanwhile, a line that is no stat line, bytes that are not UTF-8: data, not
//! errors. With `hidepid` there are fewer processes, and that is all.

mod cmdline;
mod crowd;
mod fence;
mod glance;
mod stat;
mod view;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, read, sysconf};

use super::cgroup::charge::Hold;
use super::clock;
use super::event::{Death, ProcessKey};
use super::process::{End, Observed, ScanCost, Sizes, Snapshot};
use cmdline::{Title, kept_bytes};
pub(super) use fence::Fence;
use glance::Attention;
use stat::Stat;
pub use view::ProcView;

/// As much of a command line as is kept: enough for a person, and for a class path's beginning.
const CMDLINE_BYTES: usize = 4096;

/// What is kept of further command lines once [`CACHE_BYTES`] are spent.
const SHORT_CMDLINE_BYTES: usize = 64;

/// Command lines in full, all together: 2,000 processes with 1 KiB each.
const CACHE_BYTES: usize = 2 << 20;

/// Processes of a snapshot, some 130 bytes each with what is remembered of them: 8 MiB. Larger pids are
/// left out, and counted.
const MAX_PROCESSES: usize = 65_536;

/// One more than what is kept, so that a cut is noticed. A stat line has less than 1 KiB.
const BUFFER_BYTES: usize = CMDLINE_BYTES + 1;

/// Threads of a process that are looked at when the first has ended.
const MAX_ENDED_THREADS: usize = 64;

/// Quiet processes that [`Scanner::scan_in_turns`] reads. One costs 8 to 10 us here, nearly all of it in the
/// kernel, so 2,000 quiet ones take some 5 ms; whoever has fewer processes than this sees no difference.
const QUIET_READ: usize = 400;

/// So many reads without a change make a process quiet.
const QUIET_AFTER: u8 = 3;

/// Page size where `sysconf` has no answer, which does not happen on Linux.
const COMMON_PAGE_BYTES: u64 = 4096;

/// Where `/proc` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcRoot(PathBuf);

impl ProcRoot {
    /// Somewhere else, for tests.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// A folder that holds no process, where `/proc` shows those of others. The root always exists.
    #[must_use]
    pub(super) fn of_nobody() -> Self {
        Self::new("/")
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether this very process is there now and no zombie. Takes no lock that a process could hold for long,
    /// so this may be asked anywhere, for a few processes.
    #[must_use]
    pub(super) fn has(&self, key: ProcessKey) -> bool {
        self.stat_of(key).is_some_and(|stat| !stat.is_zombie())
    }

    /// How large this very process is now; `None` when it is gone or has let go of its memory. May be asked as [`Self::has`].
    #[must_use]
    pub(super) fn sizes_of(&self, key: ProcessKey) -> Option<Sizes> {
        let stat = self.stat_of(key).filter(|stat| stat.vm_bytes > 0)?;
        Some(Sizes { vm_bytes: stat.vm_bytes, rss_bytes: stat.rss_pages.saturating_mul(page_bytes()) })
    }

    /// The controlling terminal of this very process, as a device number.
    #[must_use]
    pub(crate) fn terminal_of(&self, key: ProcessKey) -> Option<u64> {
        self.stat_of(key)?.terminal()
    }

    /// Of this very process, not of another one that has its pid by now.
    fn stat_of(&self, key: ProcessKey) -> Option<Stat> {
        let line = std::fs::read(self.0.join(format!("{}/stat", key.pid))).ok()?;
        Stat::parse(&line).map(|(_, stat)| stat).filter(|stat| stat.start_ticks == key.start_ticks)
    }

    /// Whether a process is inside a fence.
    #[must_use]
    pub(super) fn lets_in(&self, pid: u32, fence: &Fence) -> bool {
        std::fs::read(self.0.join(format!("{pid}/cgroup")))
            .is_ok_and(|cgroups| fence.lets_in(&String::from_utf8_lossy(&cgroups)))
    }

    /// The end of a process that nobody has waited for yet.
    #[must_use]
    pub(super) fn death_of(&self, pid: u32, end: End, at_boot_ns: u64) -> Option<Death> {
        let line = std::fs::read(self.0.join(format!("{pid}/stat"))).ok()?;
        let (comm, stat) = Stat::parse(&line)?;
        let process = ProcessKey { pid, start_ticks: stat.start_ticks };
        let name = String::from_utf8_lossy(comm).into_owned();
        Some(Death { process, name, parent_pid: stat.parent_pid, end, at_boot_ns })
    }
}

impl Default for ProcRoot {
    fn default() -> Self {
        Self::new("/proc")
    }
}

/// Makes snapshots.
#[derive(Debug)]
pub(super) struct Scanner {
    root: ProcRoot,
    fence: Option<Fence>,
    folder: OwnedFd,
    page_bytes: u64,
    buffer: Vec<u8>,
    path: String,
    /// Whom the root lists now: pid and inode.
    listed: Vec<(u32, u64)>,
    /// The last quiet process that was read in its turn.
    turn: u32,
    /// Set while nobody else tells of kills: then more is read, and more often.
    attention: Option<Attention>,
    hold: Hold,
    /// Set by whoever has something more urgent than the scan that is under way.
    is_interrupted: Arc<AtomicBool>,
    remembered: HashMap<u32, Remembered>,
    /// Bytes of command lines in `remembered`.
    cmdline_bytes: usize,
    scans: u64,
}

/// A process as it was when it was last read.
#[derive(Debug)]
struct Remembered {
    observed: Observed,
    /// Where its arguments begin; 0 if that is not for us to know.
    arg_start: u64,
    /// Of its folder. Each process gets a new one (`proc_pid_make_inode`, fs/proc/base.c), which the listing
    /// shows: the pid has changed hands if this has changed.
    inode: u64,
    /// Whether the fence lets it in.
    is_inside: bool,
    /// Resident when the last scan read it.
    scanned_rss_bytes: u64,
    /// Resident when its command line was last read.
    titled_rss_bytes: u64,
    /// Reads since something changed.
    unchanged: u8,
    /// The scan that listed it last.
    scan: u64,
}

impl Scanner {
    /// # Errors
    /// When the root cannot be opened.
    pub(super) fn new(root: ProcRoot, fence: Option<Fence>) -> io::Result<Self> {
        let folder = open(root.path(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY, Mode::empty())?;
        Ok(Self {
            root,
            fence,
            folder,
            page_bytes: page_bytes(),
            buffer: vec![0; BUFFER_BYTES],
            path: String::new(),
            listed: Vec::new(),
            turn: 0,
            attention: None,
            hold: Hold::default(),
            is_interrupted: Arc::default(),
            remembered: HashMap::new(),
            cmdline_bytes: 0,
            scans: 0,
        })
    }

    /// The same, which opens nothing while it is held.
    pub(super) fn held_by(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }

    /// The same, whose scans end early where there are many processes and this is set.
    pub(super) fn interrupted_by(self, is_interrupted: Arc<AtomicBool>) -> Self {
        Self { is_interrupted, ..self }
    }

    /// Reads all processes.
    ///
    /// # Errors
    /// When the root itself cannot be read; `Interrupted` when something more urgent came.
    pub(super) fn scan(&mut self) -> io::Result<Snapshot> {
        self.scan_some(usize::MAX)
    }

    /// Lists all processes, and reads those that are new or that changed lately; of the quiet ones it reads
    /// the next [`QUIET_READ`], and repeats for the others what was read before.
    ///
    /// # Errors
    /// When the root itself cannot be read.
    pub(super) fn scan_in_turns(&mut self) -> io::Result<Snapshot> {
        self.scan_some(QUIET_READ)
    }

    fn scan_some(&mut self, mut quiet_read: usize) -> io::Result<Snapshot> {
        let (began, cpu_before) = (Instant::now(), clock::thread_cpu());
        let at_boot_ns = clock::boot_ns();
        let left_out = self.list()?;
        self.scans += 1;
        let mut processes = Vec::with_capacity(self.listed.len());
        for index in 0..self.listed.len() {
            if self.is_interrupted.load(Ordering::Relaxed) && self.is_crowded() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let (pid, inode) = self.listed[index];
            if let Some(quiet) = self.quiet(pid, inode) {
                if quiet_read == 0 {
                    processes.extend(quiet.is_inside.then(|| quiet.observed.clone()));
                    continue;
                }
                quiet_read -= 1;
                self.turn = pid;
            }
            processes.extend(self.observe(pid, inode));
        }
        self.read_titles_of_largest(&mut processes);
        self.forget_the_gone();
        let cpu = clock::thread_cpu().saturating_sub(cpu_before);
        Ok(Snapshot { at_boot_ns, processes, left_out, cost: ScanCost { wall: began.elapsed(), cpu } })
    }

    /// Fills `listed`, beginning behind whose turn it was last; returns how many had no room.
    fn list(&mut self) -> io::Result<usize> {
        self.listed.clear();
        self.hold.wait();
        for entry in std::fs::read_dir(self.root.path())? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            self.listed.extend(pid.map(|pid| (pid, entry.ino())));
        }
        // The kernel lists them in this order already.
        self.listed.sort_unstable();
        let left_out = self.listed.len().saturating_sub(MAX_PROCESSES);
        self.listed.truncate(MAX_PROCESSES);
        let next = self.listed.partition_point(|(pid, _)| *pid <= self.turn);
        self.listed.rotate_left(next);
        Ok(left_out)
    }

    /// What is remembered of a process, if it need not be read each time.
    fn quiet(&mut self, pid: u32, inode: u64) -> Option<&Remembered> {
        let known = self.remembered.get_mut(&pid)?;
        if known.inode != inode || known.unchanged < QUIET_AFTER {
            return None;
        }
        known.scan = self.scans;
        Some(known)
    }

    /// A process that the fence lets in.
    fn observe(&mut self, pid: u32, inode: u64) -> Option<Observed> {
        let (observed, is_inside) = self.look_at(pid, inode)?;
        is_inside.then_some(observed)
    }

    /// A process, and whether the fence lets it in; of others not much is read.
    fn look_at(&mut self, pid: u32, inode: u64) -> Option<(Observed, bool)> {
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
            // Only its first thread has ended; memory and cgroup are seen through the others.
            (shown_by, stat) = (thread, Stat { parent_pid: stat.parent_pid, ..other });
        }
        let is_inside = self.is_inside(key, shown_by);
        let title = if is_inside { self.title(key, &name, &stat) } else { Title::default() };
        if is_inside && stat.vm_bytes > 0 && title.cmdline.bytes.is_empty() && !self.has_memory(pid) {
            // It let go of its memory between the two reads: what it was before is what counts.
            (stat.vm_bytes, stat.rss_pages) = (0, 0);
        }
        let oom_score_adj = if is_inside { self.oom_score_adj(key) } else { 0 };
        let observed = Observed {
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
        // What was known of its arguments outlives its memory.
        let arg_start =
            if stat.vm_bytes > 0 { stat.arg_start } else { self.known(key).map_or(0, |known| known.arg_start) };
        self.remember(observed.clone(), inode, arg_start, is_inside, title.rss_bytes);
        Some((observed, is_inside))
    }

    /// Whether the fence lets a process in. Who was in stays in: what is moved to another cgroup belongs to
    /// whoever started it. Who was not is asked again while it is new: it may be on its way in. `thread` is one of its
    /// threads that has not ended; those that have are in no cgroup any more.
    fn is_inside(&mut self, key: ProcessKey, thread: u32) -> bool {
        if let Some(known) = self.known(key)
            && (known.is_inside || known.unchanged >= QUIET_AFTER)
        {
            return known.is_inside;
        }
        let Some(fence) = self.fence.clone() else { return true };
        let length = self.read(format_args!("{}/task/{thread}/cgroup", key.pid));
        length.is_some_and(|length| fence.lets_in(&String::from_utf8_lossy(&self.buffer[..length])))
    }

    fn known(&self, key: ProcessKey) -> Option<&Remembered> {
        self.remembered.get(&key.pid).filter(|known| known.observed.key == key)
    }

    /// The remembered name if it still is that.
    fn name(&self, key: ProcessKey, comm: &[u8]) -> Arc<str> {
        let name = String::from_utf8_lossy(comm);
        let known = self.known(key).map(|known| &known.observed.name);
        known.filter(|known| ***known == *name).map_or_else(|| name.into(), Arc::clone)
    }

    /// What the OOM killer adds to its size, while somebody needs that.
    fn oom_score_adj(&mut self, key: ProcessKey) -> i16 {
        let before = self.known(key).map_or(0, |known| known.observed.oom_score_adj);
        if self.attention.is_none() {
            return before;
        }
        let length = self.read(format_args!("{}/oom_score_adj", key.pid));
        let text = length.and_then(|length| std::str::from_utf8(&self.buffer[..length]).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(before)
    }

    fn remember(&mut self, observed: Observed, inode: u64, arg_start: u64, is_inside: bool, titled_rss_bytes: u64) {
        self.cmdline_bytes += kept_bytes(&observed);
        let scanned_rss_bytes = self.known(observed.key).map_or(0, |known| known.scanned_rss_bytes);
        let known = Remembered {
            observed,
            arg_start,
            inode,
            is_inside,
            scanned_rss_bytes,
            titled_rss_bytes,
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

    /// A thread that has not ended, of a process whose first one has.
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

    /// One read into the buffer; `None` when the file cannot be read, usually because the process is gone.
    /// Both files give all they have, up to the buffer's end, to a single read.
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

fn page_bytes() -> u64 {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(COMMON_PAGE_BYTES)
}

/// How many processes there are, and what it takes to look at them when they have been looked at before.
///
/// # Errors
/// When the root cannot be read.
pub fn time_look(root: ProcRoot) -> io::Result<(usize, Duration)> {
    let mut scanner = Scanner::new(root, None)?;
    for _ in 0..=QUIET_AFTER {
        scanner.scan_in_turns()?;
    }
    let snapshot = scanner.scan_in_turns()?;
    Ok((snapshot.processes.len(), snapshot.cost.wall))
}

#[cfg(test)]
#[path = "procfs_tests.rs"]
mod tests;
