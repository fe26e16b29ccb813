//! User input through the agent's client: prompts of Python programs and of anything else that knows the socket.

use std::fs;

use krunner_tests::{Message, Raw, Run, Runner, Setup, Steps, host, require, wait};

use crate::{app, wait_for_file, with_agent};

fn statuses(run: &Run) -> Vec<&str> {
    run.steps.iter().map(|step| step.status.as_str()).collect()
}

const EXEC_HEURISTIC: Steps<'_> = Steps { exec: "*", ..Steps::NONE };

#[test]
fn python_program_asks_twice() {
    let client = require!(host::agent_python());
    let main = "a = input('first? ')\nb = input('second? ')\nprint(a + '|' + b)\n";
    let setup = Setup::new("python").runtime(require!(host::user_python())).file("home/work/main.py", main);
    let (_runner, agent) = with_agent(&client, setup);

    let run = agent.start_batch(EXEC_HEURISTIC, &["één", "둘 two"]).wait();

    assert_eq!(statuses(&run)[2..], ["waiting-input", "waiting-input", "finished"], "{run:#?}");
    assert_eq!(run.steps[2].stdout, "first? ", "the prompt is there before the question");
    assert_eq!(run.steps[3].stdout, "second? ");
    assert_eq!(run.exec().stdout, "één|둘 two\n");
    assert_eq!(run.exec().exit_code, Some(0));
}

#[test]
fn input_has_no_length_limit() {
    let client = require!(host::agent_python());
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("home/work/main.py", include_str!("../programs/long_input.py"));
    let (runner, agent) = with_agent(&client, setup);
    // 1 MiB in UTF-8, no character on an even boundary of anything.
    let text = format!("{}x", "ab한".repeat((1 << 20) / 5));
    assert_eq!(text.len(), 1 << 20);
    runner.write("expected.txt", &text);

    let run = agent.start_batch(EXEC_HEURISTIC, &[&text]).wait();
    assert_eq!(run.codes(), [0, 0, 0], "{run:#?}");
    let digest = agent.exec("sha256sum < expected.txt | cut -d ' ' -f 1");

    let expected = format!("{} {}", text.chars().count(), digest.stdout());
    assert_eq!(run.exec().stdout, expected);
}

#[test]
fn python_program_without_the_socket_is_told_and_goes_on() {
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("home/work/main.py", "print(input('name? '))\n");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    raw.sync();
    // Unlike a socket that was removed, one whose folder was renamed is nothing that a user can do.
    fs::rename(runner.root().join("tmp"), runner.root().join("gone")).expect("the input socket's folder");
    let run = raw.exec("*");
    assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 0)], "name? <user-input-unavailable>\n"));
}

#[test]
fn python_program_asks_after_everything_in_tmp_was_removed() {
    let main = "import os\nprint(input('1? '))\nos.remove(os.environ['SOCKET'])\nprint(input('2? '))\n";
    let setup = Setup::new("python").runtime(require!(host::user_python())).file("home/work/main.py", main);
    let socket = setup.root().join("tmp/bai-user-input.sock");
    let runner = setup.env("SOCKET", &socket).start();
    let mut raw = Raw::connect(&runner);
    for _ in 0..5 {
        fs::remove_file(&socket).expect("the input socket is there");
        raw.op("exec", "*");
        for text in ["one", "two"] {
            raw.read_until(|message| message.kind == "waiting-input");
            raw.op("input", text);
        }
        assert_eq!(raw.read_runs(1).stdout(), "two\n");
    }
}

#[test]
fn python_program_gets_no_newline_and_no_end_but_the_texts() {
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("home/work/main.py", "print([input(), input(), input('한? ')])\n");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "*");
    for text in ["", "two\nlines\n", "\u{1F40D} \0"] {
        raw.read_until(|message| message.kind == "waiting-input");
        raw.op("input", text);
    }
    assert_eq!(raw.read_runs(1).stdout(), "['', 'two\\nlines\\n', '\u{1F40D} \\x00']\n");
}

#[test]
fn any_program_may_ask_over_the_socket() {
    let client = require!(host::agent_python());
    let compiler = require!(host::c_compiler());
    let setup = Setup::new("c").runtime(&compiler).file("home/work/ask.c", include_str!("../programs/ask.c"));
    let socket = setup.root().join("tmp/bai-user-input.sock");
    let (_runner, agent) = with_agent(&client, setup);

    let build = format!("{} -o ask ask.c", compiler.display());
    let exec = format!("./ask {} 3", socket.display());
    let steps = Steps { clean: "", build: &build, exec: &exec };
    let run = agent.start_batch(steps, &["one", "", "two\nlines\n"]).wait();

    assert_eq!(run.codes(), [0, 0, 0], "{run:#?}");
    assert_eq!(statuses(&run).iter().filter(|status| **status == "waiting-input").count(), 3);
    assert_eq!(run.stdout(), "answer: <one>\nanswer: <>\nanswer: <two\nlines\n>\n");
}

#[test]
fn runtime_without_input_says_so() {
    let runner = app().start();
    assert_eq!(runner.ask_for_input(), "<user-input is unsupported>");
    assert_eq!(runner.ask_for_input(), "<user-input is unsupported>", "and again");
}

/// A session with a program that asks for one text, and the command that runs it.
fn with_ask_program() -> Result<(Runner, Raw, String), String> {
    let compiler = host::c_compiler()?;
    let setup = Setup::new("c").runtime(&compiler).file("home/work/ask.c", include_str!("../programs/ask.c"));
    let ask = format!("./ask {} 1", setup.root().join("tmp/bai-user-input.sock").display());
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    raw.op("build", &format!("{} -o ask ask.c", compiler.display()));
    assert_eq!(raw.read_until(Message::ends_step).codes(), [("build-finished", 0)]);
    Ok((runner, raw, ask))
}

#[test]
fn program_killed_at_its_prompt_does_not_take_the_next_ones_answer() {
    let (runner, mut raw, ask) = require!(with_ask_program());

    let go = wait_for_file("go");
    raw.op("exec", &format!("{ask} & {go}; kill $!; wait; echo gone"));
    raw.read_until(|message| message.kind == "waiting-input");
    runner.write("go", "");
    assert_eq!(raw.read_runs(1).stdout(), "gone\n");

    raw.op("exec", &ask);
    raw.read_until(|message| message.kind == "waiting-input");
    raw.op("input", "mine");
    assert_eq!(raw.read_runs(1).stdout(), "answer: <mine>\n");
}

#[test]
fn program_of_an_earlier_step_does_not_take_the_prompt_of_the_next() {
    let (runner, mut raw, ask) = require!(with_ask_program());

    let is_prompt = |message: &Message| message.kind == "waiting-input";
    raw.op("exec", &format!("({ask} > answer.new && mv answer.new answer) 2> /dev/null & echo left"));
    assert_eq!(raw.read_until(Message::ends_step).stdout(), "left\n");
    let [left] = runner.wait_for_program("ask", 1)[..] else { panic!("one program") };
    wait::until_true("its request", || {
        let targets = fs::read_dir(format!("/proc/{left}/fd")).into_iter().flatten().flatten();
        let mut targets = targets.filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.any(|target| target.to_string_lossy().starts_with("socket:"))
    });

    raw.op("exec", &ask);
    raw.read_until(is_prompt);
    raw.op("input", "mine");
    assert_eq!(raw.read_until(Message::ends_step).stdout(), "answer: <mine>\n");

    // Requests between steps are for no agent; the text is.
    raw.op("input", "theirs");
    assert_eq!(runner.wait_for("answer"), "answer: <theirs>\n");
}
