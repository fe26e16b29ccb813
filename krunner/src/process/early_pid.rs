//! The pid of a child that may hang in `exec`, before its spawn returns: the child writes it to a pipe.

use std::io::{self, PipeReader, PipeWriter, Read as _};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sys;

/// The reading end.
pub(super) struct EarlyPid(Mutex<State>);

struct State {
    reader: PipeReader,
    /// `None` before the child has written it.
    pid: Option<Pid>,
    /// Nobody waits for the spawn any more.
    is_abandoned: bool,
    /// The spawn has returned: the pid may be another process's by now.
    has_returned: bool,
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
        let state = State { reader, pid: None, is_abandoned: false, has_returned: false };
        Ok((Arc::new(Self(Mutex::new(state))), EarlyPidWriter(writer)))
    }

    /// The pid, if the child has written it by now. Kills the child if it is abandoned.
    pub(super) fn get(&self) -> Option<Pid> {
        let mut state = self.lock();
        state.update();
        state.pid
    }

    /// Kills the child while its spawn has not returned: at once, or when [`Self::get`] finds the pid.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.is_abandoned = true;
        state.update();
    }

    /// Notes that the spawn has returned.
    pub(super) fn spawn_returned(&self) {
        self.lock().has_returned = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn update(&mut self) {
        let mut bytes = [0; size_of::<i32>()];
        // The whole number is written at once.
        if self.pid.is_none() && self.reader.read_exact(&mut bytes).is_ok() {
            self.pid = Some(Pid::from_raw(i32::from_ne_bytes(bytes)));
        }
        if let Some(pid) = self.pid.filter(|_| self.is_abandoned && !self.has_returned) {
            // It is not reaped before the spawn returns. Fails if it has exited.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

impl EarlyPidWriter {
    /// Makes the child of this command write its pid.
    pub(super) fn report(self, command: &mut Command) {
        sys::report_pid(command, self.0);
    }
}
