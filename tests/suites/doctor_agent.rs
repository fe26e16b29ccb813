//! `krunner doctor --agent`: what it says of agents that were really packed, by pex, and run once; and of a virtual environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use krunner_tests::{binary, host, require};
use serde_json::Value;
use tempfile::TempDir;

/// Where an agent takes the folder from that it mounts (`resolve_krunner_filepath`).
const RESOLVE: &str =
    "import os, ai.backend.runner as r; print(os.path.realpath(r.__path__[0] + '/../kernel'), end='')";

struct Packed {
    folder: TempDir,
    /// What the agent mounts.
    kernel: PathBuf,
}

impl Packed {
    /// The agent's own packages in one PEX file, as upstream's build packs them, which has run once.
    fn new(python: &Path, options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("krp-").expect("a temporary folder");
        let sources = folder.path().join("sources/ai/backend");
        fs::create_dir_all(&sources).expect("a folder");
        let output = run(Command::new(python).args(["-c", RESOLVE]));
        let installed = Path::new(&output).parent().expect("it is in ai/backend").to_owned();
        for package in ["agent", "runner", "kernel"] {
            let package = installed.join(package);
            let script = "cp -r --no-preserve=mode \"$0\" \"$1\"";
            run(Command::new("sh").args(["-c", script]).arg(package).arg(&sources));
        }
        let mut pack = Command::new(python);
        pack.args(["-m", "pex", "--disable-cache", "-D"]).arg(folder.path().join("sources"));
        run(pack.args(options).arg("-o").arg(folder.path().join("agent.pex")));
        let mut packed = Self { folder, kernel: PathBuf::new() };
        let mut agent = Command::new(python);
        packed.kernel = run(packed.with_root(agent.arg(packed.agent()).args(["-c", RESOLVE]))).into();
        packed
    }

    fn agent(&self) -> PathBuf {
        self.folder.path().join("agent.pex")
    }

    fn with_root<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("PEX_ROOT", self.folder.path().join("pex"))
    }

    /// State and finding of each check of that name.
    fn doctor(&self, name: &str) -> Vec<(String, String)> {
        let mut doctor = Command::new(binary());
        let output = run(self.with_root(doctor.args(["doctor", "--json", "--agent"]).arg(self.agent())));
        checks(&output, name)
    }
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a program that is there");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn checks(output: &str, name: &str) -> Vec<(String, String)> {
    let told: Value = serde_json::from_str(output).expect("JSON");
    let checks = told["checks"].as_array().expect("checks").iter().filter(|check| check["check"] == name);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    checks.map(|check| (text(&check["state"]), text(&check["found"]))).collect()
}

#[track_caller]
fn check_pex(options: &[&str]) {
    let python = require!(host::agent_python_with("pex"));
    require!(host::root().and_then(|()| host::program("setcap")));
    let packed = Packed::new(&python, options);

    let [(state, found)] = &packed.doctor("agent-runner")[..] else { panic!("one runner") };
    assert_eq!(state, "missing", "{found}");
    assert!(found.starts_with(&format!("{}: the Python runner", packed.kernel.display())), "{found}");

    fs::remove_dir_all(&packed.kernel).expect("the Python runner");
    fs::create_dir(&packed.kernel).expect("a folder");
    fs::write(packed.kernel.join("__main__.py"), "").expect("a file");
    let program = packed.kernel.join("krunner");
    fs::copy(binary(), &program).expect("a copy of krunner");
    let [(state, _)] = &packed.doctor("agent-runner")[..] else { panic!("one runner") };
    assert_eq!(state, "ok");
    assert_eq!(packed.doctor("agent-capabilities")[0].0, "missing", "a copy has none");
    run(Command::new("setcap").arg("cap_bpf,cap_perfmon+p").arg(&program));
    assert_eq!(packed.doctor("agent-capabilities")[0], ("ok".to_owned(), "cap_bpf,cap_perfmon".to_owned()));
}

#[test]
fn runner_of_a_pex_file_is_told() {
    check_pex(&[]);
}

#[test]
fn runner_of_a_pex_file_that_makes_a_virtual_environment_is_told() {
    check_pex(&["--venv"]);
}

#[test]
fn runner_of_the_virtual_environment_that_agents_are_tested_in_is_told() {
    let python = require!(host::agent_python());
    let environment = python.parent().and_then(Path::parent).expect("it is in bin");
    let output = run(Command::new(binary()).args(["doctor", "--json", "--agent"]).arg(environment));
    let [(state, found)] = &checks(&output, "agent-runner")[..] else { panic!("{output}") };
    assert!(state == "missing" && found.contains("the Python runner 23.03.8"), "{found}");
}
