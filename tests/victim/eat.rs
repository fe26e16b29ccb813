//! The hog: takes memory, page by page, as it is told.

use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::thread;
use std::time::Duration;

use nix::unistd::getppid;

const MIB: usize = 1 << 20;

/// Large enough for huge pages where they are on, small enough for the kernel to promise.
const CHUNK_MIB: usize = 16;

/// The smallest page size there is: each page is touched, whatever the machine's is.
const PAGE: usize = 4096;

#[derive(Debug)]
struct Order {
    mib: usize,
    role: String,
    after: Duration,
    /// Begin when a byte comes on stdin; end without eating when stdin ends.
    wait: bool,
    /// Keep what was eaten until stdin ends.
    hold: bool,
    /// After that, eat so much more.
    then_mib: usize,
    /// Begin when this is not the parent any more.
    not_child_of: Option<i32>,
}

/// `victim eat`.
pub(crate) fn run(args: &[OsString]) {
    let order = parse(args);
    tell(&order.role);
    thread::sleep(order.after);
    if order.wait && io::stdin().read(&mut [0]).expect("stdin") == 0 {
        return;
    }
    while order.not_child_of.is_some_and(|pid| getppid().as_raw() == pid) {
        thread::sleep(Duration::from_millis(1));
    }
    let hoard = eat(order.mib);
    if order.hold {
        tell("ready");
        io::stdin().read_to_end(&mut Vec::new()).expect("stdin");
    }
    drop(black_box((hoard, eat(order.then_mib))));
}

/// Takes so much memory and returns it.
pub(crate) fn eat(mib: usize) -> Vec<Vec<u8>> {
    let chunk = |begin: usize| {
        let mut chunk = vec![0_u8; CHUNK_MIB.min(mib - begin) * MIB];
        chunk.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        black_box(chunk)
    };
    (0..mib).step_by(CHUNK_MIB).map(chunk).collect()
}

/// Says who this process is.
pub(crate) fn tell(role: &str) {
    tell_of(role, own_pid());
}

/// Says something of a process. One write, so that the lines of several processes do not mix.
pub(crate) fn tell_of(what: &str, pid: u32) {
    io::stdout().write_all(format!("{what} {pid}\n").as_bytes()).expect("stdout");
    io::stdout().flush().expect("stdout");
}

/// Our pid in the namespace that `/proc` was mounted in (proc(5)).
pub(crate) fn own_pid() -> u32 {
    let link = fs::read_link("/proc/self").expect("/proc is mounted");
    link.to_str().and_then(|text| text.parse().ok()).expect("a pid")
}

fn parse(args: &[OsString]) -> Order {
    let mut order = Order {
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
            Some("--after-ms") => order.after = Duration::from_millis(value().parse().expect("milliseconds")),
            Some("--wait") => order.wait = true,
            Some("--hold") => order.hold = true,
            Some("--then") => order.then_mib = value().parse().expect("MIB"),
            Some("--adj") => fs::write("/proc/self/oom_score_adj", value()).expect("oom_score_adj"),
            Some("--name") => fs::write("/proc/self/comm", value()).expect("comm"),
            Some("--role") => value().clone_into(&mut order.role),
            Some("--unless-child-of") => order.not_child_of = Some(value().parse().expect("a pid")),
            Some("--") => break,
            _ => panic!("unknown option {}", option.display()),
        }
    }
    order
}
