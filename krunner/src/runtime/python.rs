//! `python`: scripts in batch mode, where `input()` asks the runner; a Jupyter kernel in query mode.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use super::jupyter::{self, JupyterKernel};
use super::plan::{Plan, Severity};
use super::traits::{InitContext, InitError, Runtime};
use super::user_site;
use crate::config::promote;
use crate::jupyter::Interpreter;
use crate::process::Command;
use crate::tasks::blocking;

/// An interpreter on a cold network mount takes seconds to start.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// Part of the names of its kernelspecs.
const KERNEL: &str = "python";

/// Variables of the Jupyter kernel only. Plots are inline, whatever backend the image sets for batch mode, and without a
/// change to the user's `IPython` configuration. The second one silences a warning of the debugger.
const KERNEL_VARIABLES: [(&str, &str); 2] =
    [("MPLBACKEND", "module://matplotlib_inline.backend_inline"), ("PYDEVD_DISABLE_FILE_VALIDATION", "1")];

/// Prints `user site NUL prefix NUL whether that is a virtual environment`.
const PROBE: &str = "\
import site, sys
sys.stdout.write('\\0'.join([site.getusersitepackages(), sys.prefix, str(sys.prefix != sys.base_prefix)]))
";

pub(super) struct Python {
    path: PathBuf,
    /// Set by the probe.
    interpreter: OnceLock<Interpreter>,
}

impl Python {
    pub(super) fn new(interpreter: PathBuf) -> Self {
        Self { path: interpreter, interpreter: OnceLock::new() }
    }

    fn call(&self, arguments: &[&str]) -> Command {
        let program = self.path.clone().into_os_string();
        Command::argv(std::iter::once(program).chain(arguments.iter().map(OsString::from)))
    }
}

#[async_trait]
impl Runtime for Python {
    async fn init(&self, context: InitContext<'_>) -> Result<(), InitError> {
        let InitContext { launcher, paths, control, env } = context;
        let probe = self.call(&["-c", PROBE]);
        let answer = launcher.capture(&probe, env, control, PROBE_DEADLINE).await.map_err(InitError::Probe)?;
        let mut answers = answer.split(|byte| *byte == 0).map(|answer| OsString::from_vec(answer.to_vec()));
        let mut next = || answers.next().unwrap_or_default();
        let (user_site, prefix, is_virtual) = (PathBuf::from(next()), PathBuf::from(next()), next() == "True");
        let _ = self.interpreter.set(Interpreter { path: self.path.clone(), prefix, is_virtual });
        if !user_site.is_absolute() {
            return Err(InitError::UserSite(user_site));
        }
        env.entry(OsStr::new("PYTHONPATH").into()).or_default();
        promote(env, "PYTHONPATH", &user_site);
        let (home, socket) = (paths.work(), paths.input_socket());
        blocking(move || user_site::install(&home, &user_site, &socket)).await
    }

    fn build(&self, directory: &Path) -> Plan {
        if directory.join("setup.py").is_file() {
            return Plan::one(self.call(&["-m", "pip", "install", "--user", "-e", "."]));
        }
        Plan::skip(Severity::Warning, "nothing to build: there is no \"setup.py\"")
    }

    fn execute(&self, directory: &Path) -> Plan {
        if directory.join("main.py").is_file() {
            return Plan::one(self.call(&["main.py"]).in_batch_mode());
        }
        Plan::missing("there is no \"main.py\" to run")
    }

    fn examples(&self) -> Vec<Vec<String>> {
        vec![vec!["setup.py".into()], vec!["main.py".into()]]
    }

    fn code_goes_to(&self) -> Option<String> {
        Some(jupyter::kernel_description(KERNEL))
    }

    fn engine(&self, mut context: EngineContext) -> Option<Arc<dyn Engine>> {
        context.env.extend(KERNEL_VARIABLES.map(|(name, value)| (name.into(), value.into())));
        let kernel = JupyterKernel {
            name: KERNEL,
            interpreter: self.interpreter.get().cloned(),
            remedy: format!("install one: `{} -m pip install ipykernel`", self.path.display()),
        };
        Some(kernel.start(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn heuristics_look_for_the_usual_files() {
        let folder = tempfile::tempdir().unwrap();
        let python = Python::new("/usr/bin/python3".into());
        assert_eq!(python.execute(folder.path()), Plan::missing("there is no \"main.py\" to run"));
        fs::write(folder.path().join("main.py"), "").unwrap();
        fs::write(folder.path().join("setup.py"), "").unwrap();
        let run = Command::argv(["/usr/bin/python3", "main.py"]).in_batch_mode();
        assert_eq!(python.execute(folder.path()), Plan::one(run));
        let install = Command::argv(["/usr/bin/python3", "-m", "pip", "install", "--user", "-e", "."]);
        assert_eq!(python.build(folder.path()), Plan::one(install));
    }
}
