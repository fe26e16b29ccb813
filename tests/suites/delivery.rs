//! What is handed to an agent in the place of its package `ai.backend.kernel`: the folder, in a container that is made of the
//! agent's own files and started by its own command line, and the wheel, installed beside the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, Container, Spec};
use krunner_tests::{Agent, Mounts, Runner, Setup, Steps, host, proc, require, wait};
use nix::sys::signal::Signal;

/// Enough for a compiler.
const MEMORY_MIB: u64 = 512;

/// Where the agent mounts the package (`mount_krunner` in its agent.py).
const PACKAGE: &str = "/opt/backend.ai/lib/python3.11/site-packages/ai/backend/kernel";

/// In the target folder, so that files can be linked.
const TEMPORARY: &str = env!("CARGO_TARGET_TMPDIR");

/// Whom the agent has the runner be.
const USER: u32 = 1000;

/// The folder that the agent is to mount.
fn package() -> Result<PathBuf, String> {
    Ok(host::dist()?.join("x86_64/ai/backend/kernel"))
}

/// What the agent of that environment mounts into every container of an Ubuntu image.
fn mounts(python: &Path) -> Result<Mounts, String> {
    container::available()?;
    let mut mounts = Mounts::of(python, "ubuntu20.04", &host::volume(Path::new(TEMPORARY))?)?;
    // Ubuntu's crash with another distribution's C library; these have their own in them.
    let programs = host::runner_programs()?;
    for name in ["dropbear", "dropbearkey", "dropbearconvert"] {
        let program = programs.join(format!("{name}.alpine3.8.x86_64.bin"));
        mounts = mounts.replace(&format!("/opt/kernel/{name}"), program);
    }
    Ok(mounts)
}

/// The same with our folder in the place of the agent's.
fn mounts_with_ours() -> Result<Mounts, String> {
    static ASKED: OnceLock<Result<Mounts, String>> = OnceLock::new();
    let ask = || Ok(mounts(&host::agent_python()?)?.replace(PACKAGE, package()?));
    ASKED.get_or_init(ask).clone()
}

/// A container with them, but for those below `/usr`, which is the host's.
fn container_of(mounts: &Mounts) -> Spec {
    let spec = Spec::plain(MEMORY_MIB).capabilities(&["CAP_IPC_LOCK"]).home_of(USER);
    let binds = mounts.binds().filter(|(_, point)| !point.starts_with("/usr/"));
    binds.fold(spec, |spec, (source, point)| spec.bind(source, point))
}

/// An image's own files, as far as the agent's entrypoint changes them.
fn image(lang: &str) -> Setup {
    Setup::new(lang)
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
        .file("etc/group", "root:x:0:\nshadow:x:42:\n")
        .file("etc/shadow", "root:*:19000:0:99999:7:::\n")
        .file("etc/login.defs", "UID_MAX 60000\n")
        .file("etc/shells", "/bin/bash\n")
        .folder("home/work/.logs")
}

/// A session that was started as the agent starts one.
struct Session {
    runner: Runner,
    container: Container,
    sshd: u16,
}

impl Session {
    /// With these arguments for the interpreter, the last of them the runner's own.
    #[track_caller]
    fn start(mounts: &Mounts, lang: &str, arguments: &[&str]) -> Self {
        Self::start_in(&container_of(mounts), mounts, lang, arguments)
    }

    /// In a container of one's own.
    #[track_caller]
    fn start_in(spec: &Spec, mounts: &Mounts, lang: &str, arguments: &[&str]) -> Self {
        let cgroup = Cgroup::for_container().expect("containers are available");
        let mut line = vec!["/opt/kernel/entrypoint.sh", "/opt/backend.ai/bin/python"];
        line.extend(arguments);
        let line: Vec<String> = line.into_iter().map(str::to_owned).collect();
        let mut variables =
            vec![format!("LOCAL_USER_ID={USER}"), format!("LOCAL_GROUP_ID={USER}"), "FROM_AGENT=yes".to_owned()];
        variables.extend(mounts.variables());
        let image = image(lang);
        let (sshd, _) = image.service_ports();
        let (runner, container) = image.start_line_in(spec, cgroup, &line, &variables);
        Self { runner, container, sshd }
    }

    /// Everybody in the container: name and command line. Its cgroup goes with the last of them.
    fn processes(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.container.cgroup().procs_file()).unwrap_or_default();
        let pids = text.lines().map(|pid| pid.parse().expect("a pid"));
        pids.filter_map(|pid| Some((proc::comm(pid)?, proc::cmdline(pid)?))).collect()
    }

    #[track_caller]
    fn assert_no_python(&self) {
        let processes = self.processes();
        let is_runner = |(comm, _): &(String, String)| comm == "backend.ai: ker";
        assert!(processes.iter().any(is_runner), "{processes:?}");
        let has_python = |text: &str| text.to_lowercase().contains("python");
        assert!(!processes.iter().any(|(comm, line)| has_python(comm) || has_python(line)), "{processes:?}");
    }
}

#[test]
fn agents_client_compiles_and_runs_in_a_container_of_the_agents_own_files() {
    let client = require!(host::agent_python());
    let mounts = require!(mounts_with_ours());
    let session = Session::start(&mounts, "c", &["-s", "-m", "ai.backend.kernel", "--debug", "c", "/usr/bin/gcc"]);
    let agent = Agent::connect(&client, &session.runner);
    agent.open();

    session.assert_no_python();
    session.runner.write("main.c", "#include <stdio.h>\nint main(void) { puts(\"compiled\"); return 3; }\n");
    let run = agent.batch(Steps::HEURISTIC);
    assert_eq!((run.codes(), run.exec().stdout.as_str()), (vec![0, 0, 3], "compiled\n"), "{run:#?}");
    let run = agent.query("int main(void) { return 7; }");
    assert_eq!(run.exec().exit_code, Some(7), "{run:#?}");
    let run = agent.exec("id -u; echo $FROM_AGENT; pwd");
    assert_eq!(run.stdout(), format!("{USER}\nyes\n/home/work\n"), "{run:#?}");
    session.assert_no_python();
}

#[test]
fn user_code_ignores_none_of_the_signals_that_python_ignores() {
    /// The signals SIGPIPE and SIGXFSZ.
    const THESE: u64 = 1 << 12 | 1 << 24;
    let client = require!(host::agent_python());
    let mounts = require!(mounts_with_ours());
    let session = Session::start(&mounts, "app", &["-m", "ai.backend.kernel", "app"]);
    let agent = Agent::connect(&client, &session.runner);
    agent.open();

    let run = agent.exec("sed -n 's/^SigIgn:.//p' /proc/self/status");
    let ignored = u64::from_str_radix(run.stdout().trim(), 16).expect("a mask in hex");
    assert_eq!(ignored & THESE, 0, "{ignored:x}");
}

/// The folders of an interpreter that is not the system's: its environment, and what that was made from.
fn folders_of(python: &Path) -> [PathBuf; 2] {
    let mut command = Command::new(python);
    let output = command.args(["-c", "import sys; print(sys.base_prefix, end='')"]).output().expect("python runs");
    [host::folder_of(python), PathBuf::from(String::from_utf8(output.stdout).expect("a path"))]
}

#[test]
fn code_in_python_runs_in_a_kernel_that_the_image_has() {
    let client = require!(host::agent_python_with("ipykernel"));
    let mounts = require!(mounts_with_ours());
    let folders = folders_of(&client);
    let others = folders.iter().filter(|folder| !folder.starts_with("/usr"));
    let spec = others.fold(container_of(&mounts), |spec, folder| spec.bind(folder, folder.to_str().expect("a path")));
    let runtime = client.to_str().expect("a path");
    let session = Session::start_in(&spec, &mounts, "python", &["-s", "-m", "ai.backend.kernel", "python", runtime]);
    let agent = Agent::connect(&client, &session.runner);
    agent.open();

    let run = agent.query("answer = 6 * 7");
    assert_eq!(run.exec().exit_code, Some(0), "{run:#?}");
    let run = agent.query("import os; print(answer, os.getuid(), os.environ['FROM_AGENT'])");
    assert_eq!((run.exec().exit_code, run.stdout()), (Some(0), format!("42 {USER} yes\n")), "{run:#?}");
    let is_kernel = |(_, line): &(String, String)| line.contains("ipykernel_launcher");
    let (kernels, others): (Vec<_>, Vec<_>) = session.processes().into_iter().partition(is_kernel);
    assert_eq!(kernels.len(), 1, "{others:?}");
    assert!(!others.iter().any(|(comm, line)| comm.contains("python") || line.contains("python")), "{others:?}");
}

#[test]
fn a_session_in_python_runs_scripts_that_ask_and_draw() {
    let client = require!(host::agent_python());
    let mounts = require!(mounts_with_ours());
    let session = Session::start(&mounts, "python", &["-m", "ai.backend.kernel", "python", "/usr/bin/python3"]);
    let agent = Agent::connect(&client, &session.runner);
    agent.open();

    let run =
        agent.start_batch(Steps { exec: "python3 -c 'print(input(\"who? \") + \"!\")'", ..Steps::NONE }, &["bob"]);
    let run = run.wait();
    assert_eq!((run.codes().pop(), run.stdout().contains("bob!")), (Some(0), true), "{run:#?}");
    let run = agent.exec("python3 -c 'import ai.backend.kernel.python.drawing as d; print(d.Canvas.__name__)'");
    assert_eq!(run.stdout(), "Canvas\n", "the runner brings what user code imports: {run:#?}");
    session.assert_no_python();
}

#[test]
fn what_docker_stop_sends_ends_the_session_and_tells_the_running_step() {
    let client = require!(host::agent_python());
    let mounts = require!(mounts_with_ours());
    let mut session = Session::start(&mounts, "c", &["-m", "ai.backend.kernel", "c", "/usr/bin/gcc"]);
    let agent = Agent::connect(&client, &session.runner);
    agent.open();
    let run = agent.start_exec("echo begun > begun; sleep 600");
    session.runner.wait_for("begun");

    // The image's StopSignal, as the agent sets it, to the first process.
    session.runner.signal(Signal::SIGINT);

    let run = run.wait();
    assert_ne!(run.exec().exit_code, Some(0), "{run:#?}");
    assert_eq!(session.runner.wait_exit().code(), Some(0), "{}", session.runner.stderr());
    assert_eq!(session.processes(), Vec::<(String, String)>::new());
}

#[test]
fn sshd_comes_with_the_session() {
    require!(host::program("ssh"));
    let mounts = require!(mounts_with_ours());
    let session = Session::start(&mounts, "app", &["-m", "ai.backend.kernel", "app"]);
    wait::until_true("sshd listens", || proc::listens(session.container.pid(), session.sshd));
    let key = session.runner.home().join("id_container");
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "/dev/null", "-p", &session.sshd.to_string(), "-i"]).arg(key).stdin(Stdio::null());
    for option in ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"] {
        ssh.args(["-o", option]);
    }
    let output = ssh.args(["work@127.0.0.1", "id -un; echo $FROM_AGENT"]).output().expect("ssh runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "work\nyes\n", "{output:?}: {}", session.runner.stderr());
    session.assert_no_python();
}

/// Calls the package in that folder with an interpreter of this machine.
fn call(folder: &Path) -> Output {
    let mut command = Command::new("python3");
    command.args(["-s", "-m", "ai.backend.kernel", "--version"]);
    command.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    command.output().expect("python3 runs")
}

#[test]
fn a_program_that_cannot_be_started_is_named_with_the_remedy() {
    require!(host::program("python3"));
    let source = require!(host::dist()).join("x86_64/ai/backend/kernel");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let package = folder.path().join("ai/backend/kernel");
    fs::create_dir_all(&package).expect("a folder");
    for name in ["__init__.py", "__main__.py"] {
        fs::copy(source.join(name), package.join(name)).expect("a copy");
    }
    let program = package.join("krunner");
    let said = |code: i32, problem: &str| {
        let output = call(folder.path());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = format!("krunner: cannot start {}: {problem} (put the program of", program.display());
        assert_eq!((output.status.code(), text.starts_with(&expected)), (Some(code), true), "{expected}: {text}");
    };

    said(127, "No such file or directory");
    fs::write(&program, "not a program").expect("a file");
    said(126, "Permission denied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    said(126, "Exec format error");
    fs::copy(source.join("krunner"), &program).expect("a copy");
    let output = call(folder.path());
    assert!(output.status.success() && output.stdout.starts_with(b"krunner "), "{output:?}");
}

/// The agent's environment with its packages as hard links, so that others can be put in their place.
fn copied_environment(python: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(TEMPORARY).expect("a temporary folder");
    let script = "set -e; \"$0\" -m venv --without-pip \"$1\"; rm -r \"$1\"/lib/python3*/site-packages
        cp -al \"$2\"/lib/python3*/site-packages \"$1\"/lib/python3*/ || cp -a \"$2\"/lib/python3*/site-packages \"$1\"/lib/python3*/";
    let mut copy = Command::new("sh");
    copy.args(["-c", script]).arg(python).arg(folder.path()).arg(host::folder_of(python)).stdin(Stdio::null());
    let output = copy.output().expect("sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

#[test]
fn the_wheel_takes_the_place_of_the_package_where_the_agent_looks_for_it() {
    let python = require!(host::agent_python());
    let dist = require!(host::dist());
    let wheels = fs::read_dir(&dist).expect("target/dist").flatten().map(|entry| entry.path());
    let wheel = wheels.filter(|path| path.to_string_lossy().ends_with("x86_64.whl")).last().expect("a wheel");
    let environment = copied_environment(&python);
    let call = |arguments: &[&str]| {
        let mut command = Command::new(environment.path().join("bin/python"));
        let output = command.args(arguments).stdin(Stdio::null()).output().expect("python runs");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };

    let told = call(&["-m", "pip", "install", "--no-index", "--no-deps", wheel.to_str().expect("a path")]);
    assert!(told.contains("Successfully uninstalled backend.ai-kernel-23.3.8"), "{told}");

    let complaints = call(&["-m", "pip", "check"]);
    assert!(complaints.contains("requirement"), "pip tells of requirements, broken or not: {complaints}");
    assert!(!complaints.contains("backend.ai-kernel "), "{complaints}");
    let mounts = require!(mounts(&environment.path().join("bin/python")));
    let package = mounts.source(PACKAGE);
    assert!(package.starts_with(environment.path().canonicalize().expect("a path")), "{}", package.display());
    let ours = fs::read(dist.join("x86_64/krunner")).expect("the binary");
    assert!(fs::read(package.join("krunner")).expect("the binary") == ours, "{}", package.display());
    let names: Vec<_> = fs::read_dir(package).expect("the package").flatten().map(|entry| entry.file_name()).collect();
    assert!(!names.iter().any(|name| name == "base.py"), "the Python runner is gone: {names:?}");
    let version = call(&["-m", "ai.backend.kernel", "--version"]);
    assert!(version.starts_with("krunner "), "{version}");

    let session = Session::start(&mounts, "c", &["-m", "ai.backend.kernel", "c", "/usr/bin/gcc"]);
    let agent = Agent::connect(&python, &session.runner);
    agent.open();
    let run = agent.query("#include <stdio.h>\nint main(void) { puts(\"installed\"); }");
    assert_eq!((run.exec().exit_code, run.exec().stdout.as_str()), (Some(0), "installed\n"), "{run:#?}");
    session.assert_no_python();
}
