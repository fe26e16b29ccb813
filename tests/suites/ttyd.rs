//! The terminal in the browser: real ttyd binaries of both generations, driven over their websocket.

use std::fs;

use krunner_tests::{Runner, Server, Setup, Tty, host, proc, require, wait};
use nix::sys::signal::Signal;

use crate::app;

/// What the shells in tmux are ready with.
const PROMPT: &str = "ready> ";

/// Agents of 23.3: the server of the volume, which takes input unasked.
fn older() -> Result<Setup, String> {
    Ok(app().copy("opt/backend.ai/bin/ttyd", &host::volume_package()?.join("ttyd_linux.x86_64.bin")))
}

/// Agents of 26.9: a server that has to be told to take input.
fn newer() -> Result<Setup, String> {
    Ok(app().copy("opt/kernel/ttyd", &host::newer_runner_programs()?.join("ttyd_linux.x86_64.bin")))
}

/// With tmux and, as the agent gives it, its configuration or none.
fn with_tmux(setup: Setup, configured: bool) -> Result<Setup, String> {
    let programs = host::runner_programs()?;
    // Its socket is elsewhere than other sessions' on this machine.
    let sockets = setup.root().join("tmp");
    let setup =
        setup.copy("opt/kernel/tmux", &programs.join("tmux.ubuntu22.04.x86_64.bin")).env("TMUX_TMPDIR", sockets);
    let setup = setup.file("home/work/.bash_profile", format!("PS1='{PROMPT}'\n"));
    let configuration = fs::read(programs.join(".tmux.conf")).map_err(|error| error.to_string())?;
    Ok(if configured { setup.file("home/work/.tmux.conf", configuration) } else { setup })
}

/// A terminal that shows tmux. Input typed before that is lost.
fn connect_to_tmux(port: u16) -> Tty {
    let mut tty = Tty::connect(port, 80, 24);
    tty.read_until(PROMPT);
    tty
}

fn start(setup: Setup, shell: &str, target: &str) -> (Runner, u16) {
    let (_, port) = setup.service_ports();
    let setup = setup.link(&format!("bin/{shell}"), target).file("home/config/environ.txt", "FROM_AGENT=yes\n");
    (setup.start(), port)
}

/// A command's output, its environment, and a new size.
fn check_terminal(setup: Setup) {
    let (runner, port) = start(setup, "bash", "/bin/bash");
    let mut tty = Tty::connect(port, 80, 24);

    tty.type_line("echo \"<$((6*7)) $FROM_AGENT $PWD>\"");
    tty.read_until(&format!("<42 yes {}>", runner.home().display()));
    tty.type_line("echo \"<$(stty size)>\"");
    tty.read_until("<24 80>");
    tty.resize(132, 43);
    tty.type_line("while [ \"$(stty size)\" != '43 132' ]; do sleep 0.05; done; echo \"<$(stty size)>\"");
    tty.read_until("<43 132>");
    tty.type_line("echo \"<tmux:$TMUX>\"");
    tty.read_until("<tmux:>");
}

/// One session for all connections, which survives them and the server.
fn check_tmux(setup: Setup) {
    let (runner, port) = start(setup, "bash", "/bin/bash");
    let mut first = connect_to_tmux(port);
    first.type_line("answer=41; echo \"<${TMUX:+in tmux} $FROM_AGENT $((answer+1))>\"");
    first.read_until("<in tmux yes 42>");
    first.type_line("echo \"<${SHELL#\"${HOME%/home/work}\"}>\"");
    first.read_until("</bin/bash>");

    let tmux = runner.root().join("opt/kernel/tmux");
    first.type_line(&format!("echo \"<$({} list-sessions | wc -l) session>\"", tmux.display()));
    first.read_until("<1 session>");

    let mut second = connect_to_tmux(port);
    second.type_line("echo \"<again $((answer+2))>\"");
    second.read_until("<again 43>");
    first.read_until("<again 43>");

    let server = wait::until("the server", || {
        let is_ttyd = |pid: &u32| proc::comm(*pid).as_deref() == Some("ttyd");
        proc::children(runner.pid()).into_iter().find(is_ttyd)
    });
    proc::signal(server, Signal::SIGKILL);
    runner.wait_for_log(&["restarting ttyd in 1 s"]);
    // Not before: ttyd 1.6.3 mostly crashes when two connections break, and the signal would meet its successor.
    drop((first, second));
    let mut third = connect_to_tmux(port);
    third.type_line("echo \"<still $((answer+3))>\"");
    third.read_until("<still 44>");
}

#[test]
fn command_is_typed_and_read_in_the_older_terminal() {
    check_terminal(require!(older()));
}

#[test]
fn command_is_typed_and_read_in_the_newer_terminal() {
    check_terminal(require!(newer()));
}

#[test]
fn connections_share_a_session_of_tmux_in_the_older_terminal() {
    check_tmux(require!(older().and_then(|setup| with_tmux(setup, true))));
}

#[test]
fn connections_share_a_session_of_tmux_in_the_newer_terminal() {
    check_tmux(require!(newer().and_then(|setup| with_tmux(setup, true))));
}

#[test]
fn session_of_tmux_needs_no_configuration() {
    check_tmux(require!(newer().and_then(|setup| with_tmux(setup, false))));
}

#[test]
fn terminal_that_tmux_does_not_know_is_one_without_it() {
    // The build for Alpine looks for descriptions of terminals in the home, where the agent mounts them there.
    let programs = require!(host::runner_programs());
    let setup = require!(newer().and_then(|setup| with_tmux(setup, true)));
    let (runner, port) =
        start(setup.copy("opt/kernel/tmux", &programs.join("tmux.alpine3.8.x86_64.bin")), "bash", "/bin/bash");
    let mut tty = Tty::connect(port, 80, 24);
    tty.type_line("echo \"<$((6*7)) $PWD tmux:$TMUX>\"");
    tty.read_until(&format!("<42 {} tmux:>", runner.home().display()));
}

/// The other is a process of its own. A listener of this one is also open in every child that other tests have forked and
/// that has not come to its exec: what is closed here still takes connections there, which then break.
#[test]
fn port_that_another_has_is_taken_when_it_is_free() {
    let setup = require!(older());
    let python = require!(host::agent_python());
    let (_, port) = setup.service_ports();
    let other = Server::start(&python, "listener.py", &[&port.to_string()]);
    let (runner, port) = start(setup, "sh", "/bin/sh");
    let holder = format!("(process {})", other.pid());
    runner.wait_for_log(&["cannot start ttyd", &format!("port {port} is already in use by"), &holder]);
    other.finish();
    let mut tty = Tty::connect(port, 80, 24);
    tty.type_line("echo \"<$((6*7))>\"");
    tty.read_until("<42>");
}

#[test]
fn ash_does_without_tmux() {
    let busybox = require!(host::program("busybox"));
    let setup = require!(older().and_then(|setup| with_tmux(setup, true)));
    let (_runner, port) = start(setup, "ash", busybox.to_str().expect("UTF-8"));
    let mut tty = Tty::connect(port, 80, 24);
    tty.type_line("echo \"<$((6*7)) tmux:$TMUX>\"");
    tty.read_until("<42 tmux:>");
}

#[test]
fn stop_ends_the_terminal_and_what_runs_in_it() {
    let setup = require!(older().and_then(|setup| with_tmux(setup, true)));
    let (mut runner, port) = start(setup, "bash", "/bin/bash");
    let mut tty = connect_to_tmux(port);
    tty.type_line("trap '' HUP; echo > in; sleep 1000");
    runner.wait_for("in");

    runner.signal(Signal::SIGTERM);

    assert!(runner.wait_exit().success());
    assert_eq!(runner.processes(), [0; 0]);
}
