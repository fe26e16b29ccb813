//! An agent that reads slowly or not at all: the child blocks, the runner stays small, and no byte is lost.

use krunner_tests::zmtp::Peer;
use krunner_tests::{Message, Raw, Runner, proc, wait};

use crate::app;

/// What the runner may have resident while output piles up.
const PEAK_RSS_KIB: u64 = 32 * 1024;

/// The output of `seq 1 N`, checked as it comes: any byte lost, doubled or out of place shows.
struct Counting {
    line: Vec<u8>,
    ahead: Vec<u8>,
    received_bytes: usize,
}

impl Counting {
    fn new() -> Self {
        Self { line: b"0\n".to_vec(), ahead: Vec::new(), received_bytes: 0 }
    }

    /// Makes the line the next number's.
    fn count(&mut self) {
        for i in (0..self.line.len() - 1).rev() {
            if self.line[i] < b'9' {
                self.line[i] += 1;
                return;
            }
            self.line[i] = b'0';
        }
        self.line.insert(0, b'1');
    }

    #[track_caller]
    fn take(&mut self, bytes: &[u8]) {
        while self.ahead.len() < bytes.len() {
            self.count();
            self.ahead.extend_from_slice(&self.line);
        }
        assert!(self.ahead[..bytes.len()] == *bytes, "wrong bytes after the first {}", self.received_bytes);
        self.ahead.drain(..bytes.len());
        self.received_bytes += bytes.len();
    }

    /// Whether all that came ends with this number's line.
    fn ended_with(&self, number: u32) -> bool {
        self.ahead.is_empty() && self.line == format!("{number}\n").as_bytes()
    }
}

/// Waits until the `seq` of the session can write no more.
#[track_caller]
fn wait_until_blocked(runner: &Runner) -> u64 {
    let child = runner.wait_for_program("seq", 1)[0];
    wait::until_stalled("the child", || proc::written_bytes(child))
}

#[track_caller]
fn assert_small(runner: &Runner) {
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= PEAK_RSS_KIB, "the runner had {peak} KiB resident");
}

/// Reads to the end of the run and checks that it is `seq 1 last`.
#[track_caller]
fn read_all(raw: &mut Raw, last: u32) -> usize {
    let mut counting = Counting::new();
    loop {
        let message = raw.recv().expect("the runner keeps the connection");
        match message.kind.as_str() {
            "stdout" => counting.take(&message.payload),
            "finished" => {
                assert_eq!(message.exit_code(), 0);
                assert!(counting.ended_with(last), "{} bytes, then the end", counting.received_bytes);
                return counting.received_bytes;
            }
            _ => {}
        }
    }
}

#[test]
fn stalled_agent_blocks_the_child_and_loses_nothing() {
    /// The first number with which `seq` writes 256 MiB.
    const LAST: u32 = 31_060_730;
    let runner = app().start();
    runner.settle();
    let (replin, replout) = runner.ports();
    let pull = Peer::connect_narrow(replout, 16 * 1024);
    let mut raw = Raw { push: Peer::connect(replin, "PUSH"), pull };

    raw.op("exec", &format!("seq 1 {LAST}"));
    let written = wait_until_blocked(&runner);
    assert!(written < 64 << 20, "the child wrote {written} bytes that were not read");
    assert_small(&runner);

    let received = read_all(&mut raw, LAST);
    assert!(received >= 256 << 20, "{received}");
    assert_small(&runner);
}

#[test]
fn output_without_an_agent_blocks_the_child_and_arrives_later() {
    const LAST: u32 = 6_000_000;
    let runner = app().start();
    runner.settle();
    let (replin, replout) = runner.ports();
    let mut push = Peer::connect(replin, "PUSH");

    push.send(&[b"exec", format!("seq 1 {LAST}").as_bytes()]);
    wait_until_blocked(&runner);
    assert_small(&runner);

    let mut raw = Raw { push, pull: Peer::connect(replout, "PULL") };
    read_all(&mut raw, LAST);
    assert_small(&runner);
}

#[test]
fn short_output_without_an_agent_is_kept_with_the_steps_end() {
    let runner = app().start();
    let (replin, replout) = runner.ports();
    let mut push = Peer::connect(replin, "PUSH");
    push.send(&[b"clean", b"echo clean"]);
    push.send(&[b"build", b"echo build >&2"]);
    push.send(&[b"exec", b"echo exec; echo > done; exit 3"]);
    runner.wait_for("done");

    let mut raw = Raw { push, pull: Peer::connect(replout, "PULL") };
    let run = raw.read_until(|message: &Message| message.kind == "finished");

    assert_eq!(run.codes(), [("clean-finished", 0), ("build-finished", 0), ("finished", 3)]);
    assert_eq!(run.stdout(), "clean\nexec\n");
    assert!(run.stderr().lines().any(|line| line == "build"));
}

#[test]
fn ops_are_taken_while_the_agent_reads_nothing() {
    let runner = app().start();
    let (replin, replout) = runner.ports();
    let pull = Peer::connect_narrow(replout, 16 * 1024);
    let mut raw = Raw { push: Peer::connect(replin, "PUSH"), pull };
    raw.op("exec", "seq 1 100000000");
    wait_until_blocked(&runner);

    raw.op("interrupt", "");
    // The child is held up in a write, and so is its output; the signal is not.
    wait::until_true("the child is gone", || runner.processes().is_empty());

    let run = raw.read_runs(1);
    assert_eq!(run.codes(), [("finished", -2)]);
    assert_eq!(raw.exec("echo next").stdout(), "next\n");
}
