//! From what is there to what is started, for each of the services.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::keys::Keys;
use super::sshd::Dropbear;
use super::ttyd;
use crate::config::{ChildEnv, Paths, Ports};
use crate::logging::OPERATOR;
use crate::process::{Command, Control, Launcher};
use crate::service::Launch;
use crate::tasks::blocking;

/// The name of the ssh server among the services.
pub const SSHD: &str = "sshd";

/// The name of the terminal in the browser among the services.
pub const TTYD: &str = "ttyd";

/// Where the other files of the server are.
const PID_FILE: &str = "dropbear.pid";

/// What is needed to plan. Clones share what was planned already.
#[derive(Clone)]
pub struct Planner {
    paths: Paths,
    ports: Ports,
    launcher: Launcher,
    env: Arc<ChildEnv>,
    /// A server that starts anew is the same to its clients.
    sshd: Arc<OnceLock<Launch>>,
}

impl Planner {
    /// A planner for services whose environment is that of user code. The launcher is for the makers of keys.
    #[must_use]
    pub fn new(paths: Paths, ports: Ports, launcher: Launcher, env: ChildEnv) -> Self {
        Self { paths, ports, launcher, env: Arc::new(env), sshd: Arc::default() }
    }

    /// What starts programs.
    #[must_use]
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// Puts keys in their places, once in a session; then how the ssh server is started.
    ///
    /// # Errors
    /// A sentence on why it is not; it is in the log already.
    pub async fn sshd(self, control: Control) -> Result<Launch, String> {
        if let Some(launch) = self.sshd.get() {
            return Ok(launch.clone());
        }
        let paths = self.paths.clone();
        let dropbear = blocking(move || Dropbear::choose(&paths, Path::is_file)).await;
        let dropbear = dropbear.inspect_err(|problem| tell_missing(SSHD, problem))?;
        let Self { paths, launcher, env, .. } = &self;
        let keys = Keys { dropbear: &dropbear, paths, launcher, env, control: &control };
        let host_key = keys.prepare().await.inspect_err(|problem| {
            if !control.is_terminated() {
                tracing::error!("{SSHD} is not started: {problem}");
            }
        })?;
        let serve = dropbear.serve(&host_key, &paths.dropbear().join(PID_FILE), &self.ports.sshd);
        let launch = self.launch(SSHD, serve, self.ports.sshd.first().copied());
        Ok(self.sshd.get_or_init(|| launch).clone())
    }

    /// How the terminal server is started.
    ///
    /// # Errors
    /// A sentence on why it is not; it is in the log already.
    pub async fn ttyd(self) -> Result<Launch, String> {
        let (paths, port) = (self.paths.clone(), self.ports.ttyd);
        let serve = blocking(move || ttyd::serve(&paths, port, Path::is_file)).await;
        let serve = serve.inspect_err(|problem| tell_missing(TTYD, problem))?;
        Ok(self.launch(TTYD, serve, Some(port)))
    }

    fn launch(&self, name: &str, command: Command, port: Option<u16>) -> Launch {
        Launch { name: name.to_owned(), command, env: (*self.env).clone(), port }
    }
}

/// For whoever runs the node: the agent mounts these programs, no user can.
fn tell_missing(name: &str, problem: &str) {
    tracing::warn!(target: OPERATOR, "{name} is not started: {problem}");
}
