//! Processes that a scene starts, and what is told of their end.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use nix::libc;

use super::eat::tell_of;

/// One process that a scene has started.
#[derive(Debug)]
pub(crate) struct Started(Child);

impl Started {
    /// This program once more. It writes to our stdout and has a stdin of its own.
    pub(crate) fn victim<S: AsRef<OsStr>>(args: &[S]) -> Self {
        let mut command = Command::new(fs::read_link("/proc/self/exe").expect("/proc is mounted"));
        command.args(args);
        Self::of(command)
    }

    /// Any command.
    pub(crate) fn of(mut command: Command) -> Self {
        Self(command.stdin(Stdio::piped()).spawn().expect("a process"))
    }

    /// Its pid in our namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets one go on that waits for it.
    pub(crate) fn go(&mut self) {
        let stdin = self.0.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(b"\n").expect("one that waits reads");
    }

    /// Waits for its end and tells it. One that holds ends by this.
    pub(crate) fn tell_end(mut self) {
        drop(self.0.stdin.take());
        self.tell_own_end();
    }

    /// Waits until somebody else ends it and tells that.
    pub(crate) fn tell_own_end(mut self) {
        // `wait` of std would close its stdin, by which it would end.
        let stdin = self.0.stdin.take();
        let killed = loop {
            match self.0.wait() {
                Ok(status) => break status.signal() == Some(libc::SIGKILL),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}"),
            }
        };
        drop(stdin);
        tell_of(if killed { "killed" } else { "exited" }, self.0.id());
    }
}
