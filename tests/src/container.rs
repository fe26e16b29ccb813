//! Real containers: `runc` runs an OCI bundle, without a daemon, with exactly the privileges that a test grants.
//!
//! A container is like the agent's, but without a network namespace, so that its ports are reachable. Its `/` is the
//! session's temporary root with the host's `/usr` in it, read-only. Tests withhold privileges by the same means
//! as container engines: capability sets, seccomp profiles, masked paths, mounts, namespaces.
//!
//! Each has a cgroup of its own in every hierarchy. Dropping it removes the container and all its processes.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::launch::LaunchMethod;
use crate::setup::binary;
use crate::{host, wait};

/// The path of the binary under test in the container.
pub const KRUNNER: &str = "/opt/kernel/krunner";

/// The path of the helper program in the container.
pub const HELPER: &str = "/opt/kernel/helper";

/// Docker's default capabilities (`oci/caps/defaults.go` of moby).
pub(crate) const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Paths that Docker masks or makes read-only by default.
const MASKED: [&str; 4] = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// The host UID of user 0 in a user namespace. [`MAPPED_USERS`] UIDs are mapped.
const MAPPED_ROOT: u32 = 100_000;
const MAPPED_USERS: u32 = 65_536;

/// The privileges and mounts of a container.
#[derive(Clone, Debug)]
pub struct Spec {
    memory_mib: u64,
    krunner: PathBuf,
    helper: Option<PathBuf>,
    user_id: u32,
    home_user_id: Option<u32>,
    capabilities: Vec<&'static str>,
    no_new_privileges: bool,
    seccomp: Option<Value>,
    namespaces: Vec<&'static str>,
    file_systems: Vec<(&'static str, &'static str)>,
    binds: Vec<(PathBuf, String)>,
    masked: Vec<String>,
}

impl Spec {
    /// Docker's default, root with a few capabilities, with this memory limit.
    #[must_use]
    pub fn plain(memory_mib: u64) -> Self {
        Self {
            memory_mib,
            krunner: binary(),
            helper: None,
            user_id: 0,
            home_user_id: None,
            capabilities: DEFAULT_CAPABILITIES.to_vec(),
            no_new_privileges: false,
            seccomp: None,
            namespaces: vec!["mount", "ipc", "uts", "pid"],
            file_systems: vec![("cgroup", "/sys/fs/cgroup")],
            binds: Vec::new(),
            masked: MASKED.map(str::to_owned).to_vec(),
        }
    }

    /// Sets the memory limit, like `--memory`.
    #[must_use]
    pub fn memory(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Uses this copy of the binary under test.
    #[must_use]
    pub fn krunner(mut self, program: impl Into<PathBuf>) -> Self {
        self.krunner = program.into();
        self
    }

    /// Mounts this program at [`HELPER`].
    #[must_use]
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.helper = Some(program.into());
        self
    }

    /// Sets the user, like `--user`.
    #[must_use]
    pub fn user(mut self, user_id: u32) -> Self {
        self.user_id = user_id;
        self
    }

    /// Gives the home folder to another user, to whom the container's first process switches.
    #[must_use]
    pub fn home_of(mut self, user_id: u32) -> Self {
        self.home_user_id = Some(user_id);
        self
    }

    /// Adds capabilities, like `--cap-add`.
    #[must_use]
    pub fn capabilities(mut self, more: &[&'static str]) -> Self {
        self.capabilities.extend(more);
        self
    }

    /// Sets `no_new_privs`, like `--security-opt no-new-privileges`.
    #[must_use]
    pub fn no_new_privileges(mut self) -> Self {
        self.no_new_privileges = true;
        self
    }

    /// Sets a seccomp profile under which this system call fails with this errno.
    #[must_use]
    pub fn refuse(mut self, call: &'static str, errno: i32) -> Self {
        let refusal = json!({ "names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
        self.seccomp = Some(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refusal] }));
        self
    }

    /// Mounts the host's folder, like `--volume PATH:PATH:ro`, instead of the default mount there.
    #[must_use]
    pub fn show(mut self, path: &str) -> Self {
        self.file_systems.retain(|(_, point)| *point != path);
        self.bind(path, path)
    }

    /// Mounts a host folder, like `--volume SOURCE:POINT:ro`.
    #[must_use]
    pub fn bind(mut self, source: impl Into<PathBuf>, point: &str) -> Self {
        self.binds.push((source.into(), point.to_owned()));
        self
    }

    /// Runs in a user namespace, whose root is an unprivileged user outside.
    #[must_use]
    pub fn user_namespace(mut self) -> Self {
        self.namespaces.push("user");
        self
    }

    /// Shares the host's PID namespace, like `--pid=host`.
    #[must_use]
    pub fn host_pids(mut self) -> Self {
        self.namespaces.retain(|kind| *kind != "pid");
        self
    }

    /// Creates a cgroup namespace, like `--cgroupns=private`: its own cgroup appears as `/`.
    #[must_use]
    pub fn cgroup_namespace(mut self) -> Self {
        self.namespaces.push("cgroup");
        self
    }

    /// Does not mount the cgroup file system.
    #[must_use]
    pub fn no_cgroups(mut self) -> Self {
        self.file_systems.clear();
        self
    }

    /// Mounts tracefs at its default path.
    #[must_use]
    pub fn tracefs(mut self) -> Self {
        self.file_systems.push(("tracefs", "/sys/kernel/tracing"));
        self
    }

    /// Masks a file with `/dev/null` or a folder with an empty one.
    #[must_use]
    pub fn mask(mut self, path: &str) -> Self {
        self.masked.push(path.to_owned());
        self
    }

    fn has_user_namespace(&self) -> bool {
        self.namespaces.contains(&"user")
    }

    /// The host UID of the container's user.
    fn owner(&self) -> u32 {
        self.user_id + if self.has_user_namespace() { MAPPED_ROOT } else { 0 }
    }

    fn config(&self, root: &Path, cgroup: &Path, args: &[String], env: &[String]) -> Value {
        let mut variables = vec!["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned()];
        variables.extend_from_slice(env);
        let namespaces: Vec<Value> = self.namespaces.iter().map(|kind| json!({ "type": kind })).collect();
        // Docker has root hold them, and others gain them by files at most (`SetCapabilities`, oci/oci.go of moby).
        let held: &[&str] = if self.user_id == 0 { &self.capabilities } else { &[] };
        let mut config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": root, "readonly": false },
            "process": {
                "args": args,
                "env": variables,
                "cwd": "/home/work",
                "user": { "uid": self.user_id, "gid": self.user_id },
                "capabilities": { "bounding": self.capabilities, "effective": held, "permitted": held },
                "noNewPrivileges": self.no_new_privileges,
            },
            "mounts": self.mounts(),
            "linux": {
                "cgroupsPath": cgroup,
                "resources": { "memory": { "limit": self.memory_mib << 20 } },
                "namespaces": namespaces,
                "maskedPaths": self.masked,
                "readonlyPaths": READ_ONLY,
            },
        });
        let linux = &mut config["linux"];
        if self.has_user_namespace() {
            let mapping = json!([{ "containerID": 0, "hostID": MAPPED_ROOT, "size": MAPPED_USERS }]);
            linux["uidMappings"] = mapping.clone();
            linux["gidMappings"] = mapping;
        }
        if let Some(profile) = &self.seccomp {
            linux["seccomp"] = profile.clone();
        }
        config
    }

    fn mounts(&self) -> Vec<Value> {
        let of = |kind: &str, point: &str, options: &[&str]| json!({ "destination": point, "type": kind, "source": kind, "options": options });
        let bind = |source: &Path, point: &str, how: &str| json!({ "destination": point, "type": "bind", "source": source, "options": [how, "ro"] });
        let hardened = ["nosuid", "noexec", "nodev", "ro"];
        let mut mounts = vec![
            bind(Path::new("/usr"), "/usr", "rbind"),
            bind(&self.krunner, KRUNNER, "bind"),
            of("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            of("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=64m"]),
        ];
        mounts.extend(self.helper.iter().map(|program| bind(program, HELPER, "bind")));
        // A sysfs is the network namespace's, and in a user namespace only who owns that may mount it.
        mounts.push(if self.has_user_namespace() {
            bind(Path::new("/sys"), "/sys", "rbind")
        } else {
            of("sysfs", "/sys", &hardened)
        });
        mounts.extend(self.file_systems.iter().map(|(kind, point)| of(kind, point, &hardened)));
        mounts.extend(self.binds.iter().map(|(source, point)| bind(source, point, "rbind")));
        mounts
    }
}

/// A running container.
#[derive(Debug)]
pub struct Container {
    name: String,
    /// The bundle and runc's state.
    folder: TempDir,
    cgroup: Cgroup,
}

impl Container {
    /// Starts these arguments in a container with this `/`, in which it creates the required folders. Returns `runc run`,
    /// which forwards signals and exits like the program, once the program runs.
    #[track_caller]
    pub fn start(
        spec: &Spec,
        cgroup: Cgroup,
        root: &Path,
        args: &[String],
        env: &[String],
        [stdout, stderr]: [File; 2],
    ) -> (Child, Self) {
        furnish(root, spec.owner());
        if let Some(user_id) = spec.home_user_id {
            give(&root.join("home/work"), user_id);
        }
        let folder = TempDir::with_prefix("krb-").expect("a temporary folder");
        let config = spec.config(root, &cgroup.path_in_hierarchy(), args, env);
        fs::write(folder.path().join("config.json"), config.to_string()).expect("config.json");
        let name = cgroup.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let container = Self { name, folder, cgroup };
        let mut command = container.runc("run");
        command.arg("--bundle").arg(container.folder.path()).arg(&container.name);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start runc: {error}"));
        wait::until("the container to run", || {
            let ended = child.try_wait().expect("wait for runc");
            assert_eq!(ended, None, "{} has ended at once", container.name);
            (container.state()?["status"] == "running").then_some(())
        });
        (child, container)
    }

    fn runc(&self, order: &str) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.folder.path().join("state")).arg(order);
        command
    }

    /// Launches a program in the container with the privileges of its first process.
    #[must_use]
    pub fn launch(&self) -> LaunchMethod {
        let command = self.runc("exec");
        let words = [command.get_program()].into_iter().chain(command.get_args()).map(ToOwned::to_owned);
        LaunchMethod::direct().then(words.chain([self.name.clone().into()]))
    }

    /// The output of `runc state`; `None` if the container does not exist yet.
    fn state(&self) -> Option<Value> {
        let mut command = self.runc("state");
        let output = ended(command.arg(&self.name)).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// The host PID of its first process.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let state = self.state().expect("the container is there");
        state["pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or_else(|| panic!("no pid in {state}"))
    }

    /// The cgroup of the container.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut command = self.runc("delete");
        if let Err(error) = ended(command.arg("--force").arg(&self.name)) {
            eprintln!("the container {} is left behind: {error}", self.name);
        }
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let left: Vec<PathBuf> =
            hierarchies.map(|entry| entry.path().join(&self.name)).filter(|path| path.exists()).collect();
        if !left.is_empty() {
            eprintln!("cgroups are left behind: {left:?}");
        }
    }
}

/// Creates what `/` needs besides a session's files, owned by this user.
fn furnish(root: &Path, owner: u32) {
    for folder in ["usr", "proc", "sys", "dev", "opt/kernel"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    for folder in ["bin", "lib", "lib64", "sbin"] {
        symlink(Path::new("usr").join(folder), root.join(folder)).expect("a link");
    }
    for file in [KRUNNER, HELPER] {
        File::create(root.join(file.trim_start_matches('/'))).expect("a file to mount upon");
    }
    // The folder that the root is in is the caller's alone; runc has to pass as whom the container is.
    let folder = root.parent().expect("a root has a folder");
    fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("chmod");
    give(root, owner);
    fs::create_dir_all(root.join("tmp")).expect("a folder");
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).expect("chmod");
}

/// Changes the owner of the whole tree.
fn give(path: &Path, owner: u32) {
    lchown(path, Some(owner), Some(owner)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("a folder").flatten().for_each(|entry| give(&entry.path(), owner));
    }
}

/// Runs a command with a timeout. Fails unless it succeeds.
fn ended(command: &mut Command) -> Result<Output, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if wait::within(wait::PATIENCE, || child.try_wait().ok().flatten()).is_none() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Fails unless containers can be started here. Tries one that does nothing.
pub fn available() -> Result<(), String> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    TRIED.get_or_init(attempt).clone()
}

fn attempt() -> Result<(), String> {
    host::root()?;
    host::program("runc")?;
    let cgroup = Cgroup::for_container()?;
    let (outside, inside) = (TempDir::with_prefix("krb-"), TempDir::with_prefix("krb-"));
    let (outside, inside) = (outside.map_err(|error| error.to_string())?, inside.map_err(|error| error.to_string())?);
    let root = inside.path().join("root");
    fs::create_dir_all(root.join("home/work")).map_err(|error| error.to_string())?;
    furnish(&root, 0);
    let args = ["true".to_owned()];
    let config = Spec::plain(64).config(&root, &cgroup.path_in_hierarchy(), &args, &[]);
    fs::write(outside.path().join("config.json"), config.to_string()).map_err(|error| error.to_string())?;
    let name = format!("krunner-trial-{}", std::process::id());
    let mut command = Command::new("runc");
    command.arg("--root").arg(outside.path().join("state")).args(["run", "--bundle"]).arg(outside.path()).arg(name);
    ended(&mut command).map(drop).map_err(|error| format!("no containers: runc: {error}"))
}
