//! How the process is called, how it looks from outside, and how it fails to start.

use std::net::{Ipv4Addr, TcpListener};

use krunner_tests::{Raw, Runner, Setup, free_port, host, proc, require};

use crate::app;

#[track_caller]
fn assert_name(runner: &Runner) {
    // The kernel keeps 15 bytes.
    assert_eq!(proc::comm(runner.pid()).as_deref(), Some("backend.ai: ker"));
    let cmdline = proc::cmdline(runner.pid()).expect("the runner runs");
    assert!(!cmdline.contains("python"), "`pkill -f python` would hit {cmdline:?}");
}

#[test]
fn name_tells_what_it_is_and_nothing_of_python() {
    let runner = Setup::new("python").runtime(require!(host::user_python())).start();
    Raw::connect(&runner).sync();
    assert_name(&runner);
}

#[test]
fn command_line_of_the_agent_is_accepted() {
    let python = require!(host::user_python());
    let setup = Setup::new("python").runtime(python).started_as("python");
    let setup = setup.option("-s").option("-m").option("ai.backend.kernel").file("home/work/main.py", "print(6 * 7)\n");
    let runner = setup.start();

    let run = Raw::connect(&runner).exec("*");

    assert_eq!(run.stdout(), "42\n");
    assert_name(&runner);
}

#[test]
fn debug_keeps_log_lines_out_of_the_replies() {
    for debug in [false, true] {
        let setup = if debug { app().debug() } else { app() };
        let runner = setup.start();
        let run = Raw::connect(&runner).exec("*");
        let warning = "app-kernel: ";
        assert_eq!(run.stderr().contains(warning), !debug, "{run:?}");
        runner.wait_for_log(&[warning, "batch-mode execution is not supported"]);
    }
}

#[test]
fn unknown_language_is_a_usage_error() {
    let mut runner = Setup::new("klingon").start();
    let status = runner.wait_exit();
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let message = runner.stderr();
    assert!(message.contains("klingon") && message.contains("python"), "names what it knows: {message}");
}

#[test]
fn taken_port_is_one_clear_error_with_a_code_of_its_own() {
    for taken_is_in in [true, false] {
        let holder = TcpListener::bind((Ipv4Addr::UNSPECIFIED, free_port())).expect("a port of our own");
        let taken = holder.local_addr().expect("an address").port();
        let (replin, replout) = if taken_is_in { (taken, free_port()) } else { (free_port(), taken) };
        let ports = format!("{{\"replin\": {replin}, \"replout\": {replout}}}");
        let setup = app().without_ports_file().file("home/config/intrinsic-ports.json", ports);
        let mut runner = setup.start();

        let status = runner.wait_exit();

        assert_eq!(status.code(), Some(3), "{status}");
        let errors: Vec<_> =
            runner.stderr().lines().filter(|line| line.contains(&taken.to_string())).map(str::to_owned).collect();
        assert_eq!(errors.len(), 1, "{}", runner.stderr());
    }
}

#[test]
fn sessions_side_by_side_do_not_meet() {
    let runners: Vec<_> = (0..3).map(|_| app().start()).collect();
    let mut clients: Vec<_> = runners.iter().map(Raw::connect).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.op("exec", &format!("echo {i} > mine; cat mine"));
    }
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.read_runs(1).stdout(), format!("{i}\n"));
    }
}

#[test]
fn session_can_be_started_again_on_the_same_ports() {
    // A connection that the first runner closed lingers in the kernel; the second must be able to listen all the same.
    let (replin, replout) = (free_port(), free_port());
    let ports = format!("{{\"replin\": {replin}, \"replout\": {replout}}}");
    for _ in 0..3 {
        let setup = app().without_ports_file().file("home/config/intrinsic-ports.json", &ports);
        let mut runner = setup.start();
        let mut raw = Raw {
            push: krunner_tests::zmtp::Peer::connect(replin, "PUSH"),
            pull: krunner_tests::zmtp::Peer::connect(replout, "PULL"),
        };
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
        runner.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(runner.wait_exit().code(), Some(0), "{}", runner.stderr());
    }
}
