//! A process that allocates memory and touches every page.

use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::thread;
use std::time::Duration;

use nix::unistd::getppid;

const MIB: usize = 1 << 20;

/// Large enough for huge pages, small enough for the kernel's overcommit heuristic.
const CHUNK_MIB: usize = 16;

/// The smallest page size of any machine, so that every page is touched.
const PAGE: usize = 4096;

#[derive(Debug)]
struct EatOptions {
    mib: usize,
    role: String,
    after: Duration,
    /// Start after reading a byte from stdin; exit without allocating at end of file.
    wait: bool,
    /// Keep the memory until stdin is at end of file.
    hold: bool,
    /// Then allocate this much more.
    then_mib: usize,
    /// Start once this process is no longer the parent.
    not_child_of: Option<i32>,
}

/// Runs the scenario `victim eat`.
pub(crate) fn run(args: &[OsString]) {
    let options = parse(args);
    announce(&options.role);
    thread::sleep(options.after);
    if options.wait && io::stdin().read(&mut [0]).expect("stdin") == 0 {
        return;
    }
    while options.not_child_of.is_some_and(|pid| getppid().as_raw() == pid) {
        thread::sleep(Duration::from_millis(1));
    }
    let memory = eat(options.mib);
    if options.hold {
        announce("ready");
        io::stdin().read_to_end(&mut Vec::new()).expect("stdin");
    }
    drop(black_box((memory, eat(options.then_mib))));
}

/// Allocates and touches this much memory.
pub(crate) fn eat(mib: usize) -> Vec<Vec<u8>> {
    let chunk = |begin: usize| {
        let mut chunk = vec![0_u8; CHUNK_MIB.min(mib - begin) * MIB];
        chunk.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        black_box(chunk)
    };
    (0..mib).step_by(CHUNK_MIB).map(chunk).collect()
}

/// Prints the role and PID of this process.
pub(crate) fn announce(role: &str) {
    print_event(role, own_pid());
}

/// Prints a line about a process with one `write`, so that lines of several processes do not interleave.
pub(crate) fn print_event(what: &str, pid: u32) {
    io::stdout().write_all(format!("{what} {pid}\n").as_bytes()).expect("stdout");
    io::stdout().flush().expect("stdout");
}

/// Our PID in the namespace that `/proc` was mounted in (proc(5)).
pub(crate) fn own_pid() -> u32 {
    let link = fs::read_link("/proc/self").expect("/proc is mounted");
    link.to_str().and_then(|text| text.parse().ok()).expect("a pid")
}

fn parse(args: &[OsString]) -> EatOptions {
    let mut options = EatOptions {
        mib: super::mib(args, 0),
        role: "victim".to_owned(),
        after: Duration::ZERO,
        wait: false,
        hold: false,
        then_mib: 0,
        not_child_of: None,
    };
    let mut args = args[1..].iter();
    while let Some(option) = args.next() {
        let mut value = || args.next().and_then(|arg| arg.to_str()).expect("an option's value");
        match option.to_str() {
            Some("--after-ms") => options.after = Duration::from_millis(value().parse().expect("milliseconds")),
            Some("--wait") => options.wait = true,
            Some("--hold") => options.hold = true,
            Some("--then") => options.then_mib = value().parse().expect("MIB"),
            Some("--adj") => fs::write("/proc/self/oom_score_adj", value()).expect("oom_score_adj"),
            Some("--name") => fs::write("/proc/self/comm", value()).expect("comm"),
            Some("--role") => value().clone_into(&mut options.role),
            Some("--unless-child-of") => options.not_child_of = Some(value().parse().expect("a pid")),
            Some("--") => break,
            _ => panic!("unknown option {}", option.display()),
        }
    }
    options
}
