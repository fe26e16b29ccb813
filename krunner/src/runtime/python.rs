//! `python`: scripts in batch mode, with `input()` asking the runner.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::plan::{Plan, Severity};
use super::traits::{InitContext, Runtime};
use crate::config::promote;
use crate::process::Command;
use crate::tasks::blocking;

/// An interpreter on a cold network mount takes seconds to start.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// Loaded by the interpreter at its start (docs.python.org/3/library/site.html); the socket's path
/// is filled in.
const SITECUSTOMIZE: &str = include_str!("python/sitecustomize.py");
const SOCKET_PLACEHOLDER: &str = "\"@INPUT_SOCKET@\"";

pub(super) struct Python {
    interpreter: PathBuf,
}

impl Python {
    pub(super) fn new(interpreter: PathBuf) -> Self {
        Self { interpreter }
    }

    fn call(&self, arguments: &[&str]) -> Command {
        let program = self.interpreter.clone().into_os_string();
        Command::argv(std::iter::once(program).chain(arguments.iter().map(OsString::from)))
    }
}

#[async_trait]
impl Runtime for Python {
    async fn init(&self, context: InitContext<'_>) -> Result<(), String> {
        let InitContext { launcher, paths, control, env } = context;
        let probe = self.call(&["-c", "import site, sys; sys.stdout.write(site.getusersitepackages())"]);
        let user_site =
            PathBuf::from(OsString::from_vec(launcher.capture(&probe, env, control, PROBE_DEADLINE).await?));
        if !user_site.is_absolute() {
            return Err(format!("the interpreter names {} as its user site folder", user_site.display()));
        }
        env.entry(OsStr::new("PYTHONPATH").into()).or_default();
        promote(env, "PYTHONPATH", &user_site);
        let file = user_site.join("sitecustomize.py");
        let (target, socket) = (file.clone(), paths.input_socket());
        let installed = blocking(move || install(&target, &socket)).await;
        installed.map_err(|error| format!("cannot write {}: {error}", file.display()))
    }

    fn build(&self, directory: &Path) -> Plan {
        if directory.join("setup.py").is_file() {
            return Plan::one(self.call(&["-m", "pip", "install", "--user", "-e", "."]));
        }
        Plan::skip(Severity::Warning, "nothing is built: there is no \"setup.py\"")
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
}

/// Writes the file whole or not at all: an interpreter may start at any moment.
fn install(file: &Path, socket: &Path) -> io::Result<()> {
    let folder = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    // A JSON string is a Python string.
    let socket = serde_json::to_string(&socket.to_string_lossy())?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(SITECUSTOMIZE.replace(SOCKET_PLACEHOLDER, &socket).as_bytes())?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_filled_in() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site/sitecustomize.py");
        install(&file, Path::new("/tmp/it's \"here\".sock")).unwrap();
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains(r#"SOCKET = "/tmp/it's \"here\".sock""#), "{text}");
        assert!(!text.contains("@INPUT_SOCKET@"));
    }

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
