//! The container's log: an unread pipe delays a program for a while, and the agent loses no output.

use std::io::{PipeReader, Read as _, pipe};
use std::time::Instant;

use krunner_tests::{LaunchMethod, Raw, Runner, host, proc, require, wait};
use nix::sys::signal::Signal;

use crate::app;
use crate::stop::LIMIT;

/// What `seq 3000000` writes.
const LAST: usize = 3_000_000;
const LAST_BYTES: usize = 22_888_896;

/// Queues are bounded, whatever is not read.
const PEAK_RSS_KIB: u64 = 48 * 1024;

/// A session whose stdout is a pipe.
fn session() -> (Runner, PipeReader) {
    let (reader, writer) = pipe().expect("a pipe");
    let runner = app().stdout(writer).start();
    runner.settle();
    (runner, reader)
}

#[test]
fn agent_gets_everything_and_the_gap_is_told_when_the_pipe_is_read_again() {
    let (runner, mut reader) = session();
    let mut raw = Raw::connect(&runner);

    for _ in 0..2 {
        let run = raw.exec(&format!("seq {LAST}"));
        assert_eq!(run.codes(), [("finished", 0)]);
        let stdout = run.output("stdout");
        assert_eq!(stdout.len(), LAST_BYTES);
        assert!(stdout.ends_with(format!("\n{LAST}\n").as_bytes()));
    }
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= PEAK_RSS_KIB, "the runner had {peak} KiB resident");

    let mut log = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let told = b" bytes of output dropped here: not read for ";
    while !log.windows(told.len()).any(|window| window == told) {
        let length = reader.read(&mut buffer).expect("the pipe");
        assert!(length > 0, "the runner keeps its stdout");
        log.extend_from_slice(&buffer[..length]);
    }
    let copied = log.windows(9).position(|window| window == b"krunner: ").expect("the gap");
    let gap = String::from_utf8_lossy(&log[copied..]).into_owned();
    let dropped: usize = gap.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("a number");
    assert_eq!(copied + dropped, 2 * LAST_BYTES, "{gap}");
    runner.wait_for_log(&[&dropped.to_string(), "bytes of output to stdout were dropped"]);
    raw.exec("echo again");
    wait::until_true("the copy to continue", || {
        let length = reader.read(&mut buffer).expect("the pipe");
        log.extend_from_slice(&buffer[..length]);
        log.ends_with(b"again\n")
    });
}

#[test]
fn stop_ends_the_program_and_the_runner() {
    let (mut runner, _reader) = session();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", &format!("trap 'echo last output; exit 3' TERM; seq {LAST}; sleep 300"));
    let child = runner.wait_for_program("seq", 1)[0];
    wait::until_stalled("the program", || proc::written_bytes(child));

    runner.signal(Signal::SIGTERM);

    assert!(runner.wait_exit().success());
    assert_eq!(runner.processes(), [0_u32; 0]);
}

#[test]
fn stop_leaves_no_process_behind_while_both_streams_take_nothing() {
    require!(host::util_linux());
    for command in ["yes; sleep 300", "setsid sh -c 'trap \"\" TERM; yes; sleep 300' & exec sleep 300"] {
        let (_reader, writer) = pipe().expect("a pipe");
        let mut runner = app().prefix(&["sh", "-c", "exec \"$@\" 2>&1", "sh"]).stdout(writer).start();
        let mut raw = Raw::connect(&runner);
        raw.op("exec", command);
        let child = runner.wait_for_program("yes", 1)[0];
        wait::until_stalled("the program", || proc::written_bytes(child));

        let since = Instant::now();
        runner.signal(Signal::SIGTERM);
        raw.read_to_end();

        assert!(runner.wait_exit().success(), "{command}");
        assert!(since.elapsed() < LIMIT, "{command}: {:?}", since.elapsed());
        assert_eq!(runner.processes(), [0_u32; 0], "{command}");
    }
}

#[test]
fn task_log_on_a_full_disk_ends_and_the_step_does_not() {
    require!(host::root().and_then(|()| host::util_linux()));
    let setup = app().folder("home/work/.logs");
    let mount = format!("mount -t tmpfs -o size=64k full {}/.logs", setup.home().display());
    let mut runner = setup.prefix_first(&LaunchMethod::direct().mounts(&mount)).start();
    let mut raw = Raw::connect(&runner);

    for _ in 0..2 {
        let run = raw.exec("seq 100000");
        assert_eq!((run.output("stdout").len(), run.codes()), (588_895, vec![("finished", 0)]));
    }

    runner.wait_for_log(&[".logs/task/", "No space left on device", "further output to it is dropped"]);
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
}
