//! Real containers: an OCI bundle that `runc` runs, without a daemon, with exactly the rights that a test gives it.
//!
//! A container here is what the agent's is, less the network namespace, so that its ports can be reached: its `/` is the
//! session's temporary root, with the host's `/usr` in it, read-only. What is withheld is withheld by the means
//! that container engines have: capability sets, seccomp profiles, masked paths, mounts, namespaces.
//!
//! Each has a cgroup of its own, in every hierarchy there is. It is gone, with all its processes, when it is dropped.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::setup::binary;
use crate::way::Way;
use crate::{host, wait};

/// Where the binary under test is inside.
pub const KRUNNER: &str = "/opt/kernel/krunner";

/// Where a container's helper program is inside.
pub const HELPER: &str = "/opt/kernel/helper";

/// What Docker gives by default (`oci/caps/defaults.go` of moby).
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

/// What Docker hides and write-protects by default.
const MASKED: [&str; 4] = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// User 0 of a user namespace is this one outside, and so on for [`MAPPED_USERS`].
const MAPPED_ROOT: u32 = 100_000;
const MAPPED_USERS: u32 = 65_536;

/// What a container may and sees.
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
    read_only: Vec<&'static str>,
    is_read_only: bool,
}

impl Spec {
    /// As Docker's default, with so much memory: root with a few capabilities.
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
            read_only: READ_ONLY.to_vec(),
            is_read_only: false,
        }
    }

    /// `--memory`.
    #[must_use]
    pub fn memory(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// With that copy of the binary under test.
    #[must_use]
    pub fn krunner(mut self, program: impl Into<PathBuf>) -> Self {
        self.krunner = program.into();
        self
    }

    /// With this program at [`HELPER`].
    #[must_use]
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.helper = Some(program.into());
        self
    }

    /// `--user`.
    #[must_use]
    pub fn user(mut self, user_id: u32) -> Self {
        self.user_id = user_id;
        self
    }

    /// The home folder is another user's, whom the container's first process becomes.
    #[must_use]
    pub fn home_of(mut self, user_id: u32) -> Self {
        self.home_user_id = Some(user_id);
        self
    }

    /// `--cap-add`.
    #[must_use]
    pub fn capabilities(mut self, more: &[&'static str]) -> Self {
        self.capabilities.extend(more);
        self
    }

    /// `--cap-drop ALL`, and these.
    #[must_use]
    pub fn exactly(mut self, capabilities: Vec<&'static str>) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// `--security-opt no-new-privileges`.
    #[must_use]
    pub fn no_new_privileges(mut self) -> Self {
        self.no_new_privileges = true;
        self
    }

    /// A seccomp profile that lets this system call fail with that error number.
    #[must_use]
    pub fn refuse(self, call: &'static str, errno: i32) -> Self {
        let refusal = json!({ "names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
        self.seccomp(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refusal] }))
    }

    /// This seccomp profile, as a runtime takes it.
    #[must_use]
    pub fn seccomp(mut self, profile: Value) -> Self {
        self.seccomp = Some(profile);
        self
    }

    /// `--read-only`.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    /// `--volume PATH:PATH:ro`: the host's folder, instead of what else would be mounted there.
    #[must_use]
    pub fn show(mut self, path: &str) -> Self {
        self.file_systems.retain(|(_, point)| *point != path);
        self.bind(path, path)
    }

    /// `--volume SOURCE:POINT:ro`.
    #[must_use]
    pub fn bind(mut self, source: impl Into<PathBuf>, point: &str) -> Self {
        self.binds.push((source.into(), point.to_owned()));
        self
    }

    /// Nothing is hidden or write-protected by default.
    #[must_use]
    pub fn unmasked(mut self) -> Self {
        self.masked.clear();
        self.read_only.clear();
        self
    }

    /// Root inside is nobody in particular outside.
    #[must_use]
    pub fn user_namespace(mut self) -> Self {
        self.namespaces.push("user");
        self
    }

    /// `--pid=host`.
    #[must_use]
    pub fn host_pids(mut self) -> Self {
        self.namespaces.retain(|kind| *kind != "pid");
        self
    }

    /// `--cgroupns=private`: its own cgroup is `/` to it.
    #[must_use]
    pub fn cgroup_namespace(mut self) -> Self {
        self.namespaces.push("cgroup");
        self
    }

    /// Without a view of the cgroups.
    #[must_use]
    pub fn no_cgroups(mut self) -> Self {
        self.file_systems.clear();
        self
    }

    /// With tracefs where the kernel would have it.
    #[must_use]
    pub fn tracefs(mut self) -> Self {
        self.file_systems.push(("tracefs", "/sys/kernel/tracing"));
        self
    }

    /// Hides a file behind `/dev/null`, a folder behind an empty one.
    #[must_use]
    pub fn mask(mut self, path: &str) -> Self {
        self.masked.push(path.to_owned());
        self
    }

    fn has_user_namespace(&self) -> bool {
        self.namespaces.contains(&"user")
    }

    /// Who the container's user is outside.
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
            "root": { "path": root, "readonly": self.is_read_only },
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
                "readonlyPaths": self.read_only,
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

/// A container that was started.
#[derive(Debug)]
pub struct Container {
    name: String,
    /// The bundle, and what runc keeps of it.
    folder: TempDir,
    cgroup: Cgroup,
}

impl Container {
    /// Starts these arguments in a container with that `/`, which gets the folders it needs. Returns `runc run`,
    /// which passes signals on and ends as they do, when they run.
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

    /// Into it, with the rights that its first process has.
    #[must_use]
    pub fn way(&self) -> Way {
        let command = self.runc("exec");
        let words = [command.get_program()].into_iter().chain(command.get_args()).map(ToOwned::to_owned);
        Way::here().then(words.chain([self.name.clone().into()]))
    }

    /// `runc state`; none while there is none.
    fn state(&self) -> Option<Value> {
        let mut command = self.runc("state");
        let output = ended(command.arg(&self.name)).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Its first process, as the host numbers it.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let state = self.state().expect("the container is there");
        state["pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or_else(|| panic!("no pid in {state}"))
    }

    /// Its cgroup, for memory as for all else.
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

/// What `/` needs beside what a session has, all of it owned by that user.
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

/// Gives all of it to that user.
fn give(path: &Path, owner: u32) {
    lchown(path, Some(owner), Some(owner)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("a folder").flatten().for_each(|entry| give(&entry.path(), owner));
    }
}

/// Runs a command to its end, which comes in time or by force; `Err` unless it was a success.
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

/// The right and the means to start containers, proven by one that does nothing.
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
