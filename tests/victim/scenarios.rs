//! The scenarios of the OOM matrix and the OOM suites, one function each.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::hint::black_box;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, execve, getpid};

use super::eat::{announce, eat, own_pid, print_event};
use super::raw;
use super::started::Started;

const SHORT: Duration = Duration::from_millis(1);

/// The kernel updates the RSS of a thread only every 64 pages (`TASK_RSS_EVENTS_THRESH`, mm/memory.c
/// before 6.2), or in per-CPU batches since.
const UNCOUNTED_KIB: u64 = 512;

/// A second thread allocates while the first one waits for it.
pub(crate) fn thread_eat(mib: usize) {
    announce("victim");
    thread::spawn(move || drop(black_box(eat(mib)))).join().expect("the thread ends");
}

/// The first thread exits, then another one allocates.
pub(crate) fn leader_gone(mib: usize) {
    announce("victim");
    let leader = format!("/proc/self/task/{}/stat", own_pid());
    thread::spawn(move || {
        // The state follows the comm (proc(5)).
        while !fs::read_to_string(&leader).expect("a thread that is not reaped").contains(") Z ") {
            thread::sleep(SHORT);
        }
        announce("leader-gone");
        drop(black_box(eat(mib)));
        process::exit(0);
    });
    raw::end_thread()
}

/// Sends SIGKILL many times to a child that has exited and has not been waited for.
pub(crate) fn kill_zombie(times: usize) {
    let mut zombie = Command::new("true").spawn().expect("true starts");
    let pid = Pid::from_raw(i32::try_from(zombie.id()).expect("a pid"));
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("it exits");
    for _ in 0..times {
        kill(pid, Signal::SIGKILL).expect("a signal to a zombie");
    }
    zombie.wait().expect("it can be waited for");
}

/// Allocates while another process shares the memory.
pub(crate) fn clone_vm(mib: usize) {
    print_event("sharer", raw::share_memory());
    announce("victim");
    drop(black_box(eat(mib)));
}

/// The grandchild allocates after its parent has exited.
pub(crate) fn orphan(mib: usize) {
    prctl::set_child_subreaper(true).expect("subreaper");
    announce("first");
    Started::victim(&["middle".to_owned(), mib.to_string()]).print_exit();
    // Only the orphan is left.
    match waitpid(None, None).expect("an orphan") {
        WaitStatus::Signaled(pid, nix::sys::signal::Signal::SIGKILL, _) => {
            print_event("killed", pid.as_raw().unsigned_abs());
        }
        other => print_event("exited", other.pid().expect("a pid").as_raw().unsigned_abs()),
    }
}

/// The parent of the orphan, which exits at once.
pub(crate) fn middle(mib: usize) {
    announce("middle");
    let own = getpid().to_string();
    // Deliberately not waited for.
    let _orphan = Started::victim(&["eat", &mib.to_string(), "--unless-child-of", &own]);
}

/// All processes but the last hold their memory; the last allocates more.
pub(crate) fn group(specs: &[OsString]) {
    let mut holders = Vec::new();
    let (last, first) = specs.split_last().expect("at least one member");
    for spec in first {
        holders.push(member(spec, true));
    }
    let mut last = member(last, false);
    last.go();
    last.print_exit();
    for holder in holders {
        holder.print_exit();
    }
}

/// Starts a member of a group. A holder has allocated when this returns.
fn member(spec: &OsStr, holds: bool) -> Started {
    let spec = spec.to_str().expect("ROLE=MIB[:ADJ]");
    let (role, rest) = spec.split_once('=').expect("ROLE=MIB[:ADJ]");
    let (mib, adj) = rest.split_once(':').unwrap_or((rest, "0"));
    let mut args = vec!["eat", mib, "--role", role, "--name", role];
    if adj != "0" {
        args.extend(["--adj", adj]);
    }
    args.push(if holds { "--hold" } else { "--wait" });
    let member = Started::victim(&args);
    let mib: u64 = mib.parse().expect("MIB");
    while holds && resident_kib(member.pid()).is_some_and(|kib| kib + UNCOUNTED_KIB < mib * 1024) {
        thread::sleep(SHORT);
    }
    member
}

/// `None` if the process has exited.
fn resident_kib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// One process allocates at this age, while others start and exit before, during and after.
pub(crate) fn bystanders(count: usize, mib: usize, age: Duration) {
    let look_on = |_| Started::victim(&["eat", "0", "--role", "bystander", "--wait"]);
    let mut waiting: Vec<_> = (0..count).map(look_on).collect();
    let mut hog = Started::victim(&["eat", &mib.to_string(), "--wait"]);
    thread::sleep(age);
    hog.go();
    for (index, bystander) in waiting.iter_mut().enumerate() {
        if index % 2 == 0 {
            bystander.go();
        }
    }
    hog.print_exit();
    for bystander in waiting {
        bystander.print_exit();
    }
}

/// A process in a nested PID namespace, not its init, allocates.
pub(crate) fn nested_pidns(mib: usize) {
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let init = Started::victim(&["eat", "0", "--role", "init", "--hold"]);
    let mut hog = Started::victim(&["eat", &mib.to_string(), "--wait"]);
    hog.go();
    hog.print_exit();
    init.print_exit();
}

/// The init of a PID namespace allocates. The kernel then also kills the others, which are not OOM victims.
pub(crate) fn nested_init(mib: usize) {
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let mut hog = Started::victim(&["eat", &mib.to_string(), "--wait"]);
    let siblings: Vec<_> = (0..3).map(|_| Started::victim(&["eat", "0", "--role", "sibling", "--hold"])).collect();
    hog.go();
    // In this order, because init is not gone before the others have been reaped.
    siblings.into_iter().for_each(Started::print_own_exit);
    hog.print_exit();
}

/// Starts three processes with the same PID: one that exits and two that allocate. Each moves itself into the cgroup of this
/// file. Needs a PID namespace in which no other process forks.
pub(crate) fn pid_reuse(mib: usize, procs_file: &OsStr) {
    // Start times have a resolution of 10 ms (proc(5)). In practice a PID is not reused sooner.
    const TICKS: Duration = Duration::from_millis(30);
    // Derived from our PID, so that each run uses another one: if we are killed too, the previous process may never be reaped.
    let pid = 3000 + std::process::id();
    let mib = mib.to_string();
    for (name, mib) in [("early", "0"), ("second", &mib), ("third", &mib)] {
        loop {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("ns_last_pid");
            let mut started = moved(procs_file, &["eat", mib, "--wait", "--name", name, "--role", name]);
            let is_it = started.pid() == pid;
            if is_it {
                started.go();
            }
            started.print_exit();
            thread::sleep(TICKS);
            if is_it {
                break;
            }
        }
    }
}

/// Starts `count` processes that allocate, at most `at_once` at a time. Each moves itself into the cgroup of this file.
pub(crate) fn many(count: usize, at_once: usize, mib: usize, procs_file: &OsStr) {
    let mut left = count;
    while left > 0 {
        let batch = left.min(at_once);
        let started: Vec<_> = (0..batch).map(|_| moved(procs_file, &["eat", &mib.to_string()])).collect();
        started.into_iter().for_each(Started::print_exit);
        left -= batch;
    }
}

/// Starts this program in the cgroup of this file, so that the starter is not killed with it.
fn moved(procs_file: &OsStr, args: &[&str]) -> Started {
    let mut command = Command::new("sh");
    command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(procs_file);
    command.arg(fs::read_link("/proc/self/exe").expect("/proc is mounted")).args(args);
    Started::of(command)
}

/// Allocates without a command line: either it has none from the start, or it overwrites it.
pub(crate) fn bare(kind: &OsStr, mib: usize) {
    if kind == "wiped" {
        wipe_arguments();
        announce("victim");
        drop(black_box(eat(mib)));
        return;
    }
    let own = fs::read_link("/proc/self/exe").expect("/proc is mounted");
    let own = CString::new(own.as_os_str().as_bytes()).expect("a path has no NUL");
    let args = CString::new(format!("{}=eat\n{mib}", super::ARGS_VARIABLE)).expect("no NUL");
    let none: [CString; 0] = [];
    let never: Result<Infallible, _> = execve(&own, &none, &[args]);
    panic!("execve: {never:?}");
}

/// Overwrites our own arguments with NUL at the addresses from which the kernel reads them (fields 48 and 49, proc(5)).
fn wipe_arguments() {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let (_, after_comm) = stat.rsplit_once(") ").expect("a comm");
    // The first field after the comm is the third.
    let field = |number: usize| -> u64 {
        after_comm.split(' ').nth(number - 3).and_then(|text| text.trim().parse().ok()).expect("an address")
    };
    let (start, end) = (field(48), field(49));
    let mut memory = fs::OpenOptions::new().write(true).open("/proc/self/mem").expect("our own memory");
    memory.seek(SeekFrom::Start(start)).expect("an address");
    memory.write_all(&vec![0; usize::try_from(end - start).expect("a length")]).expect("our own memory");
}

/// Executes a program for which bpf(2) fails.
pub(crate) fn no_bpf(args: &[OsString]) {
    raw::forbid_bpf();
    become_program(args);
}

/// Executes a program for which `prctl(PR_GET_AUXV)` fails.
pub(crate) fn no_auxv(args: &[OsString]) {
    raw::forbid_auxv();
    become_program(args);
}

/// Executes a program that cannot acquire this capability.
pub(crate) fn no_capability(capability: usize, args: &[OsString]) {
    raw::drop_capability(capability as u64);
    become_program(args);
}

fn become_program(args: &[OsString]) {
    let error = Command::new(&args[0]).args(&args[1..]).exec();
    panic!("{}: {error}", args[0].display());
}
