//! The order of queued steps, the pause between their ends, and the build flag, seen on bare connections.

use std::time::Duration;

use krunner_tests::flaky::Retry;
use krunner_tests::{Message, Raw, Setup, Steps, Transcript, host, require};

use crate::{announce, app, lines, wait_for_file, with_agent};

/// The contract's 10 ms, less what the clocks of two processes may differ by in a rounding.
const SPACING: Duration = Duration::from_millis(9);

/// Times between one end of a step and the next, as they arrived.
fn gaps(run: &Transcript) -> Vec<Duration> {
    run.ends().windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

/// Checks the spacing of what `steps` queues, which has this many runs and ends of steps. A receiver that was held up reads
/// the reply it waited for late, and the next one in time: such a pair looks too close although it was not. So one attempt
/// out of a few must be clean, which a runner without the pause never is.
#[track_caller]
fn assert_spacing(raw: &mut Raw, runs: usize, ends: usize, mut steps: impl FnMut(&mut Raw)) {
    const ATTEMPTS: usize = 5;
    let mut seen = Vec::new();
    for attempt in 1..=ATTEMPTS {
        steps(raw);
        let run = raw.read_runs(runs);
        assert_eq!(run.ends().len(), ends, "{:?}", run.codes());
        seen = gaps(&run);
        if seen.iter().all(|gap| *gap >= SPACING) {
            return;
        }
        Retry::of_test(&format!("ends of steps closer than {SPACING:?}: {seen:?}"), attempt, ATTEMPTS).record();
    }
    panic!("{ATTEMPTS} attempts, each with two ends of steps closer than {SPACING:?}; the last: {seen:?}");
}

#[test]
fn five_queued_batches_run_in_order() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    for i in 1..=5 {
        raw.op("clean", &format!("echo clean {i}"));
        raw.op("build", &format!("echo build {i}"));
        raw.op("exec", &format!("echo exec {i}; exit {i}"));
    }
    let run = raw.read_runs(5);

    let expected: Vec<_> =
        (1..=5).flat_map(|i| [("clean-finished", 0), ("build-finished", 0), ("finished", i)]).collect();
    assert_eq!(run.codes(), expected);
    let expected = lines((1..=5).map(|i| format!("clean {i}\nbuild {i}\nexec {i}")));
    assert_eq!(run.stdout(), expected);
}

#[test]
fn five_runs_of_the_agent_in_a_row_get_their_own_results() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());

    for i in 1..=5 {
        let exec = format!("echo {i} | tee -a order; exit {i}");
        let run = agent.batch(Steps { clean: "echo clean", build: "echo build", exec: &exec });
        assert_eq!(run.codes(), [0, 0, i]);
        assert_eq!(run.stdout(), format!("clean\nbuild\n{i}\n"));
    }

    assert_eq!(runner.read("order").as_deref(), Some("1\n2\n3\n4\n5\n"));
}

#[test]
fn one_step_at_a_time() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    raw.op("exec", &format!("{}; {}; echo first", announce("started"), wait_for_file("go")));
    raw.op("exec", "echo second > second; echo second");
    runner.wait_for("started");
    raw.sync();
    assert_eq!(runner.read("second"), None, "the second step waits for the first");

    runner.write("go", "");
    assert_eq!(raw.read_runs(2).stdout(), "first\nsecond\n");
}

#[test]
fn ends_of_steps_are_ten_milliseconds_apart() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    assert_spacing(&mut raw, 5, 15, |raw| {
        for _ in 0..5 {
            raw.op("clean", "");
            raw.op("build", "");
            raw.op("exec", "");
        }
    });
}

#[test]
fn skipped_exec_keeps_the_distance_too() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    assert_spacing(&mut raw, 3, 6, |raw| {
        for _ in 0..3 {
            raw.op("build", "exit 1");
            raw.op("exec", "echo not run");
        }
    });
}

#[test]
fn query_and_batch_share_the_queue_and_the_distance() {
    let runner = Setup::new("c").runtime(require!(host::c_compiler())).start();
    let mut raw = Raw::connect(&runner);

    assert_spacing(&mut raw, 4, 4, |raw| {
        for _ in 0..2 {
            raw.op("code", "int main(void) { return 7; }");
            raw.op("exec", "exit 8");
        }
    });
}

#[test]
fn failed_build_skips_exactly_one_exec() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    raw.op("build", "exit 3");
    raw.op("exec", "echo first");
    raw.op("exec", "echo second");
    let run = raw.read_runs(2);

    assert_eq!(run.codes(), [("build-finished", 3), ("finished", 127), ("finished", 0)]);
    assert_eq!(run.stdout(), "second\n");
}

#[test]
fn build_that_succeeds_takes_back_the_failure_before_it() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    raw.op("build", "exit 3");
    raw.op("build", "true");
    raw.op("exec", "echo runs");
    let run = raw.read_until(|message: &Message| message.kind == "finished");

    assert_eq!(run.codes(), [("build-finished", 3), ("build-finished", 0), ("finished", 0)]);
    assert_eq!(run.stdout(), "runs\n");
}
