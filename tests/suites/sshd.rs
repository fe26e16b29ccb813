//! The ssh server of a session: real dropbear binaries of both generations, and a real ssh client.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use krunner_tests::{Raw, Runner, Setup, WORK, host, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::app;

/// What is logged before a server that died is started again.
const RESTARTING: &str = "restarting sshd";

/// Agents of 23.3: three programs. The musl build runs on any image.
pub(crate) fn single() -> Result<Setup, String> {
    let programs = host::runner_programs()?;
    let setup = ["dropbear", "dropbearkey", "dropbearconvert"].iter().fold(user()?, |setup, name| {
        setup.copy(&format!("opt/kernel/{name}"), &programs.join(format!("{name}.alpine3.8.x86_64.bin")))
    });
    Ok(setup.copy("usr/libexec/sftp-server", &programs.join("sftp-server.ubuntu20.04.x86_64.bin")))
}

/// Agents of 26.9: one program with applets.
fn multi() -> Result<Setup, String> {
    let programs = host::newer_runner_programs()?;
    let setup = user()?.copy("opt/kernel/dropbearmulti", &programs.join("dropbearmulti.x86_64.bin"));
    Ok(setup.copy("opt/kernel/sftp-server", &programs.join("sftp-server.x86_64.bin")))
}

fn user() -> Result<Setup, String> {
    host::root()?;
    for program in ["ssh", "sftp", "ssh-keygen", "setpriv", "unshare"] {
        host::program(program)?;
    }
    Ok(app())
}

/// A session with its ssh port.
struct Host {
    runner: Runner,
    port: u16,
}

impl Host {
    fn start(setup: Setup) -> Self {
        Self::start_as(setup.as_work())
    }

    /// Starts the session as the user that it is set up for.
    fn start_as(setup: Setup) -> Self {
        let (port, _) = setup.service_ports();
        let host = Self { runner: setup.start(), port };
        host.wait();
        host
    }

    /// Waits until the server listens, and so for the keys before it.
    #[track_caller]
    fn wait(&self) {
        wait::until_true("sshd listens", || proc::listens(self.runner.pid(), self.port));
    }

    fn key(&self) -> PathBuf {
        self.runner.home().join("id_container")
    }

    fn client(&self, program: &str, key: &Path, port_flag: &str) -> Command {
        let mut command = Command::new(program);
        let port = self.port.to_string();
        command.args(["-F", "/dev/null", port_flag, &port, "-i"]).arg(key).stdin(Stdio::null());
        let known = format!("UserKnownHostsFile={}", self.runner.root().join("known_hosts").display());
        for option in ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "LogLevel=ERROR", &known] {
            command.args(["-o", option]);
        }
        command
    }

    fn login(&self, key: &Path, command: &str) -> Output {
        let mut ssh = self.client("ssh", key, "-p");
        ssh.arg(format!("{WORK}@127.0.0.1")).arg(command).output().expect("ssh runs")
    }

    /// A login without a key, as that user with that password.
    fn login_with(&self, user: &str, password: &str, command: &str) -> Output {
        let answer = self.runner.root().join("answer");
        fs::write(&answer, format!("#!/bin/sh\necho '{password}'\n")).expect("a program that answers for the user");
        fs::set_permissions(&answer, fs::Permissions::from_mode(0o755)).expect("chmod");
        let mut ssh = Command::new("ssh");
        // Of an option that is given twice the first counts.
        for option in ["BatchMode=no", "PreferredAuthentications=password", "NumberOfPasswordPrompts=1"] {
            ssh.args(["-o", option]);
        }
        ssh.args(self.client("ssh", Path::new("/dev/null"), "-p").get_args());
        ssh.env("SSH_ASKPASS", &answer).env("SSH_ASKPASS_REQUIRE", "force").stdin(Stdio::null());
        ssh.arg(format!("{user}@127.0.0.1")).arg(command).output().expect("ssh runs")
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.runner.home().join(path)).expect(path).permissions().mode() & 0o7777
    }

    fn authorized(&self) -> String {
        self.runner.read(".ssh/authorized_keys").expect("authorized_keys")
    }
}

/// A key pair that no account trusts.
fn other_key(folder: &Path) -> PathBuf {
    let key = folder.join("other");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "cluster", "-f"]).arg(&key).stdin(Stdio::null());
    assert!(keygen.status().expect("ssh-keygen runs").success());
    key
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A login with the generated key: command, output, exit code, environment, and what a stranger gets.
fn check_login(setup: Setup) {
    let host = Host::start(setup.file("home/config/environ.txt", "FROM_AGENT=yes\n"));

    let output = host.login(&host.key(), "id -un; pwd; echo \"$FROM_AGENT $PATH\"; echo trouble >&2; exit 37");

    assert_eq!(output.status.code(), Some(37), "{output:?}");
    assert_eq!(text(&output.stderr), "trouble\n");
    let home = host.runner.home();
    let stdout = text(&output.stdout);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[..2], [WORK, home.to_str().expect("UTF-8")]);
    assert!(lines[2].starts_with(&format!("yes {}/.local/bin:", home.display())), "{stdout}");

    assert_eq!(
        (host.mode(".ssh"), host.mode(".ssh/authorized_keys"), host.mode("id_container")),
        (0o700, 0o600, 0o600)
    );
    let pem = fs::read_to_string(host.key()).expect("the private key");
    assert!(pem.starts_with("-----BEGIN"), "{pem}");
    assert_eq!(host.authorized().lines().count(), 1);
    for private in ["id_dropbear", "id_container"] {
        assert!(!host.runner.root().join("tmp/dropbear").join(private).exists(), "{private} is not left about");
    }

    let stranger = host.login(&other_key(&host.runner.root()), "true");
    assert_eq!(stranger.status.code(), Some(255));
    assert!(text(&stranger.stderr).contains("Permission denied (publickey)."), "{stranger:?}");
}

/// Files come and go.
fn check_sftp(setup: Setup) {
    let host = Host::start(setup.file("home/work/here", "from the session\n"));
    let batch = host.runner.root().join("batch");
    let (up, down) = (host.runner.root().join("up"), host.runner.root().join("down"));
    fs::write(&up, "from outside\n").expect("a file");
    fs::write(&batch, format!("get here {}\nput {} there\n", down.display(), up.display())).expect("a batch");

    let mut sftp = host.client("sftp", &host.key(), "-P");
    let output = sftp.arg("-b").arg(&batch).arg(format!("{WORK}@127.0.0.1")).output().expect("sftp runs");

    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(down).expect("the file that was fetched"), "from the session\n");
    assert_eq!(host.runner.read("there").as_deref(), Some("from outside\n"));
}

/// A login with the password that the agent's entrypoint made, and what is refused nevertheless.
fn check_password(setup: Setup) {
    require!(host::program("openssl").map(drop));
    let host = Host::start_as(setup.as_work_with_password("opening-Sesame7"));

    let output = host.login_with(WORK, "opening-Sesame7", "id -un; exit 37");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(37), format!("{WORK}\n")), "{output:?}");
    for (user, password) in [(WORK, "opening-Sesame8"), (WORK, ""), ("root", "opening-Sesame7")] {
        let refused = host.login_with(user, password, "true");
        assert_eq!(refused.status.code(), Some(255), "{user}: {refused:?}");
        assert!(text(&refused.stderr).contains("Permission denied"), "{user}: {refused:?}");
    }
    assert_eq!(host.login(&host.key(), "exit 3").status.code(), Some(3), "the key works as ever");
}

#[test]
fn login_with_the_agents_password_through_single_programs() {
    check_password(require!(single()));
}

#[test]
fn login_with_the_agents_password_through_the_program_of_many() {
    check_password(require!(multi()));
}

#[test]
fn password_is_refused_where_that_is_set() {
    require!(host::program("openssl").map(drop));
    let setup = require!(single()).file("home/config/environ.txt", "KRUNNER_SSH_PASSWORD=off\n");
    let host = Host::start_as(setup.as_work_with_password("opening-Sesame7"));

    let refused = host.login_with(WORK, "opening-Sesame7", "true");

    assert_eq!(refused.status.code(), Some(255), "{refused:?}");
    assert!(text(&refused.stderr).contains("Permission denied (publickey)."), "{refused:?}");
    assert_eq!(host.login(&host.key(), "exit 3").status.code(), Some(3));
}

#[test]
fn login_with_the_generated_key_through_single_programs() {
    check_login(require!(single()));
}

#[test]
fn login_with_the_generated_key_through_the_program_of_many() {
    check_login(require!(multi()));
}

#[test]
fn sftp_through_single_programs() {
    check_sftp(require!(single()));
}

#[test]
fn sftp_through_the_program_of_many() {
    check_sftp(require!(multi()));
}

/// The agent's host key, made as it makes it, and its public part without the comment.
fn give_host_key(setup: &Setup, programs: &Path) -> String {
    let folder = setup.root().join("home/config/ssh");
    fs::create_dir_all(&folder).expect("a folder");
    let mut keygen = Command::new(programs.join("dropbearkey.alpine3.8.x86_64.bin"));
    let output = keygen.args(["-t", "rsa", "-s", "2048", "-f"]).arg(folder.join("dropbear_rsa_host_key")).output();
    let said = text(&output.expect("dropbearkey runs").stdout);
    let line = said.lines().find(|line| line.starts_with("ssh-rsa ")).expect("a public key");
    line.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The cluster's key pair, and the way to this very session as that to a host of the cluster.
fn join_cluster(setup: Setup) -> Setup {
    let folder = setup.root().join("home/config/ssh");
    fs::create_dir_all(&folder).expect("a folder");
    let key = other_key(&folder);
    fs::rename(&key, folder.join("id_cluster")).expect("a key");
    fs::rename(key.with_extension("pub"), folder.join("id_cluster.pub")).expect("a key");
    let mapping = json!({ "main1": ["127.0.0.1", setup.service_ports().0], "sub1": ["10.0.0.2", "30000"] });
    setup.file("home/config/ssh/port-mapping.json", mapping.to_string())
}

#[test]
fn cluster_and_host_key_are_the_same_after_a_hundred_restarts_and_the_users_lines_stay() {
    let programs = require!(host::runner_programs());
    let own = "# the user's\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@home";
    let own_config = "Host *\n  ServerAliveInterval 5\n\nHost main1\n\tUser work\n";
    let setup = join_cluster(require!(single()))
        .file("home/work/.ssh/authorized_keys", own)
        .file("home/work/.ssh/config", own_config);
    let host_key = give_host_key(&setup, &programs);
    let mut host = Host::start(setup);

    let config = host.runner.read(".ssh/config").expect("config");
    let authorized = host.authorized();
    assert!(config.starts_with(own_config), "{config}");
    assert_eq!(config.matches("Host main1\n\tHostName 127.0.0.1\n").count(), 1, "{config}");
    assert_eq!(config.matches("Host sub1\n\tHostName 10.0.0.2\n\tPort 30000\n").count(), 1, "{config}");
    assert!(authorized.starts_with(&format!("{own}\nssh-ed25519 ")) && authorized.ends_with(" cluster\n"));
    assert_eq!(authorized.lines().count(), 3, "{authorized}");

    for _ in 0..100 {
        host.runner.restart();
        host.wait();
    }

    assert_eq!(host.runner.read(".ssh/config").as_deref(), Some(&*config));
    assert_eq!(host.authorized(), authorized);
    assert_eq!(host.runner.read("id_container"), None, "who can log in already needs no key of ours");
    let run =
        Raw::connect(&host.runner).exec("ssh -o LogLevel=ERROR -o BatchMode=yes main1 'echo $USER on main1; exit 7'");
    assert_eq!(run.stdout(), "work on main1\n", "{}", run.stderr());
    assert_eq!(run.ends()[0].exit_code(), 7);
    let known = host.runner.read(".ssh/known_hosts").expect("the host key that ssh has seen");
    assert!(known.contains(&host_key), "{known}, not {host_key}");
}

#[test]
fn roles_are_known_where_no_ports_are_mapped() {
    let setup = join_cluster(require!(single())).env("BACKENDAI_CLUSTER_REPLICAS", "main:1,sub:2");
    fs::remove_file(setup.root().join("home/config/ssh/port-mapping.json")).expect("the mapping");

    let host = Host::start(setup);

    let config = host.runner.read(".ssh/config").expect("config");
    let hosts: Vec<_> = config.lines().filter(|line| !line.contains("IdentityFile")).collect();
    let expected = ["Host main*", "\tPort 2200", "\tStrictHostKeyChecking no"];
    assert_eq!(hosts[..3], expected);
    assert_eq!(hosts[3..], ["", "Host sub*", expected[1], expected[2]]);
    assert_eq!(host.mode(".ssh/config"), 0o600);
    assert_eq!(host.authorized().lines().count(), 2, "the user's and the cluster's");
}

#[test]
fn restart_keeps_the_users_key() {
    let mut host = Host::start(require!(single()));
    let key = fs::read(host.key()).expect("the private key");
    host.runner.restart();
    host.wait();
    assert_eq!(fs::read(host.key()).expect("the private key"), key);
    assert_eq!(host.authorized().lines().count(), 1);
    fs::remove_file(host.runner.root().join("known_hosts")).ok();
    assert_eq!(host.login(&host.key(), "exit 3").status.code(), Some(3));
}

#[test]
fn bootstrap_script_finds_the_keys_and_may_add_to_them() {
    let script = "cp .ssh/authorized_keys seen\necho >> .ssh/authorized_keys\ncat extra >> .ssh/authorized_keys\n";
    let setup = require!(single());
    let key = other_key(&setup.root());
    let public = fs::read(key.with_extension("pub")).expect("the public key");
    let host = Host::start(setup.file("home/work/bootstrap.sh", script).file("home/work/extra", public));
    assert!(host.runner.wait_for("seen").starts_with("ssh-rsa "));
    assert_eq!(host.login(&key, "exit 5").status.code(), Some(5));
    assert_eq!(host.login(&host.key(), "exit 6").status.code(), Some(6));
}

#[test]
fn broken_cluster_files_are_named_and_logins_work_all_the_same() {
    let setup = join_cluster(require!(single())).file(
        "home/config/ssh/port-mapping.json",
        json!({ "main1\nProxyCommand touch pwned": ["127.0.0.1", 1] }).to_string(),
    );
    let host = Host::start(setup);
    host.runner.wait_for_log(&["port-mapping.json", "is not a valid host name"]);
    assert_eq!(host.runner.read(".ssh/config"), None);
    assert_eq!(host.authorized().lines().count(), 2, "the user's and the cluster's");
    assert_eq!(host.login(&host.key(), "exit 4").status.code(), Some(4));
}

#[test]
fn another_users_folder_in_tmp_keeps_no_one_out() {
    let programs = require!(host::runner_programs());
    let setup = require!(single()).folder("tmp/dropbear");
    let theirs = setup.root().join("tmp/dropbear");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).expect("chmod");
    let host_key = give_host_key(&setup, &programs);

    let host = Host::start(setup);

    assert_eq!(host.login(&host.key(), "exit 3").status.code(), Some(3));
    let known = fs::read_to_string(host.runner.root().join("known_hosts")).expect("the host key that ssh has seen");
    assert!(known.contains(&host_key), "{known}, not {host_key}");
    assert!(theirs.is_dir());
    host.runner.wait_for_log(&["tmp/dropbear", "instead"]);
}

/// The server's process, not those of its connections.
fn server(host: &Host) -> u32 {
    let own = |pid: &u32| proc::comm(*pid).is_some_and(|comm| comm.starts_with("dropbear"));
    wait::until("the server runs", || proc::children(host.runner.pid()).into_iter().find(own))
}

#[test]
fn server_that_dies_is_told_and_started_again() {
    let host = Host::start(require!(single()));
    let first = server(&host);

    proc::signal(first, Signal::SIGKILL);

    host.runner.wait_for_log(&["sshd", "exited with code -9"]);
    host.runner.wait_for_log(&["Not backgrounding"]);
    host.runner.wait_for_log(&[RESTARTING, "in 1 s"]);
    wait::until_true("another server", || proc::children(host.runner.pid()).iter().any(|pid| *pid != first));
    host.wait();
    assert_eq!(host.login(&host.key(), "exit 9").status.code(), Some(9));
}

#[test]
fn who_clears_tmp_can_still_log_in_and_finds_the_same_host_after_a_restart() {
    let host = Host::start(require!(single()));
    let tmp = host.runner.root().join("tmp");

    let cleared = host.login(&host.key(), &format!("rm -rf {0}/* && ls -A {0}; exit 4", tmp.display()));
    assert_eq!(cleared.status.code(), Some(4), "{cleared:?}");
    assert!(!tmp.join("dropbear").exists());
    assert_eq!(host.login(&host.key(), "exit 5").status.code(), Some(5));

    let first = server(&host);
    proc::signal(first, Signal::SIGKILL);
    host.runner.wait_for_log(&["restarting sshd"]);
    wait::until_true("another server", || proc::children(host.runner.pid()).iter().any(|pid| *pid != first));
    host.wait();
    let last = host.login(&host.key(), "exit 6");
    assert_eq!((last.status.code(), text(&last.stderr)), (Some(6), String::new()), "ssh warns of another host");
}

/// Sends an op about the service and returns the answer.
fn ask(raw: &mut Raw) -> Value {
    raw.op(
        "start-service",
        &json!({ "name": "sshd", "port": 2200, "ports": [2200], "protocol": "tcp", "options": {} }).to_string(),
    );
    let answer = raw.read_until(|message| message.kind == "service-result");
    let last = answer.messages.last().expect("the answer");
    serde_json::from_slice(&last.payload).expect("JSON")
}

#[test]
fn agent_may_stop_it_and_start_it_anew() {
    let host = Host::start(require!(single()));
    let mut raw = Raw::connect(&host.runner);
    assert_eq!(host.login(&host.key(), "exit 7").status.code(), Some(7));
    // We may have seen its port open before the runner has.
    ask(&mut raw);
    assert_eq!(ask(&mut raw), json!({ "status": "running" }));

    let first = server(&host);
    raw.op("shutdown-service", "\"sshd\"");
    assert_eq!(ask(&mut raw), json!({ "status": "started" }));
    assert!(!proc::is_alive(first) && server(&host) != first);
    assert!(!host.runner.stderr().contains(RESTARTING), "it was asked for");
    assert_eq!(host.login(&host.key(), "exit 8").status.code(), Some(8));
}

#[test]
fn agent_may_stop_it_before_the_session_is_prepared() {
    let script = format!("echo > started\n{}\n", crate::wait_for_file("go"));
    let setup = require!(single()).file("home/work/bootstrap.sh", script).as_work();
    let (port, _) = setup.service_ports();
    let host = Host { runner: setup.start(), port };
    let mut raw = Raw::connect(&host.runner);
    host.runner.wait_for("started");
    raw.op("shutdown-service", "\"sshd\"");
    raw.op("status", "now");
    raw.read_until(|message| message.kind == "status");
    host.runner.write("go", "");
    // The reply means that the script has run and no server is starting any more.
    raw.op("status", "");
    raw.read_until(|message| message.kind == "status");
    assert!(!proc::listens(host.runner.pid(), port), "it was stopped");
    assert_eq!(ask(&mut raw), json!({ "status": "started" }));
    assert_eq!(host.login(&host.key(), "exit 7").status.code(), Some(7));
}

#[test]
fn stop_ends_the_server_and_those_who_are_logged_in() {
    let mut host = Host::start(require!(single()));
    let mut ssh = host.client("ssh", &host.key(), "-p");
    let mut guest =
        ssh.arg(format!("{WORK}@127.0.0.1")).arg("trap '' HUP; echo > in; sleep 1000").spawn().expect("ssh");
    host.runner.wait_for("in");

    let since = Instant::now();
    host.runner.signal(Signal::SIGTERM);
    assert!(host.runner.wait_exit().success());
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!(host.runner.processes(), [0; 0]);
    assert!(!guest.wait().expect("ssh").success());
}

#[test]
fn missing_programs_are_a_line_each_and_no_step_waits() {
    let runner = app().start();
    assert_eq!(Raw::connect(&runner).exec("exit 3").ends()[0].exit_code(), 3);
    for (name, program) in [("sshd", "dropbear"), ("ttyd", "ttyd")] {
        let line = runner.wait_for_log(&[name, "cannot start"]);
        assert!(line.contains(&format!("opt/kernel/{program}")), "{line}");
    }
    assert_eq!(runner.stderr().matches("cannot start").count(), 2);
    assert_eq!(runner.read(".ssh/authorized_keys"), None);
}
