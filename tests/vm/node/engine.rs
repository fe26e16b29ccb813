//! The container engines: how each starts a container, runs a program in it and removes it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use krunner_tests::wait;
use serde_json::{Value, json};

use crate::command::{command, outcome, output, write};
use crate::images::SESSION;
use crate::older;

/// The path of krunner in every image.
pub(crate) const KRUNNER: &str = "/opt/kernel/krunner";

/// The user's podman, with a session of systemd.
pub(crate) const ROOTLESS: &[&str] = &[
    "/usr/bin/setpriv",
    "--reuid=1000",
    "--regid=1000",
    "--init-groups",
    "--reset-env",
    "env",
    "--chdir=/",
    "XDG_RUNTIME_DIR=/run/user/1000",
    "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus",
    "podman",
];

const CTR: &[&str] = &["ctr", "--namespace", "k8s.io"];

/// What starts containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Docker,
    Podman,
    /// Podman of a user who is not root.
    Rootless,
    /// containerd, by its own client.
    Ctr,
    /// containerd, as the kubelet asks for containers.
    Cri,
    Runc,
    /// The machine's own systemd, for a unit.
    Systemd,
}

/// How a container is described.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Launch {
    /// A recipe, as it is.
    Recipe(&'static str),
    /// A recipe of a pod, with another name.
    Pod { recipe: &'static str, name: &'static str },
    /// A recipe of a pod, whose containers are killed as a whole.
    GroupRecipe(&'static str),
    /// What the agent asks Docker for with the options of a recipe: a file of its request.
    Agent(&'static str),
    /// A session in a container with this memory limit and these flags.
    Session { memory_mib: u64, flags: &'static [&'static str], command: &'static [&'static str] },
}

/// A running container.
pub(crate) struct Container {
    engine: Engine,
    /// The engine's name for it, and for its pod.
    id: String,
    sandbox: String,
    /// Where its published ports are.
    pub(crate) address: String,
    /// Its first process, in the machine's PID namespace.
    pub(crate) pid: u32,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Rootless => "podman, rootless",
            Self::Ctr => "ctr",
            Self::Cri => "CRI",
            Self::Runc => "runc",
            Self::Systemd => "systemd",
        }
    }

    /// The words before the arguments of its client.
    fn client(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["docker"],
            Self::Podman => &["podman"],
            Self::Rootless => ROOTLESS,
            Self::Ctr => CTR,
            Self::Cri => &["python3", "cri.py"],
            Self::Runc => &["runc"],
            Self::Systemd => &["systemctl"],
        }
    }

    fn run(self, words: &[&str]) -> Result<String, String> {
        output(&mut command(&[self.client(), words].concat()))
    }

    /// Starts a container and returns when its first process runs.
    pub(crate) fn start(self, name: &str, launch: Launch) -> Result<Container, String> {
        match (self, launch) {
            (Self::Cri, Launch::Recipe(recipe)) => start_pod(&[recipe]),
            (Self::Cri, Launch::Pod { recipe, name }) => start_pod(&[recipe, "--name", name]),
            (Self::Cri, Launch::GroupRecipe(recipe)) => start_pod(&[recipe, "--group", "--home", HOME]),
            (Self::Docker, Launch::Recipe(recipe)) => {
                let text = fs::read_to_string(recipe).map_err(|error| format!("{recipe}: {error}"))?;
                output(&mut command(&["sh", "-c", &older::accepted_recipe(&text)]))?;
                self.started(name)
            }
            (Self::Docker, Launch::Agent(request)) => {
                start_as_agent(name, request)?;
                self.started(name)
            }
            (Self::Systemd, Launch::Recipe(unit)) => start_unit(name, unit),
            (_, Launch::Session { memory_mib, flags, command }) => self.start_session(name, memory_mib, flags, command),
            _ => Err(format!("{} has no recipes", self.name())),
        }
    }

    fn start_session(self, name: &str, mib: u64, flags: &[&'static str], words: &[&str]) -> Result<Container, String> {
        let bytes = (mib << 20).to_string();
        let flags = &older::accepted(self, flags)[..];
        match self {
            Self::Ctr => {
                let image = format!("docker.io/{SESSION}");
                let options = ["run", "--detach", "--memory-limit", &bytes];
                self.run(&[&options[..], flags, &[&image, name], words].concat())?;
            }
            Self::Runc => {
                bundle(mib, flags, words)?;
                self.run(&["run", "--detach", "--bundle", BUNDLE, name])?;
            }
            _ => {
                let options = ["run", "--detach", "--name", name, "--memory", &bytes];
                let network: &[&str] = if flags.contains(&"--network") { &[] } else { &["--network", "none"] };
                self.run(&[&options[..], network, flags, &[SESSION], words].concat())?;
            }
        }
        self.started(name)
    }

    /// Starts a container, uses it and removes it.
    pub(crate) fn with(
        self,
        name: &str,
        launch: Launch,
        work: impl FnOnce(&Container) -> Result<(), String>,
    ) -> Result<(), String> {
        let container = self.start(name, launch).inspect_err(|_| self.forget(name))?;
        let used = work(&container);
        container.remove().and(used)
    }

    /// Removes what is left of a container that did not start.
    pub(crate) fn forget(self, name: &str) {
        let _ = Container::of(self, name, 0).remove();
    }

    fn started(self, name: &str) -> Result<Container, String> {
        let told = match self {
            Self::Ctr => {
                let tasks = self.run(&["tasks", "ls"])?;
                let task = tasks.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
                task.ok_or(tasks)?.split_whitespace().next().unwrap_or_default().to_owned()
            }
            Self::Runc => {
                let state: Value =
                    serde_json::from_str(&self.run(&["state", name])?).map_err(|error| error.to_string())?;
                state["pid"].to_string()
            }
            _ => self.run(&["inspect", "--format", "{{.State.Pid}}", name])?,
        };
        let pid = told.trim().parse().map_err(|_| format!("{}: no PID: {told:?}", self.name()))?;
        if pid == 0 {
            return Err(format!("{name} has exited: {}", self.run(&["logs", name]).unwrap_or_else(|error| error)));
        }
        Ok(Container::of(self, name, pid))
    }
}

/// Installs a unit as the recipes say, and starts it.
fn start_unit(name: &str, unit: &str) -> Result<Container, String> {
    let install = format!(
        "cp dist/x86_64/krunner /usr/local/bin/
         mkdir -p /opt/kernel; ln -sf /usr/local/bin/krunner {KRUNNER}
         cp {unit} /etc/systemd/system/
         systemctl daemon-reload; systemctl start {name}; systemctl show --property MainPID --value {name}"
    );
    let pid = output(&mut command(&["/bin/sh", "-ec", &install]))?;
    let pid = pid.trim().parse().map_err(|_| format!("{name}: no PID: {pid:?}"))?;
    Ok(Container::of(Engine::Systemd, name, pid))
}

/// What the agent adds to its request in `start_container` and in the memory plugin (`generate_docker_args`), agent 23.3.8.
fn start_as_agent(name: &str, request: &str) -> Result<(), String> {
    let text = fs::read_to_string(request).map_err(|error| format!("{request}: {error}"))?;
    let mut config: Value = serde_json::from_str(&text).map_err(|error| format!("{request}: {error}"))?;
    config["Image"] = json!(SESSION);
    config["Cmd"] = json!([KRUNNER, "app"]);
    config["Env"] = json!(["LOCAL_USER_ID=1000", "LOCAL_GROUP_ID=1000"]);
    config["HostConfig"]["Memory"] = json!(AGENT_MIB << 20);
    config["HostConfig"]["MemorySwap"] = json!(AGENT_MIB << 20);
    docker_post(&format!("/containers/create?name={name}"), &config)?;
    docker_post(&format!("/containers/{name}/start"), &Value::Null)
}

/// MiB; the limit of the agent's container.
pub(crate) const AGENT_MIB: u64 = 96;

/// A request of the Docker Engine API, in a version that every Docker since 19.03 has.
fn docker_post(path: &str, body: &Value) -> Result<(), String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "POST /v1.40{path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    let asked = UnixStream::connect("/var/run/docker.sock").and_then(|mut socket| {
        socket.set_read_timeout(Some(ANSWER))?;
        socket.write_all(request.as_bytes())?;
        socket.read_to_string(&mut answer)
    });
    asked.map_err(|error| format!("docker {path}: {error}: {answer}"))?;
    // 201 created, 204 no content.
    if answer.starts_with("HTTP/1.1 20") { Ok(()) } else { Err(format!("docker {path}: {answer}")) }
}

/// How long Docker may take for an answer. The processor is emulated.
const ANSWER: Duration = Duration::from_mins(2);

/// The home of sessions that outlives their containers.
pub(crate) const HOME: &str = "/srv/home";

fn start_pod(words: &[&str]) -> Result<Container, String> {
    let told = output(&mut command(&[&["python3", "cri.py", "start"], words].concat()))?;
    let told: Value = serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))?;
    let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    let pid = told["pid"].as_u64().and_then(|pid| pid.try_into().ok()).ok_or("no PID")?;
    let (sandbox, address) = (text("sandbox"), text("address"));
    Ok(Container { sandbox, address, ..Container::of(Engine::Cri, &text("container"), pid) })
}

impl Container {
    fn of(engine: Engine, id: &str, pid: u32) -> Self {
        Self { engine, id: id.to_owned(), sandbox: String::new(), address: "127.0.0.1".to_owned(), pid }
    }

    /// Starts the container of a pod again, as the kubelet does after a crash.
    pub(crate) fn restart(&self, recipe: &str) -> Result<Self, String> {
        start_pod(&[recipe, "--group", "--home", HOME, "--in", &self.sandbox])
    }

    /// Runs a program in the container with the privileges that the engine gives, and returns its stdout.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<String, String> {
        if self.engine == Engine::Systemd {
            return output(&mut command(words));
        }
        let options: &[&str] = match self.engine {
            Engine::Ctr => &["tasks", "exec", "--exec-id", "doctor"],
            _ => &["exec"],
        };
        let line = [self.engine.client(), options, &[&self.id], words].concat();
        // `krunner doctor` exits with 1 where BPF is missing.
        outcome(&mut command(&line)).map(|(_, stdout, _)| stdout)
    }

    /// What its first process printed.
    pub(crate) fn logs(&self, log: &str) -> Result<String, String> {
        match self.engine {
            // `TIME STREAM TAG LINE` (kubernetes.io, CRI logging format).
            Engine::Cri => {
                let path = format!("/var/log/pods/{log}/log.0");
                let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
                Ok(text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect::<Vec<_>>().join("\n"))
            }
            Engine::Systemd => {
                output(&mut command(&["journalctl", "--unit", &self.id, "--output", "cat", "--no-pager"]))
            }
            engine => engine.run(&["logs", &self.id]),
        }
    }

    /// The end of what its first process printed, for an error message.
    pub(crate) fn end_of_log(&self) -> String {
        const LINES: usize = 12;
        let log = match self.engine {
            Engine::Docker | Engine::Podman | Engine::Rootless => {
                let printed = outcome(&mut command(&[self.engine.client(), &["logs", &self.id]].concat()));
                printed.map_or_else(|error| error, |(_, stdout, stderr)| stdout + &stderr)
            }
            _ => "not read".to_owned(),
        };
        let lines: Vec<&str> = log.lines().collect();
        format!("the end of its log: {}", lines[lines.len().saturating_sub(LINES)..].join(" | "))
    }

    /// Waits until its first process is gone.
    pub(crate) fn until_ended(&self, patience: Duration) -> Result<(), String> {
        let process = format!("/proc/{}", self.pid);
        let is_gone = || (!fs::exists(&process).unwrap_or(true)).then_some(());
        wait::within(patience, is_gone).ok_or_else(|| "the runner survived".to_owned())
    }

    /// Kills what runs in it and removes it.
    pub(crate) fn remove(&self) -> Result<(), String> {
        let id = self.id.as_str();
        match self.engine {
            Engine::Docker => self.engine.run(&["rm", "--force", id]),
            Engine::Podman | Engine::Rootless => self.engine.run(&["rm", "--force", "--time", "0", id]),
            Engine::Ctr => self
                .engine
                .run(&["tasks", "rm", "--force", id])
                .and_then(|_| self.engine.run(&["containers", "rm", id])),
            Engine::Cri => self.engine.run(&["stop", &self.sandbox]),
            Engine::Runc => self.engine.run(&["delete", "--force", id]),
            Engine::Systemd => self.engine.run(&["stop", id]),
        }
        .map(drop)
    }
}

const BUNDLE: &str = "/opt/node/bundle";

/// `runc spec` with a memory limit, and with these capabilities in every set.
fn bundle(mib: u64, capabilities: &[&str], words: &[&str]) -> Result<(), String> {
    let unpack = format!(
        "rm -rf {BUNDLE}; mkdir -p {BUNDLE}; cp -a base {BUNDLE}/rootfs; cp dist/x86_64/krunner {BUNDLE}/rootfs{KRUNNER}
         # Root of `runc spec` may not write where it is not the owner.
         chown -R 0:0 {BUNDLE}/rootfs/home/work
         cd {BUNDLE}; runc spec"
    );
    output(&mut command(&["/bin/sh", "-ec", &unpack]))?;
    let path = format!("{BUNDLE}/config.json");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let mut config: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let process = &mut config["process"];
    process["args"] = json!(words);
    process["terminal"] = json!(false);
    process["env"] = json!(["PATH=/opt/kernel:/bin"]);
    for set in ["bounding", "effective", "permitted"] {
        let names = process["capabilities"][set].as_array_mut().ok_or("no capabilities")?;
        names.extend(capabilities.iter().map(|name| json!(name)));
    }
    config["root"]["readonly"] = json!(false);
    config["linux"]["resources"]["memory"] = json!({ "limit": mib << 20 });
    write(&path, &config.to_string())
}
