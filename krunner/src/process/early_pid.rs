//! The pid of a child that may hang in `exec`, before its spawn returns: the child writes it to a pipe.

use std::io::{self, PipeReader, PipeWriter, Read as _};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::Pid;

use crate::sys;

/// The reading end.
pub(super) struct EarlyPid(Mutex<State>);

enum State {
    Unread(PipeReader),
    Read(Pid),
}

/// The writing end, for one command.
pub(super) struct EarlyPidWriter(PipeWriter);

impl EarlyPid {
    /// Both ends.
    ///
    /// # Errors
    /// Without descriptors.
    pub(super) fn pipe() -> io::Result<(Arc<Self>, EarlyPidWriter)> {
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Arc::new(Self(Mutex::new(State::Unread(reader)))), EarlyPidWriter(writer)))
    }

    /// The pid, if the child has written it by now.
    pub(super) fn get(&self) -> Option<Pid> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Unread(reader) = &mut *state {
            let mut bytes = [0; size_of::<i32>()];
            // It is written at once, and so is the whole number.
            reader.read_exact(&mut bytes).ok()?;
            *state = State::Read(Pid::from_raw(i32::from_ne_bytes(bytes)));
        }
        match *state {
            State::Read(pid) => Some(pid),
            State::Unread(_) => None,
        }
    }
}

impl EarlyPidWriter {
    /// Makes the child of this command write its pid.
    pub(super) fn report(self, command: &mut Command) {
        sys::report_pid(command, self.0);
    }
}
