//! How each of the services is started.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::host_key::HostKey;
use super::keys::Keys;
use super::missing_program::MissingProgram;
use super::plan_error::PlanError;
use super::sshd::Dropbear;
use super::ttyd;
use crate::config::{ChildEnv, Paths, Ports, allows_ssh_password};
use crate::error::chain;
use crate::logging::OPERATOR;
use crate::process::{Command, Control, Launcher};
use crate::supervisor::ProgramLaunch;
use crate::tasks::blocking;

/// The name of the ssh server among the services.
pub(crate) const SSHD: &str = "sshd";

/// The name of the terminal in the browser among the services.
pub(crate) const TTYD: &str = "ttyd";

/// Set explicitly because dropbear's default is in a directory of root.
const PID_FILE: &str = "dropbear.pid";

/// Plans the start of the services. Clones share the finished plans.
#[derive(Clone)]
pub(crate) struct Planner {
    paths: Paths,
    ports: Ports,
    launcher: Launcher,
    env: Arc<ChildEnv>,
    /// Planned once, so that a restarted server has the same host key.
    sshd: Arc<OnceLock<ServicePlan>>,
}

/// How a service is started and restarted.
#[derive(Clone)]
pub(crate) struct ServicePlan {
    pub(super) launch: ProgramLaunch,
    /// The TCP port that it listens on. Without one it is ready as soon as it runs.
    pub(super) port: Option<u16>,
    host_key: Option<HostKey>,
}

impl ServicePlan {
    /// Restores files that the service needs at its start and the user may have removed.
    pub(super) async fn restore_files(&self) {
        let Some(key) = self.host_key.clone() else { return };
        if let Err(error) = blocking(move || key.restore()).await {
            tracing::warn!("cannot restore the host key of {}: {error}", self.launch.name);
        }
    }
}

impl Planner {
    /// `env` is the environment of user code. The launcher also runs the key generation.
    #[must_use]
    pub(crate) fn new(paths: Paths, ports: Ports, launcher: Launcher, env: ChildEnv) -> Self {
        Self { paths, ports, launcher, env: Arc::new(env), sshd: Arc::default() }
    }

    /// The launcher for the services' processes.
    #[must_use]
    pub(crate) fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// Installs the keys, once per session, and plans the ssh server.
    ///
    /// # Errors
    /// With the reason why the server cannot be started. It was logged.
    pub(crate) async fn sshd(self, control: Control) -> Result<ServicePlan, PlanError> {
        if let Some(plan) = self.sshd.get() {
            return Ok(plan.clone());
        }
        let paths = self.paths.clone();
        let dropbear = blocking(move || Dropbear::choose(&paths, Path::is_file)).await;
        let dropbear = dropbear.inspect_err(|error| tell_missing(SSHD, error))?;
        let Self { paths, launcher, env, .. } = &self;
        let keys = Keys { dropbear: &dropbear, paths, launcher, env, control: &control };
        let files = keys.prepare().await.inspect_err(|error| {
            if !control.is_terminated() {
                tracing::error!("cannot start {SSHD}: {}", chain(error));
            }
        })?;
        let (pid_file, takes_passwords) = (files.folder.join(PID_FILE), self.takes_passwords().await);
        let serve = dropbear.serve(files.host_key.file(), &pid_file, takes_passwords, &self.ports.sshd);
        let (launch, port) = (self.launch(SSHD, serve), self.ports.sshd.first().copied());
        Ok(self.sshd.get_or_init(|| ServicePlan { launch, port, host_key: Some(files.host_key) }).clone())
    }

    /// Whether the agent prepared a password, unless passwords are turned off. The server checks it against `/etc/shadow`; the
    /// file only shows that there is one.
    async fn takes_passwords(&self) -> bool {
        let (is_allowed, warning) = allows_ssh_password(&self.env);
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        let file = self.paths.password();
        is_allowed && blocking(move || file.is_file()).await
    }

    /// Plans the terminal server.
    ///
    /// # Errors
    /// With the reason why the server cannot be started. It was logged.
    pub(crate) async fn ttyd(self) -> Result<ServicePlan, PlanError> {
        let (paths, port) = (self.paths.clone(), self.ports.ttyd);
        let serve = blocking(move || ttyd::serve(&paths, port, Path::is_file)).await;
        let serve = serve.inspect_err(|error| tell_missing(TTYD, error))?;
        Ok(ServicePlan { launch: self.launch(TTYD, serve), port: Some(port), host_key: None })
    }

    fn launch(&self, name: &str, command: Command) -> ProgramLaunch {
        ProgramLaunch { name: name.to_owned(), command, env: (*self.env).clone() }
    }
}

/// Logged for the operator of the node: the agent mounts these programs, users cannot.
fn tell_missing(name: &str, error: &MissingProgram) {
    tracing::warn!(target: OPERATOR, "cannot start {name}: {error}");
}
