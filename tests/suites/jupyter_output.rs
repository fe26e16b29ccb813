//! Much output of a Jupyter kernel: all of it arrives, whatever its agent does, and the runner stays small.

use krunner_tests::zmtp::Peer;
use krunner_tests::{Message, Raw, Runner, host, proc, require, wait};

use crate::jupyter::{kernel_but, session};
use crate::lines;

/// What the runner may grow to.
const PEAK_RSS_KIB: u64 = 32 * 1024;

#[track_caller]
fn ready(raw: &mut Raw, runner: &Runner) {
    raw.op("code", "import sys, time");
    let run = raw.read_runs(1);
    assert_eq!(run.codes(), [("finished", 0)], "{}", run.stderr());
    runner.settle();
}

#[track_caller]
fn assert_small(runner: &Runner) {
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= PEAK_RSS_KIB, "the runner had {peak} KiB resident");
}

/// Reads to the end of the run; hands over each piece of stdout.
#[track_caller]
fn read_stdout(raw: &mut Raw, mut take: impl FnMut(&[u8])) {
    let end = loop {
        let message = raw.recv().expect("the runner keeps the connection");
        match message.kind.as_str() {
            "stdout" => take(&message.payload),
            "finished" => break message,
            other => panic!("{other}: {}", String::from_utf8_lossy(&message.payload)),
        }
    };
    assert_eq!(Message::exit_code(&end), 0);
}

#[test]
fn one_print_of_100_mb_comes_whole() {
    const BYTES: usize = 100_000_000;
    let python = require!(host::jupyter_python());
    let runner = session(&python).start();
    let mut raw = Raw::connect(&runner);
    ready(&mut raw, &runner);
    raw.op("code", &format!("print('é' * {}, end='')", BYTES / 2));
    let mut received = 0;
    read_stdout(&mut raw, |piece| {
        let wrong = piece.iter().enumerate().find(|(at, byte)| **byte != "é".as_bytes()[(received + at) % 2]);
        assert_eq!(wrong, None, "after {received} bytes");
        received += piece.len();
    });
    assert_eq!(received, BYTES);
    assert_small(&runner);
}

#[test]
fn thousands_of_small_prints_a_second_come_in_order_and_in_time() {
    const COUNT: u32 = 6000;
    let python = require!(host::jupyter_python());
    let runner = session(&python).start();
    let mut raw = Raw::connect(&runner);
    ready(&mut raw, &runner);
    // Two thousand a second, each a message of its own. The last one tells how long ago it was printed.
    let code = format!(
        "begin = time.monotonic()
for i in range({COUNT}):
    print(i, flush=True)
    ahead = begin + i / 2000 - time.monotonic()
    if ahead > 0: time.sleep(ahead)
print('end', time.monotonic(), flush=True)"
    );
    raw.op("code", &code);
    let mut text = String::new();
    read_stdout(&mut raw, |piece| text.push_str(std::str::from_utf8(piece).expect("ASCII")));
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let (numbers, end) = text.split_once("end ").expect("the last line");
    let expected = lines(0..COUNT);
    assert!(numbers == expected, "{} bytes in place of {}", numbers.len(), expected.len());
    let printed_at: f64 = end.trim().parse().expect("seconds");
    let behind = std::time::Duration::from(now).as_secs_f64() - printed_at;
    assert!(behind < 1.0, "the last line came {behind} s after it was printed");
}

#[test]
fn an_agent_that_stalls_pauses_the_kernel_and_loses_nothing() {
    /// Far more messages than the kernel's own queue holds, and more bytes than all buffers on the way.
    const COUNT: u32 = 12_000;
    let python = require!(host::jupyter_python());
    let runner = session(&python).start();
    let mut first = Raw::connect(&runner);
    ready(&mut first, &runner);
    let kernel = kernel_but(&runner, None);
    drop(first);
    let (replin, replout) = runner.ports();
    let pull = Peer::connect_narrow(replout, 16 * 1024);
    let mut raw = Raw { push: Peer::connect(replin, "PUSH"), pull };
    raw.op("code", &format!("for i in range({COUNT}): print(i, 'x' * 1500, flush=True)"));
    wait::until_true("the kernel is paused", || proc::state(kernel) == Some('T'));
    // It stays so until the output is read.
    wait::until_stalled("the paused kernel", || proc::cpu_ticks(kernel));
    assert_eq!(proc::state(kernel), Some('T'));
    let mut text = Vec::new();
    read_stdout(&mut raw, |piece| text.extend_from_slice(piece));
    let text = String::from_utf8(text).expect("ASCII");
    let mut lines = text.lines();
    for i in 0..COUNT {
        let line = lines.next().unwrap_or_else(|| panic!("only {i} lines of {COUNT}"));
        assert_eq!(line.split_once(' ').map(|(number, _)| number), Some(i.to_string().as_str()));
    }
    assert_eq!(lines.next(), None);
    assert_small(&runner);
}

#[test]
fn what_a_subprocess_writes_comes_once() {
    let python = require!(host::jupyter_python());
    let runner = session(&python).start();
    let mut raw = Raw::connect(&runner);
    ready(&mut raw, &runner);
    raw.op("code", "import os\n_ = os.system('echo from a shell; echo on stderr >&2')\ntime.sleep(0.5)");
    let run = raw.read_runs(1);
    assert_eq!(run.stdout(), "from a shell\n");
    assert_eq!(run.stderr(), "on stderr\n");
    assert!(String::from_utf8_lossy(&runner.stdout()).contains("from a shell"), "the runner's own stdout has it too");
}

#[test]
fn a_crash_is_told_by_its_signal() {
    let python = require!(host::jupyter_python());
    let runner = session(&python).start();
    let mut raw = Raw::connect(&runner);
    ready(&mut raw, &runner);
    raw.op("code", "import ctypes; ctypes.string_at(0)");
    let run = raw.read_runs(1);
    assert_eq!(run.codes(), [("finished", -11)]);
    assert!(run.stderr().contains("was killed by signal 11 (SIGSEGV)"), "{}", run.stderr());
}
