//! A session's folder and command line, before the start.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::container::{self, Container, Spec};
use crate::launch::LaunchMethod;
use crate::ports::free_port;
use crate::runner::Runner;

/// The kernel id of every session in the suites; its hex digits name the task log.
pub const KERNEL_ID: &str = "deadbeef-0123-4567-89ab-cdef01234567";

/// The user of a session that was started [`as_work`](Setup::as_work).
pub const WORK: &str = "work";
const WORK_ID: u32 = 4321;

/// Debian's group for `/etc/shadow`, which the agent's entrypoint puts the runner in.
const SHADOW_ID: &str = "42";

/// Every process of a session carries this variable with the session's own folder as its value, so that leftovers can
/// be told from other sessions' processes.
const MARKER: &str = "KRUNNER_TEST_SESSION";

/// Builds a session: its temporary root, its files, its environment and its arguments.
#[derive(Debug)]
pub struct Setup {
    folder: TempDir,
    lang: String,
    runtime: Option<PathBuf>,
    options: Vec<String>,
    program: Option<PathBuf>,
    prefix: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    user_id: Option<u32>,
    ports: (u16, u16),
    terminal_ports: (u16, u16),
    service_ports: (u16, u16),
    write_ports: bool,
    stdout: Option<OwnedFd>,
}

impl Setup {
    /// A session of that language with two free ports, an otherwise empty home and nearly no environment.
    #[must_use]
    pub fn new(lang: &str) -> Self {
        let folder = TempDir::with_prefix("krt-").expect("a temporary folder");
        let root = folder.path().join("root");
        for sub in ["home/work", "home/config", "tmp", "etc/backend.ai"] {
            fs::create_dir_all(root.join(sub)).expect("a folder in the temporary root");
        }
        let path = env::var_os("PATH").unwrap_or_default();
        Self {
            folder,
            lang: lang.to_owned(),
            runtime: None,
            options: Vec::new(),
            program: None,
            prefix: Vec::new(),
            env: vec![("PATH".into(), path), ("BACKENDAI_KERNEL_ID".into(), KERNEL_ID.into())],
            user_id: None,
            ports: (free_port(), free_port()),
            terminal_ports: (free_port(), free_port()),
            service_ports: (free_port(), free_port()),
            write_ports: true,
            stdout: None,
        }
    }

    /// `RUNTIME_PATH` of the command line.
    #[must_use]
    pub fn runtime(mut self, path: impl Into<PathBuf>) -> Self {
        self.runtime = Some(path.into());
        self
    }

    /// `--debug`: log lines stay out of the `stderr` replies.
    #[must_use]
    pub fn debug(self) -> Self {
        self.option("--debug")
    }

    /// One more argument in front of the language.
    #[must_use]
    pub fn option(mut self, argument: &str) -> Self {
        self.options.push(argument.to_owned());
        self
    }

    /// Starts the runner through this path, a link to it, instead of its own.
    #[must_use]
    pub fn started_as(mut self, name: &str) -> Self {
        let link = self.folder.path().join(name);
        std::os::unix::fs::symlink(binary(), &link).expect("a link to the runner");
        self.program = Some(link);
        self
    }

    /// Starts that copy of the runner.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// The runner's own stdout, instead of a file.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<OwnedFd>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Starts the runner by a command that ends in `exec`ing its arguments.
    #[must_use]
    pub fn prefix(mut self, command: &[&str]) -> Self {
        self.prefix = command.iter().map(Into::into).collect();
        self
    }

    /// Runs these links before those that the runner is started by already.
    #[must_use]
    pub fn prefix_first(mut self, way: &LaunchMethod) -> Self {
        self.prefix.splice(..0, way.argv_prefix().iter().cloned());
        self
    }

    /// A variable of the runner's own environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self = self.without_env(key);
        self.env.push((key.into(), value.into()));
        self
    }

    /// Takes a variable out of the runner's own environment.
    #[must_use]
    pub fn without_env(mut self, key: &str) -> Self {
        self.env.retain(|(name, _)| name != key);
        self
    }

    /// Starts the runner as that user, who can enter the session's folder and owns nothing in it.
    #[must_use]
    pub fn user(mut self, user_id: u32) -> Self {
        self.user_id = Some(user_id);
        let open = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
        };
        open(self.folder.path(), 0o755);
        open(&self.root().join("tmp"), 0o1777);
        self
    }

    /// Leaves `intrinsic-ports.json` to the test.
    #[must_use]
    pub fn without_ports_file(mut self) -> Self {
        self.write_ports = false;
        self
    }

    /// The ports that the session is going to use: in, out.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// The ports of a terminal: typed, shown.
    #[must_use]
    pub fn terminal_ports(&self) -> (u16, u16) {
        self.terminal_ports
    }

    /// The ports of the services that come with the session: sshd, ttyd.
    #[must_use]
    pub fn service_ports(&self) -> (u16, u16) {
        self.service_ports
    }

    /// The folder that stands for `/`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The folder that stands for `/home/work`.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root().join("home/work")
    }

    /// Puts a copy of a program under the root.
    #[must_use]
    pub fn copy(self, path: &str, source: &Path) -> Self {
        let program = fs::read(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        let target = self.root().join(path);
        let setup = self.file(path, program);
        fs::set_permissions(target, Permissions::from_mode(0o755)).expect("chmod");
        setup
    }

    /// Puts a link under the root.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        let link = self.root().join(path);
        fs::create_dir_all(link.parent().expect("a link has a folder")).expect("the link's folder");
        std::os::unix::fs::symlink(target, link).expect("a link under the root");
        self
    }

    /// Starts the runner as the owner of its home, who is called [`WORK`] in a mount namespace of the session's own.
    /// `/opt` and `/usr/libexec` are the session's there, for programs that have paths of these built in.
    #[must_use]
    pub fn as_work(self) -> Self {
        self.run_as_work("", &["--clear-groups"])
    }

    fn run_as_work(mut self, mounts: &str, groups: &[&str]) -> Self {
        let place = self.folder.path().to_owned();
        let (root, home) = (self.root(), self.home());
        fs::set_permissions(&place, Permissions::from_mode(0o755)).expect("chmod");
        fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).expect("chmod");
        for folder in ["opt", "usr/libexec", "home/config/ssh"] {
            fs::create_dir_all(root.join(folder)).expect("a folder under the root");
        }
        let user = format!("root:x:0:0::/root:/bin/sh\n{WORK}:x:{WORK_ID}:{WORK_ID}::{}:/bin/bash\n", home.display());
        fs::write(place.join("passwd"), user).expect("a list of users");
        let way = format!(
            "mount --bind {place}/passwd /etc/passwd\nmount --bind {root}/opt /opt\n\
             mount --bind {root}/usr/libexec /usr/libexec\nchown -R {WORK_ID}:{WORK_ID} {root}/home\n{mounts}",
            place = place.display(),
            root = root.display()
        );
        self.prefix = LaunchMethod::direct().mounts(&way).user_with(WORK_ID, groups).argv_prefix().to_vec();
        // The user may not look into the folder that ours is in.
        let program = place.join("krunner");
        if fs::hard_link(binary(), &program).is_err() {
            fs::copy(binary(), &program).expect("a copy of the runner");
        }
        self.program = Some(program);
        self
    }

    /// The same where the agent's entrypoint has run before: the account has a password, `~/.password` has it as well, and
    /// the runner is in the group that may read `/etc/shadow`.
    #[must_use]
    pub fn as_work_with_password(self, password: &str) -> Self {
        let shadow = self.folder.path().join("shadow");
        let users = format!("root:*:19000:0:99999:7:::\n{WORK}:{}:19000:0:99999:7:::\n", password_hash(password));
        fs::write(&shadow, users).expect("a list of passwords");
        let mount = format!(
            "chown 0:{SHADOW_ID} {shadow}\nchmod 640 {shadow}\nmount --bind {shadow} /etc/shadow",
            shadow = shadow.display()
        );
        self.file("home/work/.password", format!("{password}\n")).run_as_work(&mount, &["--groups", SHADOW_ID])
    }

    /// Puts a file under the root, with the folders it needs.
    #[must_use]
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let target = self.root().join(path);
        let parent = target.parent().expect("a file has a folder");
        fs::create_dir_all(parent).expect("the file's folder");
        fs::write(&target, content).expect("a file under the root");
        self
    }

    /// Makes a folder under the root.
    #[must_use]
    pub fn folder(self, path: &str) -> Self {
        fs::create_dir_all(self.root().join(path)).expect("a folder under the root");
        self
    }

    /// Starts the runner as the first process of a container whose `/` is the session's root.
    #[track_caller]
    pub fn start_in(self, spec: &Spec, cgroup: Cgroup) -> (Runner, Container) {
        let mut line = vec![container::KRUNNER.to_owned()];
        line.extend(self.options.iter().cloned());
        line.push(self.lang.clone());
        self.start_line_in(spec, cgroup, &line, &[])
    }

    /// Starts a container of that command line, which comes to a runner in the end, with these variables.
    #[track_caller]
    pub fn start_line_in(
        self,
        spec: &Spec,
        cgroup: Cgroup,
        line: &[String],
        variables: &[String],
    ) -> (Runner, Container) {
        self.write_ports_file();
        let marker = format!("{MARKER}={}", self.folder.path().display());
        let mut env = vec![marker.clone(), format!("BACKENDAI_KERNEL_ID={KERNEL_ID}")];
        env.extend_from_slice(variables);
        let capture = [self.capture("stdout"), self.capture("stderr")];
        let (child, container) = Container::start(spec, cgroup, &self.root(), line, &env, capture);
        (Runner::new(child, self.folder, self.ports, self.terminal_ports, marker), container)
    }

    fn capture(&self, name: &str) -> File {
        File::create(self.folder.path().join(name)).expect("a capture file")
    }

    fn write_ports_file(&self) {
        if self.write_ports {
            let (termin, termout) = self.terminal_ports;
            let (sshd, ttyd) = self.service_ports;
            let ports = json!({
                "replin": self.ports.0, "replout": self.ports.1,
                "termin": termin, "termout": termout, "sshd": sshd, "ttyd": ttyd,
            });
            let path = self.root().join("home/config/intrinsic-ports.json");
            fs::write(path, ports.to_string()).expect("intrinsic-ports.json");
        }
    }

    /// Starts the runner. It may not listen yet when this returns: every client of the harness waits for that.
    #[must_use]
    pub fn start(mut self) -> Runner {
        let root = self.root();
        self.write_ports_file();
        let marker = format!("{MARKER}={}", self.folder.path().display());
        let program = self.program.clone().unwrap_or_else(binary);
        let mut argv = self.prefix.clone();
        argv.push(program.into());
        argv.extend(self.options.iter().map(Into::into));
        argv.extend(["--root".into(), root.clone().into(), self.lang.clone().into()]);
        argv.extend(self.runtime.clone().map(Into::into));

        let capture = self.capture("stdout");
        let stdout = self.stdout.take().map_or_else(|| Stdio::from(capture), Stdio::from);
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .current_dir(self.home())
            .env_clear()
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .env(MARKER, self.folder.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(self.capture("stderr"));
        if let Some(user_id) = self.user_id {
            command.uid(user_id).gid(user_id);
        }
        Runner::spawn(command, self.folder, self.ports, self.terminal_ports, marker)
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("KRUNNER_BIN") {
        return PathBuf::from(path);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("krunner"))
        .filter(|path| path.is_file())
        .max_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok())
        .expect("no krunner binary: run `cargo xtask test`, or build one and set KRUNNER_BIN to it")
}

/// As `/etc/shadow` has it.
fn password_hash(password: &str) -> String {
    let mut openssl = Command::new("openssl");
    let output = openssl.args(["passwd", "-6", password]).stdin(Stdio::null()).output().expect("openssl runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}
