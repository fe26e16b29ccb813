//! What a child writes: every byte, in order, before the step's end, and at every place it goes to.

use std::fs;

use krunner_tests::{KERNEL_ID, Raw, Runner, host, require, wait};

use crate::{app, lines, with_agent};

/// All 256 byte values, many times over, in a length that is no multiple of any buffer.
fn all_bytes() -> Vec<u8> {
    (0..=255).cycle().take(300_007).collect()
}

fn task_log() -> String {
    let digits = KERNEL_ID.replace('-', "");
    format!(".logs/task/{}/{}/{}.log", &digits[..2], &digits[2..4], &digits[4..])
}

#[test]
fn character_split_over_two_writes_arrives_whole() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    // U+C548 is EC 95 88.
    let halves = r"printf '\354'; sleep 0.2; printf '\225\210'; sleep 0.2; printf '\n'";
    assert_eq!(agent.exec(halves).stdout(), "안\n");

    let run = agent.exec(&format!("({halves}) >&2"));
    assert!(run.stderr().contains("안\n"), "{run:#?}");
}

#[test]
fn four_hundred_thousand_lines_arrive_intact() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let run = agent.exec("seq 1 400000");

    assert_eq!(run.exec().exit_code, Some(0));
    let expected = lines(1..=400_000);
    assert!(run.stdout() == expected, "{} bytes instead of {}", run.stdout().len(), expected.len());
}

#[test]
fn every_byte_value_arrives_on_both_streams_and_wherever_output_is_kept() {
    let bytes = all_bytes();
    let setup = app().debug().folder("home/work/.logs").file("home/work/bytes", &bytes);
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec("cat bytes");
    assert!(run.output("stdout") == bytes, "stdout is not what the child wrote");
    let run = raw.exec("cat bytes >&2");
    assert!(run.output("stderr") == bytes, "stderr is not what the child wrote");
    assert_eq!(run.output("stdout"), b"");

    // The copies may lag behind the replies.
    wait::until_true("the runner's own stdout", || runner.stdout().len() >= bytes.len());
    assert!(
        runner.stdout().windows(bytes.len()).any(|window| window == bytes),
        "own stdout is not what the child wrote"
    );
    let log = wait_for_task_log(&runner, 2 * bytes.len());
    assert!(log == [bytes.clone(), bytes].concat(), "the task log is not what the children wrote");
}

/// The task log, when it has grown to that length.
#[track_caller]
fn wait_for_task_log(runner: &Runner, length: usize) -> Vec<u8> {
    let path = runner.home().join(task_log());
    wait::until("the task log", || fs::read(&path).ok().filter(|log| log.len() >= length))
}

#[test]
fn own_stderr_carries_the_childs_stderr() {
    let runner = app().start();
    Raw::connect(&runner).exec("echo from-the-child >&2");
    runner.wait_for_log(&["from-the-child"]);
}

#[test]
fn each_stream_is_in_order_when_both_are_busy() {
    let runner = app().debug().start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec("for i in $(seq 1 3000); do echo out $i; echo err $i >&2; done");

    let expected = |name: &str| lines((1..=3000).map(|i| format!("{name} {i}")));
    assert!(run.stdout() == expected("out"), "{}", run.stdout());
    assert!(run.stderr() == expected("err"), "{}", run.stderr());
}

#[test]
fn all_output_comes_before_the_steps_end() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    for round in 0..20 {
        let run = raw.exec("head -c 1000000 /dev/zero; head -c 1000 /dev/zero >&2");
        assert_eq!(run.output("stdout").len(), 1_000_000, "round {round}");
        let zeros = run.output("stderr").into_iter().filter(|byte| *byte == 0).count();
        assert_eq!(zeros, 1000, "round {round}");
        let rest = raw.sync();
        let late = rest
            .messages
            .iter()
            .any(|message| message.kind == "stdout" || message.kind == "stderr" && message.payload.contains(&0));
        assert!(!late, "nothing after `finished`: {rest:?}");
    }
}

#[test]
fn task_log_is_appended_to_by_every_step_and_by_the_bootstrap_script() {
    let setup = app().folder("home/work/.logs").file("home/work/bootstrap.sh", "echo bootstrap\n");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);

    for round in 0..50 {
        raw.op("clean", &format!("echo clean {round}"));
        raw.op("build", &format!("echo build {round} >&2"));
        raw.op("exec", &format!("echo exec {round}"));
    }
    raw.read_runs(50);

    let steps = lines((0..50).map(|round| format!("clean {round}\nbuild {round}\nexec {round}")));
    let expected = format!("bootstrap\n{steps}");
    let log = wait_for_task_log(&runner, expected.len());
    assert_eq!(String::from_utf8_lossy(&log), expected, "a step's output comes after that of the step before");
}

#[test]
fn without_the_logs_folder_there_is_no_task_log() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());

    assert_eq!(agent.exec("echo x").exec().exit_code, Some(0));

    assert!(!runner.home().join(".logs").exists());
}
