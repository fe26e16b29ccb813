//! Missing or invalid files, folders and programs: a message names them, and the session continues.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use krunner_tests::{Agent, Message, Raw, Setup, child_lines, host, proc, require, wait};

use crate::{announce, app, wait_for_file};

const NOBODY: u32 = 65534;

#[track_caller]
fn assert_alive(raw: &mut Raw) {
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
}

/// A log line with the parts, one of which ends in a line number.
#[track_caller]
fn assert_warns_of_line(runner: &krunner_tests::Runner, file: &str, number: u32) {
    wait::until(&format!("a warning about {file}, line {number}"), || {
        let text = runner.stderr();
        let at_line = [format!("{file}:{number}:"), format!("line {number}")];
        text.lines().find(|line| line.contains(file) && at_line.iter().any(|at| line.contains(at))).map(drop)
    });
}

#[test]
fn malformed_ports_file_is_named_and_the_default_ports_are_used() {
    let client = require!(host::agent_python());
    require!(host::network_namespaces());
    let setup = app()
        .without_ports_file()
        .file("home/config/intrinsic-ports.json", "{\n  \"replin\": 1234,\n  oops\n}\n")
        .prefix(&["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    let runner = setup.start();

    assert_warns_of_line(&runner, "intrinsic-ports.json", 3);
    wait::until_true("the default ports", || proc::listens(runner.pid(), 2000) && proc::listens(runner.pid(), 2001));
    let target = runner.pid().to_string();
    let enter = ["nsenter", "--target", &target, "--net"];
    let agent = Agent::connect_by(&enter, &client, &runner.root(), (2000, 2001));
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn ports_that_are_no_ports_are_named() {
    require!(host::network_namespaces());
    for text in ["{\"replin\": 70000}", "{\"replin\": -1}", "[]", "{\"replin\": {}}", "\u{0}"] {
        let setup = app().without_ports_file().file("home/config/intrinsic-ports.json", text).prefix(&[
            "unshare",
            "--net",
            "sh",
            "-c",
            "ip link set lo up && exec \"$0\" \"$@\"",
        ]);
        let runner = setup.start();
        runner.wait_for_log(&["intrinsic-ports.json"]);
        wait::until_true("the default port", || proc::listens(runner.pid(), 2000));
    }
}

#[test]
fn other_entries_of_the_ports_file_do_no_harm() {
    let setup = app().without_ports_file();
    let (replin, replout) = setup.ports();
    let text = format!("{{\"replin\": {replin}, \"replout\": {replout}, \"sshd\": 2200, \"newer\": 1, \"odd\": null}}");
    let runner = setup.file("home/config/intrinsic-ports.json", text).start();
    assert_alive(&mut Raw::connect(&runner));
}

#[test]
fn environ_txt_that_begins_with_a_continuation_is_named_with_its_line() {
    let runner = app().file("home/config/environ.txt", "no equals sign\nGOOD=1\n").start();
    assert_eq!(Raw::connect(&runner).exec("echo $GOOD").stdout(), "1\n");
    assert_warns_of_line(&runner, "environ.txt", 1);
}

#[test]
fn names_that_no_variable_can_have_are_named_with_their_line() {
    let runner = app().file("home/config/environ.txt", "A=1\n=empty\nB=2\nN\0L=3\nC=v\0\nD=4\n").start();
    assert_eq!(Raw::connect(&runner).exec("echo $A $B $D").stdout(), "1 2 4\n");
    for line in [2, 4, 5] {
        assert_warns_of_line(&runner, "environ.txt", line);
    }
}

#[test]
fn unreadable_environ_txt_is_named() {
    let runner = app().folder("home/config/environ.txt").start();
    assert_alive(&mut Raw::connect(&runner));
    runner.wait_for_log(&["environ.txt"]);
}

#[test]
fn missing_compiler_is_named() {
    let setup = Setup::new("c").runtime("/nowhere/gcc").file("home/work/main.c", "int main(void) { return 0; }\n");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);

    raw.op("build", "*");
    let build = raw.read_until(Message::ends_step);
    assert_ne!(build.ends()[0].exit_code(), 0);
    assert!(build.stderr().contains("/nowhere/gcc"), "{}", build.stderr());
    assert_eq!(raw.exec("*").codes(), [("finished", 127)]);

    raw.op("code", "int main(void) { return 0; }");
    let query = raw.read_runs(1);
    assert_ne!(query.ends()[0].exit_code(), 0);
    assert!(query.stderr().contains("/nowhere/gcc"), "{}", query.stderr());
    assert_alive(&mut raw);
}

#[test]
fn missing_interpreter_is_named_and_the_session_starts_all_the_same() {
    let setup = Setup::new("python").runtime("/nowhere/python3").file("home/work/main.py", "print(1)\n");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);

    assert_alive(&mut raw);
    let run = raw.exec("*");
    assert_ne!(run.ends()[0].exit_code(), 0);
    assert!(run.stderr().contains("/nowhere/python3"), "{}", run.stderr());
    assert_alive(&mut raw);
}

#[test]
fn missing_shell_is_named() {
    require!(host::root().and_then(|()| host::util_linux()));
    // A shell that cannot be executed, for this runner alone.
    let hide = "mount --bind /dev/null \"$(readlink -f /bin/sh)\" && exec \"$0\" \"$@\"";
    let runner = app().prefix(&["unshare", "--mount", "sh", "-c", hide]).start();
    let mut raw = Raw::connect(&runner);

    for _ in 0..2 {
        let run = raw.exec("echo no shell no echo");
        assert_ne!(run.ends()[0].exit_code(), 0);
        assert_eq!(run.stdout(), "");
        assert!(run.stderr().contains("/bin/sh"), "{}", run.stderr());
    }
    raw.sync();
}

#[test]
fn removed_working_directory_is_reported_and_survived() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    assert_alive(&mut raw);
    fs::remove_dir_all(runner.home()).expect("the home folder goes");

    for _ in 0..2 {
        let run = raw.exec("echo no folder");
        assert_ne!(run.ends()[0].exit_code(), 0);
        assert!(run.stderr().contains("working directory"), "{}", run.stderr());
        assert_eq!(run.stdout(), "");
    }
    raw.sync();
}

#[test]
fn working_directory_removed_under_a_running_step() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    let go = runner.root().join("tmp/go");
    raw.op("exec", &format!("{}; {}; echo done", announce("started"), wait_for_file(go.to_str().expect("UTF-8"))));
    runner.wait_for("started");
    fs::remove_dir_all(runner.home()).expect("the home folder goes");
    fs::write(go, "").expect("a file");

    let run = raw.read_runs(1);
    assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 0)], "done\n"));
    raw.sync();
}

#[test]
fn unwritable_home_fails_the_steps_that_write_there_and_no_other() {
    require!(host::root());
    let setup = Setup::new("c").runtime(require!(host::c_compiler())).user(NOBODY);
    fs::set_permissions(setup.home(), Permissions::from_mode(0o555)).expect("chmod");
    let home = setup.home();
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);

    raw.op("code", "int main(void) { return 0; }");
    let query = raw.read_runs(1);
    assert_ne!(query.ends()[0].exit_code(), 0);
    let home = home.to_str().expect("UTF-8");
    assert!(query.stderr().contains("ermission denied"), "{}", query.stderr());
    assert!(query.stderr().contains(home) || query.stderr().contains("working directory"), "{}", query.stderr());
    assert_alive(&mut raw);
}

#[test]
fn home_of_another_user_is_one_warning_with_both_uids() {
    require!(host::root());
    let runner = app().user(NOBODY).start();
    assert_alive(&mut Raw::connect(&runner));
    let line = runner.wait_for_log(&["owned by uid 0, but the runner has uid 65534"]);
    assert!(line.contains(&format!("{}: ", runner.home().display())), "{line}");
    assert!(line.contains("not writable"), "{line}");
    assert_eq!(runner.stderr().matches("owned by uid").count(), 1);
}

#[test]
fn unwritable_task_log_does_not_stop_the_step() {
    let runner = app().file("home/work/.logs/task", "a file where a folder should be").start();
    let mut raw = Raw::connect(&runner);

    let run = raw.exec("echo out; echo err >&2; exit 3");

    assert_eq!(run.codes(), [("finished", 3)]);
    assert_eq!(run.stdout(), "out\n");
    assert_eq!(child_lines(&run.stderr()), ["err"]);
    runner.wait_for_log(&["app-kernel: ", ".logs/task"]);
}

#[test]
fn kernel_id_that_is_none_does_not_stop_the_step() {
    for id in [None, Some(""), Some("not-a-uuid"), Some("../../../../etc")] {
        let setup = app().folder("home/work/.logs").without_env("BACKENDAI_KERNEL_ID");
        let setup = if let Some(id) = id { setup.env("BACKENDAI_KERNEL_ID", id) } else { setup };
        let runner = setup.start();
        assert_alive(&mut Raw::connect(&runner));
        runner.wait_for_log(&["BACKENDAI_KERNEL_ID"]);
    }
}

#[test]
fn python_without_a_place_for_its_hook_runs_programs_all_the_same() {
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("home/work/.local", "a file where a folder should be")
        .file("home/work/main.py", "print('ran')\n");
    let runner = setup.start();

    let run = Raw::connect(&runner).exec("*");

    assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 0)], "ran\n"));
    runner.wait_for_log(&["python-kernel: ", ".local"]);
}

#[test]
fn input_socket_of_an_earlier_session_is_replaced() {
    let setup = app();
    let path = setup.root().join("tmp/bai-user-input.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let runner = setup.start();
    assert_eq!(runner.ask_for_input(), "<user-input is unsupported>");
}

#[test]
fn input_socket_that_cannot_be_made_is_named_and_the_session_goes_on() {
    let runner = app().file("tmp/bai-user-input.sock/in-the-way", "").start();
    assert_alive(&mut Raw::connect(&runner));
    runner.wait_for_log(&["app-kernel: ", "bai-user-input.sock"]);
}

#[test]
fn bootstrap_script_that_is_a_folder_holds_up_nothing() {
    let runner = app().folder("home/work/bootstrap.sh").start();
    assert_alive(&mut Raw::connect(&runner));
}

#[test]
fn bootstrap_script_that_cannot_be_read_is_named_and_holds_up_nothing() {
    require!(host::root());
    let setup = app().file("home/work/bootstrap.sh", "echo not readable\n").user(NOBODY);
    fs::set_permissions(setup.home().join("bootstrap.sh"), Permissions::from_mode(0o000)).expect("chmod");
    let runner = setup.start();

    let run = Raw::connect(&runner).exec("echo alive");

    assert_eq!(run.stdout(), "alive\n");
    assert!(run.stderr().contains("bootstrap.sh"), "{}", run.stderr());
}

#[test]
fn another_users_file_at_the_sockets_path_keeps_no_program_from_asking() {
    require!(host::root().and_then(|()| host::util_linux()));
    let main = "import os\nprint(input('name? '), os.environ['KRUNNER_INPUT_SOCKET'])\n";
    let setup = Setup::new("python")
        .runtime(require!(host::user_python()))
        .file("home/work/main.py", main)
        .file("tmp/bai-user-input.sock", "theirs");
    let runner = setup.as_work().start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "*");
    raw.read_until(|message| message.kind == "waiting-input");
    raw.op("input", "mine");
    let run = raw.read_runs(1);
    let answer = format!("mine {}/tmp/krunner-input-", runner.root().display());
    assert!(run.stdout().starts_with(&answer), "{run:?}");
    runner.wait_for_log(&["bai-user-input.sock", "remove the file from the image"]);
    assert_eq!(fs::read_to_string(runner.root().join("tmp/bai-user-input.sock")).expect("their file"), "theirs");
}

/// Runs these shell commands before the runner, which they may limit.
fn after(setup: Setup, commands: &str) -> Setup {
    let script = format!("{commands}; exec \"$0\" \"$@\"");
    setup.prefix(&["sh", "-c", &script])
}

#[test]
fn configuration_files_that_never_end_are_named() {
    let setup = app();
    let environ = setup.root().join("home/config/environ.txt");
    let definitions = setup.root().join("home/config/port-mapping.json");
    let make = format!("rm -f {0}; mkfifo {0}; ln -s /dev/zero {1}", environ.display(), definitions.display());
    let runner = after(setup.folder("home/config"), &make).start();
    runner.wait_for_log(&["environ.txt", "not a regular file"]);
    assert_eq!(Raw::connect(&runner).exec("echo alive").stdout(), "alive\n");
}

#[test]
fn variable_that_no_program_could_get_is_named_and_left_out() {
    let environ = format!("BEFORE=1\nHUGE={}\nAFTER=2\n", "x".repeat(3 << 20));
    let runner = app().file("home/config/environ.txt", environ).start();
    runner.wait_for_log(&["environ.txt", "variable HUGE skipped", "E2BIG"]);
    assert_eq!(Raw::connect(&runner).exec("echo $BEFORE$HUGE$AFTER").stdout(), "12\n");
}

#[test]
fn task_log_at_the_limit_of_file_sizes_does_not_end_the_runner() {
    let mut runner = after(app().folder("home/work/.logs"), "ulimit -f 8").start();
    let mut raw = Raw::connect(&runner);
    assert_eq!(raw.exec("seq 100000 | tail -n 1").stdout(), "100000\n");
    let run = raw.exec("seq 100000");
    assert!(run.stdout().ends_with("\n100000\n"), "nothing is lost but in the log");
    assert_eq!(raw.exec("dd if=/dev/zero of=file bs=64k count=1 2> /dev/null; echo $?").stdout(), "153\n", "SIGXFSZ");
    assert!(runner.is_running());
}

#[test]
fn signals_that_were_blocked_are_unblocked() {
    let mut runner = app().prefix(&["env", "--block-signal"]).start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", &format!("{}; sleep 600", announce("started")));
    let shell: u32 = runner.wait_for("started").trim().parse().expect("a PID");
    // A shell that is interrupted before it starts a program waits for that program nevertheless.
    let sleeps = || proc::children(shell).iter().any(|pid| proc::comm(*pid).as_deref() == Some("sleep"));
    wait::until_true("the program to run", sleeps);
    raw.op("interrupt", "");
    assert_eq!(raw.read_runs(1).codes(), [("finished", -2)]);
    runner.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(runner.wait_exit().success());
}
