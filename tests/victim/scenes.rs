//! Who eats, who holds, who looks on: one function for each scene of the battery.

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
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{execve, getpid};

use super::eat::{eat, own_pid, tell, tell_of};
use super::raw;
use super::started::Started;

const SHORT: Duration = Duration::from_millis(1);

/// The kernel sums up what a thread has taken from time to time only: every 64 pages (`TASK_RSS_EVENTS_THRESH`, mm/memory.c
/// before 6.2), or in batches for each processor since.
const UNCOUNTED_KIB: u64 = 512;

/// A thread that is not the first one eats, while the first one only waits for it.
pub(crate) fn thread_eat(mib: usize) {
    tell("victim");
    thread::spawn(move || drop(black_box(eat(mib)))).join().expect("the thread ends");
}

/// The first thread ends, then another one eats.
pub(crate) fn leader_gone(mib: usize) {
    tell("victim");
    let leader = format!("/proc/self/task/{}/stat", own_pid());
    thread::spawn(move || {
        // Its own state is what follows the comm (proc(5)).
        while !fs::read_to_string(&leader).expect("a thread that nobody waits for").contains(") Z ") {
            thread::sleep(SHORT);
        }
        tell("leader-gone");
        drop(black_box(eat(mib)));
        process::exit(0);
    });
    raw::end_thread()
}

/// Eats while another process shares the memory.
pub(crate) fn clone_vm(mib: usize) {
    tell_of("sharer", raw::share_memory());
    tell("victim");
    drop(black_box(eat(mib)));
}

/// The grandchild eats when its parent is gone.
pub(crate) fn orphan(mib: usize) {
    prctl::set_child_subreaper(true).expect("subreaper");
    tell("first");
    Started::victim(&["middle".to_owned(), mib.to_string()]).tell_end();
    // What is left is the orphan.
    match waitpid(None, None).expect("an orphan") {
        WaitStatus::Signaled(pid, nix::sys::signal::Signal::SIGKILL, _) => {
            tell_of("killed", pid.as_raw().unsigned_abs());
        }
        other => tell_of("exited", other.pid().expect("a pid").as_raw().unsigned_abs()),
    }
}

/// The parent that dies.
pub(crate) fn middle(mib: usize) {
    tell("middle");
    let own = getpid().to_string();
    // Nobody waits for it here: that is the point.
    let _orphan = Started::victim(&["eat", &mib.to_string(), "--unless-child-of", &own]);
}

/// Processes of which all but the last hold what they have eaten; the last asks for more.
pub(crate) fn crowd(specs: &[OsString]) {
    let mut holders = Vec::new();
    let (last, first) = specs.split_last().expect("a crowd");
    for spec in first {
        holders.push(member(spec, true));
    }
    let mut last = member(last, false);
    last.go();
    last.tell_end();
    for holder in holders {
        holder.tell_end();
    }
}

/// One of a crowd. A holder has eaten when this returns.
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

/// `None` when it is gone.
fn resident_kib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// One eats when it is so old, and before, beside and after it others come and go.
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
    hog.tell_end();
    for bystander in waiting {
        bystander.tell_end();
    }
}

/// In a pid namespace of its own, but not as its first process, one eats.
pub(crate) fn nested_pidns(mib: usize) {
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let init = Started::victim(&["eat", "0", "--role", "init", "--hold"]);
    let mut hog = Started::victim(&["eat", &mib.to_string(), "--wait"]);
    hog.go();
    hog.tell_end();
    init.tell_end();
}

/// The first process of a pid namespace eats; the kernel ends the others with it, which is no lack of memory.
pub(crate) fn nested_init(mib: usize) {
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let mut hog = Started::victim(&["eat", &mib.to_string(), "--wait"]);
    let siblings: Vec<_> = (0..3).map(|_| Started::victim(&["eat", "0", "--role", "sibling", "--hold"])).collect();
    hog.go();
    // In this order: the first process is not gone before the others have been waited for.
    siblings.into_iter().for_each(Started::tell_own_end);
    hog.tell_end();
}

/// The same pid three times: for one that lives on, and for two that eat. Needs a pid namespace with nobody else in a
/// hurry.
pub(crate) fn pid_reuse(mib: usize) {
    // Start times have ticks of 10 ms (proc(5)). No pid comes round in less.
    const TICKS: Duration = Duration::from_millis(30);
    // Another one each time: when we are killed as well, nobody may be left to wait for the one that had it.
    let pid = 3000 + std::process::id();
    let mib = mib.to_string();
    for (name, mib) in [("early", "0"), ("second", &mib), ("third", &mib)] {
        loop {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("ns_last_pid");
            let mut started = Started::victim(&["eat", mib, "--wait", "--name", name, "--role", name]);
            let is_it = started.pid() == pid;
            if is_it {
                started.go();
            }
            started.tell_end();
            thread::sleep(TICKS);
            if is_it {
                break;
            }
        }
    }
}

/// So many that eat, at most `at_once` at a time; each moves itself into the cgroup whose file this is.
pub(crate) fn many(count: usize, at_once: usize, mib: usize, procs_file: &OsStr) {
    let own = fs::read_link("/proc/self/exe").expect("/proc is mounted");
    let mut left = count;
    while left > 0 {
        let batch = left.min(at_once);
        let start = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(procs_file).arg(&own);
            command.args(["eat", &mib.to_string()]);
            Started::of(command)
        };
        let started: Vec<_> = (0..batch).map(start).collect();
        started.into_iter().for_each(Started::tell_end);
        left -= batch;
    }
}

/// Eats without a command line: with none from the start, or with all of it overwritten.
pub(crate) fn bare(kind: &OsStr, mib: usize) {
    if kind == "wiped" {
        wipe_arguments();
        tell("victim");
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

/// Overwrites our own arguments with NUL, where the kernel shows them from (fields 48 and 49, proc(5)).
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

/// Becomes a program for which bpf(2) is forbidden.
pub(crate) fn no_bpf(args: &[OsString]) {
    raw::forbid_bpf();
    become_program(args);
}

/// Becomes a program that cannot have a capability.
pub(crate) fn no_capability(capability: usize, args: &[OsString]) {
    raw::drop_capability(capability as u64);
    become_program(args);
}

fn become_program(args: &[OsString]) {
    let error = Command::new(&args[0]).args(&args[1..]).exec();
    panic!("{}: {error}", args[0].display());
}
