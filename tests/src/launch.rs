//! How a program is launched: in which cgroup and namespaces and as which user. Each wrapper command `exec`s its arguments.

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cgroup::Cgroup;
use crate::{proc, wait};

/// A chain of wrapper commands for a program. Each wrapper runs inside the ones before it.
#[derive(Clone, Debug, Default)]
pub struct LaunchMethod(Vec<OsString>);

impl LaunchMethod {
    /// Launches a program without a wrapper.
    #[must_use]
    pub fn direct() -> Self {
        Self::default()
    }

    /// Launches it in this cgroup.
    #[must_use]
    pub fn cgroup(self, cgroup: &Cgroup) -> Self {
        self.then(["sh", "-c", "echo 0 > \"$0\" && exec \"$@\""]).then([cgroup.procs_file()])
    }

    /// Launches it in the namespaces of this sandbox.
    #[must_use]
    pub fn sandbox(self, sandbox: &Sandbox) -> Self {
        self.then(["nsenter", "--target", &sandbox.init.to_string(), "--pid", "--mount"])
    }

    /// Launches it in a mount namespace of its own, after running these shell commands there.
    #[must_use]
    pub fn mounts(self, commands: &str) -> Self {
        let script = format!("set -e; {commands}\nexec \"$@\"");
        self.then(["unshare", "--mount", "sh", "-c", &script, "sh"])
    }

    /// Launches it as an unprivileged user.
    #[must_use]
    pub fn user(self, user_id: u32) -> Self {
        self.user_with(user_id, &["--clear-groups"])
    }

    /// Launches it as an unprivileged user in the groups that these options of `setpriv` select.
    #[must_use]
    pub fn user_with(self, user_id: u32, groups: &[&str]) -> Self {
        let id = user_id.to_string();
        self.then(["setpriv", "--reuid", &id, "--regid", &id, "--inh-caps=-all"]).then(groups)
    }

    /// Adds a wrapper command that `exec`s its arguments.
    #[must_use]
    pub fn then<S: Into<OsString>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.0.extend(command.into_iter().map(Into::into));
        self
    }

    /// The arguments that go in front of the program.
    pub fn argv_prefix(&self) -> &[OsString] {
        &self.0
    }

    /// The command that launches this program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.0.iter().map(OsString::as_os_str).chain([program.as_ref()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words);
        command
    }
}

/// PID and mount namespaces, as in a container, whose init is idle.
#[derive(Debug)]
pub struct Sandbox {
    outside: Child,
    init: u32,
}

impl Sandbox {
    /// Fails if the program that creates a sandbox is missing.
    pub fn available() -> Result<(), String> {
        // Runs it instead of searching the PATH, which the init of a virtual machine does not have.
        let mut unshare = Command::new("unshare");
        let tried = unshare.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.map(drop).map_err(|error| format!("no unshare: {error}"))
    }

    /// Creates an empty sandbox.
    #[track_caller]
    pub fn new() -> Self {
        // Init exits when our end of its stdin is closed.
        let command = ["--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", "read gone || exit 0"];
        let outside = Command::new("unshare")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare starts");
        let init = wait::until("the sandbox's first process", || proc::children(outside.id()).first().copied());
        // Its /proc is mounted before it executes sh.
        wait::until_true("the sandbox is ready", || proc::comm(init).as_deref() == Some("sh"));
        Self { outside, init }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Ends init, and thereby all other processes in the namespace. `unshare` tries to die of the signal that its
    /// child died of. For SIGKILL it prints `sigprocmask unblock failed`, because that signal has no action to reset
    /// (`sys-utils/unshare.c` of util-linux). So init is asked to exit and killed only if it does not.
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

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host, require};

    #[test]
    fn dropping_a_sandbox_ends_its_processes() {
        require!(host::root().and_then(|()| host::util_linux()));
        let mut sandbox = Sandbox::new();
        let mut inside =
            LaunchMethod::direct().sandbox(&sandbox).command("sleep").arg("1000").spawn().expect("nsenter starts");

        let status = sandbox.end().expect("its end");

        assert!(status.success(), "unshare failed: {status}");
        assert!(!inside.wait().expect("wait for nsenter").success());
    }
}
