//! Processes that a scenario starts, and what is told of their end.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use nix::libc;

use super::eat::print_event;

/// One process that a scenario has started.
#[derive(Debug)]
pub(crate) struct Started(Child);

impl Started {
    /// This program once more. It writes to our stdout and has a stdin of its own.
    pub(crate) fn victim<S: AsRef<OsStr>>(args: &[S]) -> Self {
        let mut command = Command::new(fs::read_link("/proc/self/exe").expect("/proc is mounted"));
        command.args(args);
        Self::of(command)
    }

    /// Starts a command with piped stdin.
    pub(crate) fn of(mut command: Command) -> Self {
        Self(command.stdin(Stdio::piped()).spawn().expect("a process"))
    }

    /// Its PID in our namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Unblocks a process that was started with `--wait`.
    pub(crate) fn go(&mut self) {
        let stdin = self.0.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(b"\n").expect("the process reads its stdin");
    }

    /// Closes its stdin, which ends a process with `--hold`, waits for it, and prints how it ended.
    pub(crate) fn print_exit(mut self) {
        drop(self.0.stdin.take());
        self.print_own_exit();
    }

    /// Waits until another process ends it and prints how it ended.
    pub(crate) fn print_own_exit(mut self) {
        // `Child::wait` would close its stdin and thereby end it.
        let stdin = self.0.stdin.take();
        let killed = loop {
            match self.0.wait() {
                Ok(status) => break status.signal() == Some(libc::SIGKILL),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}"),
            }
        };
        drop(stdin);
        print_event(if killed { "killed" } else { "exited" }, self.0.id());
    }
}
