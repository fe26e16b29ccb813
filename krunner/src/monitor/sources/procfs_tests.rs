//! Fake trees, and the real `/proc`.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::monitor::model::process::Cmdline;
use std::path::PathBuf;

use super::*;

/// A folder that looks like `/proc`.
pub(super) struct Tree {
    folder: TempDir,
}

/// A process of a [`Tree`]; the rest of its stat line is 0.
#[derive(Clone, Copy)]
pub(super) struct Fake {
    pub(super) comm: &'static [u8],
    pub(super) state: char,
    pub(super) threads: u32,
    pub(super) start_ticks: u64,
    pub(super) vm_bytes: u64,
    pub(super) rss_pages: i64,
    /// -1 makes it a thread.
    pub(super) exit_signal: i32,
    pub(super) arg_start: u64,
    pub(super) exit_code: u32,
    pub(super) flags: u32,
    /// Signals, as a bit map.
    pub(super) pending: u32,
}

pub(super) const SHELL: Fake = Fake {
    comm: b"sh",
    state: 'S',
    threads: 1,
    start_ticks: 50,
    vm_bytes: 8192,
    rss_pages: 1,
    exit_signal: 17,
    arg_start: 700,
    exit_code: 0,
    flags: 0x40_0000,
    pending: 0,
};

impl Fake {
    fn line(&self, pid: u32, parent: u32) -> Vec<u8> {
        // Numbered as in proc(5); the comm is the second.
        let mut fields = vec!["0".to_owned(); 53];
        let mut set = |number: usize, value: &dyn ToString| fields[number] = value.to_string();
        set(3, &self.state);
        set(4, &parent);
        set(9, &self.flags);
        set(20, &self.threads);
        set(22, &self.start_ticks);
        set(23, &self.vm_bytes);
        set(24, &self.rss_pages);
        set(31, &self.pending);
        set(38, &self.exit_signal);
        set(48, &self.arg_start);
        set(52, &self.exit_code);
        let comm_and_rest = [self.comm, b") ", fields[3..].join(" ").as_bytes(), b"\n"].concat();
        [format!("{pid} (").as_bytes(), &comm_and_rest].concat()
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn scanner(&self) -> Scanner {
        Scanner::new(ProcRoot::new(self.folder.path()), None).unwrap()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(super) fn put(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn process(&self, pid: u32, parent: u32, fake: Fake, cmdline: &[u8]) {
        self.put(&format!("{pid}/stat"), &fake.line(pid, parent));
        self.put(&format!("{pid}/cmdline"), cmdline);
    }
}

pub(super) fn one(scanner: &mut Scanner) -> ProcessSample {
    let mut processes = scanner.scan().unwrap().processes;
    assert_eq!(processes.len(), 1, "{processes:?}");
    processes.remove(0)
}

#[test]
fn a_process_is_read_with_all_that_is_asked_for() {
    let tree = Tree::new();
    tree.process(42, 7, SHELL, b"sh\0-c\0true\0");
    let mut scanner = tree.scanner();
    let observed = one(&mut scanner);
    let cmdline = Cmdline { bytes: b"sh\0-c\0true\0".to_vec(), is_cut: false };
    assert_eq!(
        observed,
        ProcessSample {
            key: ProcessKey { pid: 42, start_ticks: 50 },
            parent_pid: 7,
            name: "sh".into(),
            cmdline: Arc::new(cmdline),
            first_cmdline: None,
            vm_bytes: 8192,
            rss_bytes: scanner.page_bytes,
            oom_score_adj: 0,
            is_zombie: false,
            is_leaving: false,
            end: None,
        }
    );
}

#[test]
fn exiting_processes_are_recognized() {
    let tree = Tree::new();
    let mut scanner = tree.scanner();
    let sigterm_or_kill = 1 << 8;
    for (flags, pending, is_leaving) in [
        (0x40_0000, 0, false),
        (0x40_0000, 1 << 14, false),
        (0x40_0000, sigterm_or_kill, true),
        (0x40_0400, 0, true),
        (0x40_0004, 0, true),
    ] {
        tree.process(42, 7, Fake { flags, pending, ..SHELL }, b"x\0");
        let observed = one(&mut scanner);
        assert_eq!((observed.is_leaving, observed.end), (is_leaving, None), "{flags:#x} {pending:#x}");
    }
}

#[test]
fn odd_names_are_data() {
    for (comm, name) in [(&b"a) S 1 (b"[..], "a) S 1 (b"), (b"x\ny", "x\ny"), (b"\xff)", "\u{fffd})"), (b"", "")] {
        let tree = Tree::new();
        tree.process(42, 7, Fake { comm, ..SHELL }, b"x\0");
        let mut scanner = tree.scanner();
        assert_eq!((&*one(&mut scanner).name, one(&mut scanner).parent_pid), (name, 7));
    }
}

#[test]
fn what_is_no_process_is_left_out() {
    let tree = Tree::new();
    tree.process(42, 7, SHELL, b"x\0");
    for (pid, content) in
        [(1, &b""[..]), (2, b"garbled"), (3, b"3 (x"), (4, b"4 (x) S 1 2"), (5, b") 5 ("), (6, b"6 (x)")]
    {
        tree.put(&format!("{pid}/stat"), content);
    }
    tree.put("8/other", b"");
    tree.put("self/stat", &SHELL.line(9, 1));
    tree.put("99999999999/stat", &SHELL.line(9, 1));
    assert_eq!(one(&mut tree.scanner()).key.pid, 42);
}

#[test]
fn an_exec_begins_a_new_cmdline() {
    let tree = Tree::new();
    tree.process(42, 7, SHELL, b"first\0");
    let mut scanner = tree.scanner();
    let first = one(&mut scanner).cmdline;
    assert!(Arc::ptr_eq(&first, &one(&mut scanner).cmdline));
    tree.process(42, 7, Fake { arg_start: 701, ..SHELL }, b"second\0");
    assert_eq!(one(&mut scanner).cmdline.bytes, b"second\0");
    tree.process(42, 7, Fake { arg_start: 701, comm: b"new", ..SHELL }, b"third\0");
    assert_eq!(one(&mut scanner).cmdline.bytes, b"third\0");
    tree.process(42, 7, Fake { arg_start: 701, comm: b"new", start_ticks: 60, ..SHELL }, b"fourth\0");
    assert_eq!(one(&mut scanner).cmdline.bytes, b"fourth\0");
}

#[test]
fn a_zombie_keeps_its_arguments_and_an_ended_leader_is_none() {
    let tree = Tree::new();
    let ended = Fake { state: 'Z', vm_bytes: 0, rss_pages: 0, arg_start: 0, ..SHELL };
    tree.process(42, 7, SHELL, b"sh\0");
    let mut scanner = tree.scanner();
    one(&mut scanner);
    tree.process(42, 7, Fake { threads: 2, ..ended }, b"");
    tree.put("42/task/42/stat", &ended.line(42, 7));
    tree.put("42/task/43/stat", &Fake { rss_pages: 9, start_ticks: 55, ..SHELL }.line(43, 7));
    let leaderless = one(&mut scanner);
    assert_eq!((leaderless.is_zombie, leaderless.rss_bytes), (false, 9 * scanner.page_bytes));
    assert_eq!((leaderless.key.start_ticks, &leaderless.cmdline.bytes[..]), (50, &b"sh\0"[..]));
    tree.process(42, 7, ended, b"");
    let zombie = one(&mut scanner);
    assert!(zombie.is_zombie);
    assert_eq!(zombie.cmdline.bytes, b"sh\0");
}

#[test]
fn long_cmdlines_are_cut_and_all_together_bounded() {
    let tree = Tree::new();
    let processes = 2 * u32::try_from(CACHE_BYTES / CMDLINE_BYTES).unwrap();
    for pid in 1..=processes {
        tree.process(pid, 1, SHELL, &vec![b'x'; CMDLINE_BYTES + pid as usize]);
    }
    let mut scanner = tree.scanner();
    let snapshot = scanner.scan().unwrap();
    assert!(snapshot.processes.iter().all(|observed| observed.cmdline.is_cut));
    assert_eq!(snapshot.processes[0].cmdline.bytes.len(), CMDLINE_BYTES);
    let kept: usize = snapshot.processes.iter().map(|observed| observed.cmdline.bytes.len()).sum();
    assert_eq!(kept, CACHE_BYTES + (processes as usize - CACHE_BYTES / CMDLINE_BYTES) * SHORT_CMDLINE_BYTES);
    assert_eq!(scanner.cmdline_bytes, kept);
    fs::remove_dir_all(tree.folder.path().join("1")).unwrap();
    scanner.scan().unwrap();
    assert_eq!(scanner.cmdline_bytes, kept - CMDLINE_BYTES);
    assert_eq!(scanner.remembered.len(), processes as usize - 1, "who is gone is forgotten");
}

#[test]
fn idle_processes_are_read_in_turns_and_others_always() {
    let tree = Tree::new();
    let idle = 3 * u32::try_from(IDLE_READS).unwrap();
    let put = |pid, rss_pages| tree.process(pid, 1, Fake { rss_pages, ..SHELL }, b"x\0");
    (1..=idle).for_each(|pid| put(pid, 1));
    let mut scanner = tree.scanner();
    for _ in 0..=IDLE_AFTER {
        scanner.scan().unwrap();
    }
    let fresh = |snapshot: &Snapshot, bytes| snapshot.processes.iter().filter(|it| it.rss_bytes == bytes).count();
    let two_pages = 2 * scanner.page_bytes;
    (1..=idle).for_each(|pid| put(pid, 2));
    // The pid in other hands, and a new one: seen at once. A folder in the place of another has another inode.
    put(idle + 1, 7);
    tree.put("new/stat", &Fake { rss_pages: 7, start_ticks: 60, ..SHELL }.line(idle, 1));
    fs::remove_dir_all(tree.folder.path().join(idle.to_string())).unwrap();
    fs::rename(tree.folder.path().join("new"), tree.folder.path().join(idle.to_string())).unwrap();
    for turn in 1..=3 {
        let snapshot = scanner.scan_in_turns().unwrap();
        assert_eq!(snapshot.processes.len(), idle as usize + 1);
        assert_eq!(fresh(&snapshot, 7 * scanner.page_bytes), 2);
        assert_eq!(fresh(&snapshot, two_pages), (turn * IDLE_READS).min(idle as usize - 1), "turn {turn}");
    }
}

#[test]
fn every_idle_process_has_its_turn() {
    let tree = Tree::new();
    let idle = 3 * u32::try_from(IDLE_READS).unwrap();
    (1..=idle).for_each(|pid| tree.process(pid, 1, SHELL, b"x\0"));
    let mut scanner = tree.scanner();
    for _ in 0..=IDLE_AFTER {
        scanner.scan().unwrap();
    }
    tree.process(idle, 1, Fake { rss_pages: 2, ..SHELL }, b"x\0");
    let sizes = |snapshot: &Snapshot| snapshot.processes.iter().map(|observed| observed.rss_bytes).max();
    let page_bytes = scanner.page_bytes;
    let turns: Vec<_> = (0..3).map(|_| sizes(&scanner.scan_in_turns().unwrap())).collect();
    assert_eq!(turns.last(), Some(&Some(2 * page_bytes)), "{turns:?}");
    // From then on it is among those that are read each time.
    tree.process(idle, 1, Fake { rss_pages: 3, ..SHELL }, b"x\0");
    assert_eq!(sizes(&scanner.scan_in_turns().unwrap()), Some(3 * page_bytes));
}

#[test]
fn a_full_scan_reads_idle_processes() {
    let tree = Tree::new();
    tree.process(42, 7, SHELL, b"x\0");
    let mut scanner = tree.scanner();
    for _ in 0..10 {
        scanner.scan().unwrap();
    }
    tree.process(42, 7, Fake { state: 'Z', ..SHELL }, b"x\0");
    assert!(one(&mut scanner).is_zombie);
}

#[test]
fn one_process_can_be_asked_for() {
    let tree = Tree::new();
    let root = ProcRoot::new(tree.folder.path());
    let key = ProcessKey { pid: 42, start_ticks: SHELL.start_ticks };
    assert!(!root.has(key));
    tree.process(42, 7, SHELL, b"x\0");
    assert!(root.has(key) && !root.has(ProcessKey { start_ticks: 51, ..key }));
    tree.process(42, 7, Fake { state: 'Z', threads: 2, ..SHELL }, b"x\0");
    assert!(root.has(key), "other threads go on");
    tree.process(42, 7, Fake { state: 'Z', ..SHELL }, b"x\0");
    assert!(!root.has(key));
}

#[test]
fn a_root_that_is_not_there_is_an_error() {
    assert!(Scanner::new(ProcRoot::new("/nonexistent"), None).is_err());
}

#[test]
fn the_real_proc_has_us_and_our_child() {
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let snapshot = Scanner::new(ProcRoot::default(), None).unwrap().scan().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let find = |pid: u32| snapshot.processes.iter().find(|observed| observed.key.pid == pid).unwrap();
    let (us, sleep) = (find(std::process::id()), find(child.id()));
    assert_eq!((sleep.parent_pid, us.is_zombie), (us.key.pid, false));
    assert!(us.rss_bytes > 1 << 20 && us.vm_bytes > us.rss_bytes);
    assert!(us.key.start_boot_ns() <= sleep.key.start_boot_ns());
    assert!(sleep.key.start_boot_ns() <= snapshot.at_boot_ns);
    let arguments = fs::read("/proc/self/cmdline").unwrap();
    assert_eq!(us.cmdline.bytes, arguments[..arguments.len().min(CMDLINE_BYTES)]);
}

proptest! {
    #[test]
    fn any_line_is_read_or_refused(line in prop::collection::vec(any::<u8>(), 0..300)) {
        Stat::parse(&line);
    }

    #[test]
    fn a_cut_line_is_never_misread(cut in 0usize..200, comm in "[ -~]{0,15}") {
        let comm: &'static [u8] = comm.into_bytes().leak();
        let line = Fake { comm, ..SHELL }.line(42, 7);
        let (_, whole) = Stat::parse(&line).unwrap();
        if let Some((_, stat)) = Stat::parse(&line[..cut.min(line.len())]) {
            prop_assert_eq!(stat.start_ticks, whole.start_ticks);
            prop_assert_eq!(stat.parent_pid, whole.parent_pid);
        }
    }
}

#[test]
fn cgroup_filter_excludes_other_cgroups() {
    let cgroup_filter =
        |controller: &str, path: &str| CgroupFilter { controller: controller.into(), path: path.into(), dir: None };
    let memory = cgroup_filter("memory", "/a/b");
    assert!(memory.contains("5:cpu:/x\n4:memory:/a/b\n0::/\n"));
    assert!(memory.contains("4:hugetlb,memory:/a/b/c"));
    for outside in ["4:memory:/a/bc", "4:memory:/a", "0::/a/b", ""] {
        assert!(!memory.contains(outside), "{outside}");
    }
    assert!(cgroup_filter("", "/").contains("0::/anything") && cgroup_filter("", "/").contains("0::/"));
    assert!(
        !cgroup_filter("", "/").contains("0::/../other") && !cgroup_filter("", "/").contains("0::/.."),
        "beside our namespace"
    );
    assert!(
        cgroup_filter("", "/../own").contains("0::/../own/x")
            && !cgroup_filter("", "/../own").contains("0::/../own/../other")
    );

    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let inside = Scanner::new(ProcRoot::default(), Some(cgroup_filter("", path))).unwrap().scan().unwrap();
    assert!(inside.processes.iter().any(|process| process.key.pid == std::process::id()));
    let none = Scanner::new(ProcRoot::default(), Some(cgroup_filter("", "/no such cgroup"))).unwrap().scan().unwrap();
    assert_eq!(none.processes, []);
}

/// Of a machine, only the members of our cgroup are read: 9 would pass the filter as well, but is not listed. 8 has left, and
/// still belongs to its starter.
#[test]
fn members_of_the_cgroup_are_listed_in_place_of_all_processes() {
    let tree = Tree::new();
    for (pid, cgroup) in [(7, "/own"), (8, "/own/inner"), (9, "/own")] {
        tree.process(pid, 1, SHELL, b"sh\0");
        tree.put(&format!("{pid}/task/{pid}/cgroup"), format!("0::{cgroup}\n").as_bytes());
    }
    tree.put("cgroup/cgroup.procs", b"7\n6\n");
    tree.put("cgroup/inner/cgroup.procs", b"8\n");
    let filter = CgroupFilter { dir: Some(tree.path("cgroup")), ..CgroupFilter::new(2, "/own") };
    let mut scanner = Scanner::new(ProcRoot::new(tree.folder.path()), Some(filter)).unwrap();
    let mut pids = || scanner.scan().unwrap().processes.iter().map(|process| process.key.pid).collect::<Vec<_>>();
    assert_eq!(pids(), [7, 8]);

    tree.put("cgroup/inner/cgroup.procs", b"");
    tree.put("8/task/8/cgroup", b"0::/beside\n");
    assert_eq!(pids(), [7, 8]);

    fs::remove_dir_all(tree.path("cgroup")).unwrap();
    assert_eq!(pids(), [7, 8, 9], "without the cgroup's files, all are listed");
}
