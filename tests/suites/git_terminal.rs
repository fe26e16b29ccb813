//! The shell on the terminal: bytes both ways, its size, its restarts, and clients that flood, stall or vanish.

use std::fs;
use std::process::{Command, Stdio};

use krunner_tests::zmtp::{Peer, greeting};
use krunner_tests::{Raw, Runner, Setup, Terminal, host, proc, require, wait};
use nix::sys::signal::Signal;

use crate::lines;

/// What the runner may have resident whatever comes or is not taken.
const PEAK_RSS_KIB: u64 = 40 * 1024;

fn git() -> Setup {
    Setup::new("git").without_env("PS1")
}

/// The shell of the session: the runner's only child that is one.
#[track_caller]
fn shell_of(runner: &Runner) -> u32 {
    let shells = || proc::children(runner.pid()).into_iter().filter(|&pid| proc::comm(pid).as_deref() == Some("bash"));
    wait::until("a shell on the terminal", || shells().next())
}

#[track_caller]
fn order(raw: &mut Raw, code: &str) -> (String, String, i64) {
    raw.op("code", code);
    let run = raw.read_runs(1);
    (run.stdout(), run.stderr(), run.ends()[0].exit_code())
}

#[test]
fn every_byte_passes_the_terminal_both_ways() {
    let all: Vec<u8> = (0..=255).collect();
    let runner = git().file("home/work/all", &all).start();
    let mut terminal = Terminal::connect(&runner);
    terminal.type_in(b"stty raw -echo; echo 'rea'dy; head -c 512 > typed; cat all all; stty sane; echo do''ne\n");
    terminal.wait_for(b"ready\n");
    terminal.type_in(&all);
    terminal.type_in(&all);
    let shown = terminal.wait_for(b"done\r\n");
    let twice = [all.clone(), all].concat();
    assert_eq!(fs::read(runner.home().join("typed")).expect("what was typed"), twice);
    assert_eq!(shown, twice);
}

#[test]
fn shell_leads_a_session_on_a_terminal_with_nothing_of_the_runners() {
    let runner = git().file("home/config/environ.txt", "FROM_FILE=yes\n").start();
    let mut terminal = Terminal::connect(&runner);
    let shell = shell_of(&runner);
    assert_eq!(
        terminal.run("echo $$ $PPID $(cut -d ' ' -f 6 /proc/$$/stat)"),
        format!("{shell} {} {shell}\n", runner.pid())
    );
    let tty = terminal.run("tty");
    assert!(tty.starts_with("/dev/pts/"), "{tty}");
    assert_eq!(terminal.run("cd /proc/$$/fd; readlink 0 1 2; cd"), tty.repeat(3));
    // 255 is bash's own way to the terminal.
    assert_eq!(terminal.run("ls /proc/$$/fd | tr '\\n' ' '; echo"), "0  1  2  255  \n".replace("  ", " "));
    assert_eq!(terminal.run("echo $TERM $FROM_FILE $PWD"), format!("xterm yes {}\n", runner.home().display()));
    assert_eq!(terminal.run("stty size"), "24 80\n");
    assert_eq!(terminal.run("stat -c %a $(tty)").trim_end().len(), 3, "a mode, and no error");
}

#[test]
fn size_follows_the_order_and_outlives_the_shell() {
    let runner = git().start();
    let mut raw = Raw::connect(&runner);
    let mut terminal = Terminal::connect(&runner);
    let told =
        |rows, columns| (format!("OK; terminal resized to {rows} lines and {columns} columns"), String::new(), 0);
    assert_eq!(order(&mut raw, "%resize 40 132"), told(40, 132));
    assert_eq!(terminal.run("stty size"), "40 132\n");
    // What runs in the foreground is told of the size, and ended by Ctrl-C.
    terminal.type_in(b"sh -c 'trap \"stty size; echo tr\"\"apped\" WINCH; while :; do sleep 0.1; done'\n");
    runner.wait_for_program("sleep", 1);
    assert_eq!(order(&mut raw, "%resize 50 100"), told(50, 100));
    assert!(String::from_utf8_lossy(&terminal.wait_for(b"trapped\r\n")).contains("50 100"));
    terminal.type_in(b"\x03");
    terminal.run(":");
    terminal.type_in(b"exit\n");
    terminal.wait_for(b"Restarting...\r\n");
    assert_eq!(terminal.run("stty size"), "50 100\n");
    let (stdout, stderr, code) = order(&mut raw, "%resize 0 80");
    assert_eq!((stdout.as_str(), code), ("", 127));
    assert!(stderr.starts_with("Invalid command. "), "{stderr}");
    assert_eq!(terminal.run("stty size"), "50 100\n");
}

#[test]
fn orders_are_answered_once_each() {
    let runner = git().start();
    let mut raw = Raw::connect(&runner);
    assert_eq!(order(&mut raw, "%ping"), ("pong!".into(), String::new(), 0));
    assert_eq!(order(&mut raw, "ls"), (String::new(), "Invalid command.".into(), 127));
    assert_eq!(order(&mut raw, "%reboot"), (String::new(), "Invalid command.".into(), 127));
    for _ in 0..3 {
        raw.op("code", "%ping");
    }
    assert_eq!(raw.read_runs(3).codes(), [("finished", 0); 3]);
    assert_eq!(raw.exec("*").codes(), [("finished", 127)]);
    raw.op("build", "*");
    // A failed build skips the next `exec`.
    assert_eq!(raw.exec("true").codes(), [("build-finished", 127), ("finished", 127)]);
    let run = raw.exec("echo still a shell");
    assert_eq!((run.stdout().as_str(), run.codes()), ("still a shell\n", vec![("finished", 0)]));
}

#[test]
fn shell_that_ends_is_followed_by_another_and_typing_goes_on() {
    let runner = git().start();
    let mut terminal = Terminal::connect(&runner);
    let first = shell_of(&runner);
    terminal.type_in(b"sleep 1000 &\n");
    runner.wait_for_program("sleep", 1);
    // The shell's last output arrives before the announcement. Input typed at once goes to the next shell.
    terminal.type_in(b"echo last''words; exit 3\n");
    terminal.wait_for(b"lastwords\r\n");
    terminal.wait_for(b"Restarting...\r\n");
    assert_eq!(terminal.run("echo $$").trim_end(), shell_of(&runner).to_string());
    assert!(!proc::is_alive(first));
    // The kernel hangs up on what the old shell left on its terminal; bash would have, had it been a login shell.
    proc::signal(shell_of(&runner), Signal::SIGKILL);
    terminal.wait_for(b"Restarting...\r\n");
    assert_eq!(terminal.run("echo again"), "again\n");
    assert_eq!(proc::zombies_of(runner.pid()), Vec::<u32>::new());
}

#[test]
fn shell_that_ends_at_once_is_not_started_all_the_time() {
    let runner = git().file("home/work/.bashrc", "echo $$ >> starts; exit\n").start();
    let starts = || runner.read("starts").map_or(0, |text| text.lines().count());
    wait::until_true("some starts", || starts() >= 4);
    // 100, 200, 400 ms and so on: the fifth is not there for most of a second.
    let mut raw = Raw::connect(&runner);
    assert_eq!(order(&mut raw, "%ping").0, "pong!");
    assert!(starts() <= 6, "{} starts", starts());
    runner.write(".bashrc", "");
    let mut terminal = Terminal::connect(&runner);
    assert_eq!(terminal.run("echo well"), "well\n");
}

#[test]
fn screen_flood_reaches_who_reads_and_one_who_does_not_costs_little() {
    const LINES: usize = 400_000;
    let runner = git().start();
    let mut terminal = Terminal::connect(&runner);
    let stalled = Terminal::connect_silently(&runner);
    runner.settle();
    terminal.type_in(format!("echo fl''ood; seq 1 {LINES}; echo do''ne\n").as_bytes());
    terminal.wait_for(b"flood\r\n");
    let shown = terminal.wait_for(b"done\r\n");
    let expected = lines((1..=LINES).map(|number| format!("{number}\r")));
    assert!(shown == expected.as_bytes(), "{} bytes came, {} were written", shown.len(), expected.len());
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= PEAK_RSS_KIB, "the runner had {peak} KiB resident");
    drop(stalled);
    assert_eq!(terminal.run("echo fine"), "fine\n");
}

#[test]
fn flood_of_typing_waits_for_the_shell_and_the_rest_goes_on() {
    let runner = git().start();
    let mut terminal = Terminal::connect(&runner);
    terminal.type_in(b"stty raw -echo; echo 'rea'dy; sleep 1000\n");
    terminal.wait_for(b"ready\n");
    runner.wait_for_program("sleep", 1);
    runner.settle();
    let (typed, _) = runner.terminal_ports();
    // Connected here: the thread may get its turn when all else is over.
    let mut peer = Peer::connect(typed, "PUB");
    let flooder = std::thread::spawn(move || {
        let chunk = vec![b'x'; 1024 * 1024];
        // Ends when the runner takes no more and is ended, or after more than any buffer would hold.
        (0..256).take_while(|_| peer.send_bytes(&[&[2, 0, 0, 0, 0, 0, 16, 0, 0][..], &chunk].concat()).is_ok()).count()
    });
    let mut raw = Raw::connect(&runner);
    for _ in 0..20 {
        assert_eq!(order(&mut raw, "%ping").0, "pong!");
        raw.sync();
    }
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= PEAK_RSS_KIB, "the runner had {peak} KiB resident");
    let mut runner = runner;
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    assert!(flooder.join().expect("the flooder ends") < 256, "the runner did not take it all");
}

#[test]
fn clients_that_vanish_or_send_garbage_do_not_disturb_others() {
    let runner = git().start();
    let mut terminal = Terminal::connect(&runner);
    let (typed, shown) = runner.terminal_ports();
    terminal.type_in(b"yes fl''ood\n");
    terminal.wait_for(b"flood\r\n");
    for port in [typed, shown] {
        // In the middle of a greeting, of another protocol, and of a flood.
        drop(krunner_tests::zmtp::dial(port));
        let mut half = krunner_tests::zmtp::dial(port);
        std::io::Write::write_all(&mut half, &greeting("NULL")[..20]).expect("half a greeting");
        drop(half);
        let mut http = krunner_tests::zmtp::dial(port);
        std::io::Write::write_all(&mut http, b"GET / HTTP/1.1\r\n\r\n").expect("a request");
        assert!(krunner_tests::zmtp::is_closed(&mut http));
    }
    for _ in 0..20 {
        let watcher = Terminal::connect_silently(&runner);
        drop(watcher);
    }
    let mut pull = Peer::connect(shown, "PULL");
    assert!(pull.is_closed(), "the screen is for subscribers");
    let mut chatty = Peer::connect(shown, "SUB");
    let _ = chatty.send_bytes(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(chatty.is_closed(), "a subscription has no such length");
    let mut typist = Peer::connect(typed, "PUB");
    let _ = typist.send_bytes(&[2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert!(typist.is_closed(), "nor has a text");
    terminal.type_in(b"\x03");
    assert_eq!(terminal.run("echo fine"), "fine\n");
}

#[test]
fn all_who_watch_see_the_same_and_a_topic_gets_nothing() {
    let runner = git().start();
    let mut one = Terminal::connect(&runner);
    let mut other = Terminal::connect(&runner);
    let (_, shown) = runner.terminal_ports();
    let mut topical = Peer::connect(shown, "SUB");
    topical.send(&[b"\x01news"]);
    one.run(":");
    one.type_in(b"echo to''all\n");
    one.wait_for(b"toall\r\n");
    other.wait_for(b"toall\r\n");
    other.screen.send(&[b"\x00"]);
    assert!(!topical.is_readable());
    one.run("echo un''seen");
    other.screen.send(&[b"\x01"]);
    wait::until_true("the screen again", || {
        one.run("echo se''en");
        other.screen.is_readable()
    });
    assert!(!topical.is_readable());
}

#[test]
fn stop_hangs_up_on_the_shell_and_its_jobs() {
    require!(host::program("setsid"));
    let mut runner = git().start();
    let mut terminal = Terminal::connect(&runner);
    terminal.type_in(b"trap 'echo hung up > goodbye; exit' HUP; setsid sleep 1000 & sleep 1001 & cat\n");
    runner.wait_for_program("sleep", 2);
    runner.wait_for_program("cat", 1);
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    assert_eq!(runner.read("goodbye").as_deref(), Some("hung up\n"));
    assert_eq!(runner.processes(), Vec::<u32>::new());
}

#[test]
fn port_that_is_taken_costs_the_terminal_only() {
    let setup = git();
    let (typed, _) = setup.terminal_ports();
    let _taken = std::net::TcpListener::bind(("0.0.0.0", typed)).expect("a free port");
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    runner.wait_for_log(&["shell-kernel: terminal unavailable: cannot bind port", &typed.to_string(), "termin"]);
    raw.op("code", "%ping");
    assert_eq!(raw.read_until(|message| message.kind == "finished").stdout(), "pong!");
    raw.op("code", "%resize 1 1");
    let run = raw.read_until(|message| message.kind == "finished");
    assert!(run.stderr().contains("The terminal is not available"), "{}", run.stderr());
    assert_eq!(run.codes(), [("finished", 1)]);
}

/// The manager's own sockets: libzmq's PUB for what is typed, SUB for the screen.
#[test]
fn managers_sockets_reach_the_shell() {
    let python = require!(host::agent_python());
    let runner = git().start();
    let (typed, shown) = runner.terminal_ports();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/terminal_client.py");
    let client = Command::new(python)
        .arg(program)
        .args([typed.to_string(), shown.to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("the client starts");
    let said = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&client.stdout), "42 from the shell\n");
}
