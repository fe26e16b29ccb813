//! Where and as whom a program is started: a command that ends in `exec`ing its arguments, link by link.

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cgroup::Cgroup;
use crate::{proc, wait};

/// How to start a program. Each link applies inside the ones before it.
#[derive(Clone, Debug, Default)]
pub struct Way(Vec<OsString>);

impl Way {
    /// As the tests themselves run.
    #[must_use]
    pub fn here() -> Self {
        Self::default()
    }

    /// In that cgroup.
    #[must_use]
    pub fn cgroup(self, cgroup: &Cgroup) -> Self {
        self.then(["sh", "-c", "echo 0 > \"$0\" && exec \"$@\""]).then([cgroup.procs_file()])
    }

    /// In that world.
    #[must_use]
    pub fn world(self, world: &World) -> Self {
        self.then(["nsenter", "--target", &world.init.to_string(), "--pid", "--mount"])
    }

    /// In a mount namespace of its own, where these shell commands have been run.
    #[must_use]
    pub fn mounts(self, commands: &str) -> Self {
        let script = format!("set -e; {commands}\nexec \"$@\"");
        self.then(["unshare", "--mount", "sh", "-c", &script, "sh"])
    }

    /// As a user who may do nothing.
    #[must_use]
    pub fn user(self, user_id: u32) -> Self {
        let id = user_id.to_string();
        self.then(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"])
    }

    /// By a command that `exec`s its arguments.
    #[must_use]
    pub fn then<S: Into<OsString>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.0.extend(command.into_iter().map(Into::into));
        self
    }

    /// The links, for those who start programs themselves.
    pub fn links(&self) -> &[OsString] {
        &self.0
    }

    /// The command for that program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.0.iter().map(OsString::as_os_str).chain([program.as_ref()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words);
        command
    }
}

/// Pid and mount namespaces of their own, as in a container. Its first process does nothing.
#[derive(Debug)]
pub struct World {
    outside: Child,
    init: u32,
}

impl World {
    /// Fails, with the reason, where there is no program to make one.
    pub fn available() -> Result<(), String> {
        // Not looked up on the PATH: the first process of a virtual machine has none.
        let mut unshare = Command::new("unshare");
        let tried = unshare.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.map(drop).map_err(|error| format!("no unshare: {error}"))
    }

    /// An empty one.
    #[track_caller]
    pub fn new() -> Self {
        // As long as our end of stdin is open.
        let command = ["--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", "read gone || exit 0"];
        let outside = Command::new("unshare")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare starts");
        let init = wait::until("the world's first process", || proc::children(outside.id()).first().copied());
        // By then its /proc is mounted.
        wait::until_true("the world is ready", || proc::comm(init).as_deref() == Some("sh"));
        Self { outside, init }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Ends its first process, and with that all others in the namespace. `unshare` wants to die of the signal that its
    /// child died of: of SIGKILL it complains that `sigprocmask unblock failed`, since that signal has no action to reset
    /// (`sys-utils/unshare.c` of util-linux). So the first process is asked to exit, and killed only if it does not.
    fn end(&mut self) -> Option<ExitStatus> {
        const GRACE: Duration = Duration::from_secs(10);
        drop(self.outside.stdin.take());
        let exited = wait::within(GRACE, || self.outside.try_wait().ok().flatten());
        exited.or_else(|| {
            proc::signal(self.init, Signal::SIGKILL);
            self.outside.wait().ok()
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host, require};

    #[test]
    fn world_ends_by_itself_with_all_that_is_in_it() {
        require!(host::root().and_then(|()| host::util_linux()));
        let mut world = World::new();
        let mut inside = Way::here().world(&world).command("sleep").arg("1000").spawn().expect("nsenter starts");

        let status = world.end().expect("its end");

        assert!(status.success(), "unshare had to complain: {status}");
        assert!(!inside.wait().expect("wait for nsenter").success());
    }
}
