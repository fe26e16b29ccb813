//! Reading all processes from `/proc`, fast and often.
//!
//! A look at 2,000 processes is 6,000 system calls, and they are what it costs: nothing is allocated for a
//! process that has not changed but its name, and its cmdline is read only when it is new or runs
//! another program. (The `procfs` crate allocates for each field.) What `/proc` says is data, never an
//! error: a process may vanish between two reads, and names and arguments are any bytes.
//!
//! Reading a cmdline waits for the process's memory lock, which one that is short of memory may hold for
//! long: so this belongs on a thread of its own (see `sampler`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, read, sysconf};

use super::clock;
use super::event::ProcessKey;
use super::process::{Cmdline, Observed, Snapshot};

/// As much of a command line as is kept: enough for any that a person reads.
const CMDLINE_BYTES: usize = 4096;

/// Processes in a snapshot; further ones are left out. Ten times what a large container has.
const MAX_PROCESSES: usize = 32_768;

/// A stat line has some 50 numbers and a name of up to 64 bytes (`proc_task_name`, fs/proc/array.c).
const STAT_BYTES: usize = 2048;

/// Where processes are: `/proc`, or what a test made.
#[derive(Debug, Clone)]
pub struct ProcRoot(PathBuf);

impl Default for ProcRoot {
    fn default() -> Self {
        Self("/proc".into())
    }
}

impl ProcRoot {
    /// Another place than `/proc`.
    #[cfg(test)]
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

/// Only processes in this cgroup, or below it, are in a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    /// What a line of `/proc/PID/cgroup` begins with: `4:memory:` or `0::`, without the number.
    pub(super) controller: String,
    /// The cgroup's path in that line.
    pub(super) path: String,
}

impl Fence {
    /// Whether the text of `/proc/PID/cgroup` says that the process is inside.
    #[must_use]
    pub(super) fn lets_in(&self, cgroups: &str) -> bool {
        let path = cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == self.controller).then_some(path)
        });
        let below = path.and_then(|path| path.strip_prefix(self.path.trim_end_matches('/')));
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// What is remembered of a process from one look to the next.
struct Known {
    pid: u32,
    start_ticks: u64,
    name: Arc<str>,
    arg_start: u64,
    cmdline: Arc<Cmdline>,
    is_inside: bool,
    look: u64,
}

/// Looks at all processes, again and again.
pub(super) struct Scanner {
    proc: OwnedFd,
    fence: Option<Fence>,
    page_bytes: u64,
    known: HashMap<u32, Known>,
    look: u64,
    buffer: Vec<u8>,
    path: String,
}

impl Scanner {
    /// A scanner of this `/proc`.
    ///
    /// # Errors
    /// When there is no such folder.
    pub(super) fn open(root: &ProcRoot, fence: Option<Fence>) -> io::Result<Self> {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = open(root.0.as_path(), flags, Mode::empty())?;
        let (known, buffer, path) = (HashMap::new(), vec![0; CMDLINE_BYTES + 1], String::new());
        Ok(Self { proc, fence, page_bytes, known, look: 0, buffer, path })
    }

    /// Looks.
    ///
    /// # Errors
    /// When the folder of processes cannot be read at all.
    pub(super) fn scan(&mut self) -> io::Result<Snapshot> {
        let at_boot_ns = clock::boot_ns();
        self.look += 1;
        let mut folder =
            Dir::openat(&self.proc, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut processes = Vec::with_capacity(self.known.len());
        for entry in folder.iter() {
            let pid = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
            if let Some(observed) = pid.and_then(|pid| self.observe(pid)) {
                processes.push(observed);
            }
            if processes.len() == MAX_PROCESSES {
                break;
            }
        }
        let look = self.look;
        self.known.retain(|_, known| known.look == look);
        Ok(Snapshot { at_boot_ns, processes })
    }

    fn observe(&mut self, pid: u32) -> Option<Observed> {
        let length = self.read(pid, "stat", STAT_BYTES)?;
        let stat = Stat::parse(self.buffer.get(..length)?)?;
        let is_same = |known: &Known| {
            known.start_ticks == stat.start_ticks
                && known.arg_start == stat.arg_start
                && known.name.as_bytes() == stat.name
        };
        let unchanged = self.known.get(&pid).is_some_and(is_same);
        let (parent_pid, is_zombie, vm_bytes) = (stat.parent_pid, stat.is_zombie, stat.vm_bytes);
        let rss_bytes = stat.rss_pages.saturating_mul(self.page_bytes);
        if !unchanged {
            let (name, start_ticks, arg_start) =
                (Arc::from(String::from_utf8_lossy(stat.name)), stat.start_ticks, stat.arg_start);
            self.learn(pid, start_ticks, name, arg_start);
        }
        let look = self.look;
        let known = self.known.get_mut(&pid)?;
        known.look = look;
        known.is_inside.then(|| Observed {
            key: ProcessKey { pid: known.pid, start_ticks: known.start_ticks },
            parent_pid,
            name: Arc::clone(&known.name),
            cmdline: Arc::clone(&known.cmdline),
            vm_bytes,
            rss_bytes,
            is_zombie,
        })
    }

    /// Reads what seldom changes.
    fn learn(&mut self, pid: u32, start_ticks: u64, name: Arc<str>, arg_start: u64) {
        let is_inside = self.is_inside(pid);
        let cmdline = if is_inside { self.cmdline(pid) } else { Cmdline::default() };
        let known = Known { pid, start_ticks, name, arg_start, cmdline: Arc::new(cmdline), is_inside, look: self.look };
        self.known.insert(pid, known);
    }

    fn is_inside(&mut self, pid: u32) -> bool {
        let Some(fence) = self.fence.clone() else { return true };
        let Some(length) = self.read(pid, "cgroup", CMDLINE_BYTES) else { return false };
        self.buffer.get(..length).is_some_and(|text| fence.lets_in(&String::from_utf8_lossy(text)))
    }

    fn cmdline(&mut self, pid: u32) -> Cmdline {
        // One byte more shows that there is more.
        let length = self.read(pid, "cmdline", CMDLINE_BYTES + 1).unwrap_or(0);
        let bytes = self.buffer.get(..length.min(CMDLINE_BYTES)).unwrap_or_default();
        Cmdline { bytes: bytes.to_vec(), is_cut: length > CMDLINE_BYTES }
    }

    /// Reads a file of a process into the buffer; `None` when the process is gone or not ours to see.
    fn read(&mut self, pid: u32, file: &str, limit: usize) -> Option<usize> {
        use std::fmt::Write as _;
        self.path.clear();
        write!(self.path, "{pid}/{file}").ok()?;
        let opened = openat(self.proc.as_fd(), self.path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let opened = opened.ok()?;
        let mut filled = 0;
        while filled < limit {
            match read(&opened, self.buffer.get_mut(filled..limit)?) {
                // A stat or cgroup file comes in one piece; the end of a cmdline is another read away.
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(nix::Error::EINTR) => {}
                Err(_) => return None,
            }
            if file == "stat" {
                break;
            }
        }
        Some(filled)
    }
}

/// How many processes there are, and what a look at them takes when their cmdlines are known already.
///
/// # Errors
/// When the folder cannot be read.
pub fn time_look(root: &ProcRoot) -> io::Result<(usize, Duration)> {
    let mut scanner = Scanner::open(root, None)?;
    scanner.scan()?;
    let began = Instant::now();
    let processes = scanner.scan()?.processes.len();
    Ok((processes, began.elapsed()))
}

/// The fields of `/proc/PID/stat` that we use (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat<'a> {
    name: &'a [u8],
    parent_pid: u32,
    is_zombie: bool,
    start_ticks: u64,
    vm_bytes: u64,
    rss_pages: u64,
    /// 0 to whom it is none of their business.
    arg_start: u64,
}

impl<'a> Stat<'a> {
    /// The name may hold anything, parentheses and newlines too: it ends at the last one.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let name = line.get(open + 1..close)?;
        // Behind the name: the state is field 3.
        let mut fields = line.get(close + 1..)?.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let state = fields.next()?;
        let parent_pid = number(fields.next()?)?;
        let start_ticks = number(fields.nth(22 - 5)?)?;
        let vm_bytes = number(fields.next()?)?;
        let rss_pages = number(fields.next()?).unwrap_or(0);
        let arg_start = fields.nth(48 - 25).and_then(number).unwrap_or(0);
        let parent_pid = u32::try_from(parent_pid).ok()?;
        let is_zombie = matches!(state, b"Z" | b"X");
        Some(Self { name, parent_pid, is_zombie, start_ticks, vm_bytes, rss_pages, arg_start })
    }
}

/// A number without a sign; `None` for anything else.
fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use super::*;

    /// A made-up stat line; fields that nobody reads are 0.
    fn stat(pid: u32, name: &[u8], state: &str, parent: u32, start: u64, rss: u64) -> Vec<u8> {
        let mut line = format!("{pid} (").into_bytes();
        line.extend(name);
        line.extend(format!(") {state} {parent}").bytes());
        line.extend(" 0".repeat(17).bytes());
        line.extend(format!(" {start} 8192 {rss}").bytes());
        line.extend(" 0".repeat(23).bytes());
        line.extend(b" 77 0 0 0 0\n");
        line
    }

    fn add(root: &Path, pid: u32, stat: &[u8], cmdline: &[u8]) {
        let folder = root.join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("stat"), stat).unwrap();
        fs::write(folder.join("cmdline"), cmdline).unwrap();
    }

    fn scan(scanner: &mut Scanner) -> Vec<Observed> {
        let mut processes = scanner.scan().unwrap().processes;
        processes.sort_by_key(|process| process.key);
        processes
    }

    #[test]
    fn fields_are_found_behind_any_name() {
        for name in [&b"cat"[..], b"a) R 1 (b", b"two\nlines", b"\xff\xfe", b""] {
            let line = stat(7, name, "S", 3, 99, 5);
            let parsed = Stat::parse(&line).unwrap();
            let expected = Stat {
                name,
                parent_pid: 3,
                is_zombie: false,
                start_ticks: 99,
                vm_bytes: 8192,
                rss_pages: 5,
                arg_start: 77,
            };
            assert_eq!(parsed, expected);
        }
        for garbled in [&b""[..], b"7", b"7 (cat", b"7 (cat) S", b"7 (cat) S x 0 0", b") ("] {
            assert_eq!(Stat::parse(garbled), None, "{garbled:?}");
        }
    }

    #[test]
    fn what_the_kernel_says_of_this_process_is_understood() {
        let mut scanner = Scanner::open(&ProcRoot::default(), None).unwrap();
        let own = std::process::id();
        let processes = scan(&mut scanner);
        let process = processes.iter().find(|process| process.key.pid == own).unwrap();
        let exe = std::env::args_os().next().unwrap();
        assert!(process.cmdline.bytes.starts_with(exe.as_bytes()));
        assert!(process.rss_bytes > 0 && process.vm_bytes >= process.rss_bytes && !process.is_zombie);
        assert_eq!(process.parent_pid, std::os::unix::process::parent_id());
    }

    #[test]
    fn a_cmdline_is_read_again_only_with_another_program() {
        let root = tempfile::tempdir().unwrap();
        add(root.path(), 5, &stat(5, b"sh", "S", 1, 50, 1), b"sh\0-c\0");
        let mut scanner = Scanner::open(&ProcRoot::at(root.path()), None).unwrap();
        let first = scan(&mut scanner);
        assert_eq!((first[0].cmdline.bytes.as_slice(), first[0].rss_bytes), (&b"sh\0-c\0"[..], scanner.page_bytes));
        add(root.path(), 5, &stat(5, b"sh", "Z", 1, 50, 2), b"unseen\0");
        let second = scan(&mut scanner);
        assert!(Arc::ptr_eq(&first[0].cmdline, &second[0].cmdline) && second[0].is_zombie);
        add(root.path(), 5, &stat(5, b"tail", "R", 1, 50, 2), b"tail\0");
        assert_eq!(scan(&mut scanner)[0].cmdline.bytes, b"tail\0");
        // The same pid, another process.
        add(root.path(), 5, &stat(5, b"tail", "R", 1, 51, 2), b"new\0");
        assert_eq!(scan(&mut scanner)[0].cmdline.bytes, b"new\0");
    }

    #[test]
    fn what_is_odd_is_left_out_or_cut() {
        let root = tempfile::tempdir().unwrap();
        add(root.path(), 5, &stat(5, b"long", "S", 1, 50, 1), &b"x".repeat(100_000));
        add(root.path(), 6, b"garbled", b"");
        fs::create_dir(root.path().join("7")).unwrap();
        fs::write(root.path().join("8"), "a file").unwrap();
        fs::create_dir(root.path().join("self")).unwrap();
        let mut scanner = Scanner::open(&ProcRoot::at(root.path()), None).unwrap();
        let processes = scan(&mut scanner);
        assert_eq!(processes.len(), 1);
        assert!(processes[0].cmdline.is_cut && processes[0].cmdline.bytes.len() == CMDLINE_BYTES);
        fs::remove_dir_all(root.path().join("5")).unwrap();
        assert_eq!(scan(&mut scanner), []);
        assert!(scanner.known.is_empty());
    }

    #[test]
    fn a_fence_keeps_others_out() {
        let fence = Fence { controller: "memory".into(), path: "/a/b".into() };
        assert!(fence.lets_in("5:cpu:/x\n4:memory:/a/b\n0::/\n"));
        assert!(fence.lets_in("4:hugetlb,memory:/a/b/c"));
        assert!(!fence.lets_in("4:memory:/a/bc"));
        assert!(!fence.lets_in("4:memory:/a"));
        assert!(!fence.lets_in("0::/a/b"));
        let fence = Fence { controller: String::new(), path: "/".into() };
        assert!(fence.lets_in("0::/anything") && fence.lets_in("0::/"));

        let root = tempfile::tempdir().unwrap();
        for (pid, path) in [(5, "/a/b"), (6, "/other")] {
            add(root.path(), pid, &stat(pid, b"p", "S", 1, 50, 1), b"p\0");
            fs::write(root.path().join(format!("{pid}/cgroup")), format!("1:memory:{path}\n")).unwrap();
        }
        let fence = Fence { controller: "memory".into(), path: "/a/b".into() };
        let mut scanner = Scanner::open(&ProcRoot::at(root.path()), Some(fence)).unwrap();
        let pids: Vec<u32> = scan(&mut scanner).iter().map(|process| process.key.pid).collect();
        assert_eq!(pids, [5]);
    }
}
