//! What a child inherits, and what becomes of the processes it leaves behind.

use krunner_tests::{Raw, proc, wait};

use crate::{announce, app, wait_for_file};

#[test]
fn child_has_the_three_standard_streams_only() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    // `ls` itself opens the folder that it lists, as the next free number.
    assert_eq!(raw.exec("ls /proc/self/fd").stdout(), "0\n1\n2\n3\n");
    assert_eq!(raw.exec("readlink /proc/self/fd/0").stdout(), "/dev/null\n");
    assert_eq!(raw.exec("cat; echo end of input").stdout(), "end of input\n");
}

#[test]
fn children_of_every_kind_outrank_the_runner_in_the_eyes_of_the_oom_killer() {
    let seen = "cat /proc/self/oom_score_adj > ~/seen.tmp; mv ~/seen.tmp ~/seen-$WHO";
    let definition = |who: &str| format!(r#"{{ "command": ["/bin/sh", "-c", "WHO={who}; {seen}; exec sleep 600"] }}"#);
    let setup = app().file("home/work/bootstrap.sh", format!("WHO=bootstrap; {seen}"));
    let runner = setup.file("etc/backend.ai/service-defs/shown.json", definition("service")).start();
    let mut raw = Raw::connect(&runner);
    raw.exec(&format!("WHO=step; {seen}"));
    raw.op("start-service", r#"{ "name": "shown", "port": 1, "ports": [1], "protocol": "tcp", "options": {} }"#);

    let own = proc::oom_score_adj(runner.pid());
    for who in ["bootstrap", "step", "service"] {
        let child: i32 = runner.wait_for(&format!("seen-{who}")).trim().parse().expect("a number");
        assert!(child > own, "{who}: {child}, the runner: {own}");
    }
    raw.exec("echo 500 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj > own");
    assert_eq!(runner.wait_for("own"), "500\n", "a program that sets its own value keeps it");
}

#[test]
fn child_has_default_signals_and_a_group_of_its_own() {
    /// SIGINT, SIGPIPE, SIGTERM; what else is ignored, such as SIGHUP under nohup, is the caller's choice.
    const THESE: u64 = 1 << 1 | 1 << 12 | 1 << 14;
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    let mask = |raw: &mut Raw, field: &str| {
        let line = raw.exec(&format!("grep {field}: /proc/self/status")).stdout();
        let digits = line.split_whitespace().nth(1).expect("a mask");
        u64::from_str_radix(digits, 16).expect("a mask in hex")
    };
    assert_eq!(mask(&mut raw, "SigIgn") & THESE, 0);
    assert_eq!(mask(&mut raw, "SigBlk"), 0);

    let ids = raw.exec("cut -d ' ' -f 1,5 /proc/$$/stat").stdout();
    let (pid, group) = ids.trim_end().split_once(' ').expect("two ids");
    assert_eq!(pid, group);
}

#[test]
fn grandchild_that_keeps_the_pipe_open_does_not_hold_up_the_step() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec(&format!("({}; echo late) & echo now", wait_for_file("go")));
    assert_eq!(run.codes(), [("finished", 0)]);
    assert_eq!(run.stdout(), "now\n");

    assert_eq!(raw.exec("echo next").stdout(), "next\n", "and the next step is not held up either");
    runner.write("go", "");
    let late = raw.read_until(|message| message.kind == "stdout");
    assert_eq!(late.stdout(), "late\n", "its output still arrives");
}

#[test]
fn sleeping_grandchild_does_not_hold_up_the_step() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec("sleep 600 & sleep 600 & exit 6");
    assert_eq!(run.codes(), [("finished", 6)]);
    assert_eq!(raw.exec("echo next").stdout(), "next\n");
}

#[test]
fn orphan_becomes_the_runners_child_and_is_reaped() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    raw.exec(&format!("({}; {}) > /dev/null 2>&1 & echo $! > orphan", announce("started"), wait_for_file("go")));
    let orphan: u32 = runner.wait_for("orphan").trim_end().parse().expect("a pid");
    wait::until_true("the orphan is the runner's", || proc::parent(orphan) == Some(runner.pid()));

    runner.write("go", "");
    wait::until_true("the orphan is reaped", || proc::parent(orphan).is_none());
}

#[test]
fn many_short_lived_orphans_leave_no_zombie() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec("for i in $(seq 200); do (sleep 0.0$((i % 10)) > /dev/null 2>&1 &); done");
    assert_eq!(run.codes(), [("finished", 0)]);

    wait::until_true("all orphans end", || runner.processes().is_empty());
    wait::until_true("all orphans are reaped", || proc::zombies_of(runner.pid()).is_empty());
    assert_eq!(raw.exec("exit 7").codes(), [("finished", 7)], "exit codes still go to the right step");
}

#[test]
fn reaping_orphans_takes_no_exit_code_away() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    for code in 0..50 {
        let run = raw.exec(&format!("(true &) ; (true &) ; exit {code}"));
        assert_eq!(run.codes(), [("finished", code)]);
    }
}

#[test]
fn runner_keeps_no_descriptor_of_a_step() {
    let runner = app().start();
    runner.settle();
    let mut raw = Raw::connect(&runner);
    let open = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", runner.pid())).expect("the runner's descriptors");
        fds.count()
    };
    // The first ones also wait for whatever the runner opens for itself.
    for _ in 0..5 {
        raw.exec("true");
    }
    let before = open();

    for _ in 0..50 {
        raw.exec("true");
    }

    wait::until_true("no more descriptors than before", || open() <= before);
}
