//! A cluster: three sessions, each with a network and a host name of its own, on one bridge, as an agent's multi-container
//! session is. Real dropbear, a real ssh client, and Open MPI's launcher.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use krunner_tests::{LaunchMethod, Raw, Runner, Setup, host, require};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tempfile::TempDir;

const HOSTS: [&str; 3] = ["main1", "sub1", "sub2"];

/// What agents give sshd in a network of its own.
const SSH_PORT: u16 = 2200;

/// How often every host is called; each call is a connection of its own to each of the others.
const CALLS: usize = 20;

/// Network, host name and mounts of one host; they last as long as its process, which ends with our end of its stdin.
struct Namespaces {
    holder: Child,
}

impl Namespaces {
    /// `hosts` stands for `/etc/hosts`.
    fn new(name: &str, hosts: &Path) -> Self {
        let script =
            "set -e; hostname \"$0\"; mount --bind \"$1\" /etc/hosts; ip link set lo up; echo; read gone || exit 0";
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--uts", "--mount", "sh", "-c", script, name]).arg(hosts);
        let mut holder = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare starts");
        let mut ready = String::new();
        let stdout = holder.stdout.take().expect("its stdout");
        BufReader::new(stdout).read_line(&mut ready).expect("a line of the holder");
        assert_eq!(ready, "\n", "namespaces of {name}");
        Self { holder }
    }

    fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn launch(&self) -> LaunchMethod {
        LaunchMethod::direct().then(["nsenter", "--target", &self.pid().to_string(), "--net", "--uts", "--mount"])
    }

    #[track_caller]
    fn run(&self, command: &[&str]) {
        run(self.launch().command(command[0]).args(&command[1..]));
    }

    /// Connections made in a network stay in it.
    fn connect(&self, runner: &Runner) -> Raw {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.pid())).expect("its network");
        thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                setns(network, CloneFlags::CLONE_NEWNET).expect("to its network");
                Raw::connect(runner)
            });
            connecting.join().expect("a connection")
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("a program that is there");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Sessions come before the namespaces that they are in, so that they end before those.
struct Cluster {
    sessions: Vec<(Runner, Raw)>,
    _namespaces: Vec<Namespaces>,
    _folder: TempDir,
}

fn address(index: usize) -> String {
    format!("10.213.0.{}", index + 1)
}

impl Cluster {
    fn available() -> Result<(), String> {
        host::root().and_then(|()| host::program("ip")).and_then(|_| host::program("hostname"))?;
        crate::sshd::single().map(drop)
    }

    /// A bootstrap script of 5 s on the last host.
    fn start() -> Self {
        let folder = TempDir::with_prefix("krc-").expect("a temporary folder");
        let hosts = folder.path().join("hosts");
        let lines = HOSTS.iter().enumerate().map(|(index, name)| format!("{} {name}\n", address(index)));
        fs::write(&hosts, format!("127.0.0.1 localhost\n{}", lines.collect::<String>())).expect("a hosts file");
        let key = folder.path().join("id_cluster");
        let mut keygen = Command::new("ssh-keygen");
        run(keygen.args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-C", "cluster", "-f"]).arg(&key));

        let namespaces: Vec<_> = HOSTS.iter().map(|name| Namespaces::new(name, &hosts)).collect();
        // The bridge is in the first host's network.
        let switch = &namespaces[0];
        switch.run(&["ip", "link", "add", "name", "bridge0", "type", "bridge"]);
        switch.run(&["ip", "addr", "add", &format!("{}/24", address(0)), "dev", "bridge0"]);
        switch.run(&["ip", "link", "set", "bridge0", "up"]);
        for (index, host) in namespaces.iter().enumerate().skip(1) {
            let (port, switch_pid) = (format!("port{index}"), switch.pid().to_string());
            host.run(&[
                "ip",
                "link",
                "add",
                "name",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                &port,
                "netns",
                &switch_pid,
            ]);
            host.run(&["ip", "addr", "add", &format!("{}/24", address(index)), "dev", "eth0"]);
            host.run(&["ip", "link", "set", "eth0", "up"]);
            switch.run(&["ip", "link", "set", &port, "master", "bridge0", "up"]);
        }
        let sessions = HOSTS.iter().zip(&namespaces).map(|(name, namespaces)| {
            let script = if *name == HOSTS[2] { "sleep 5\n" } else { "true\n" };
            let setup = member(&key).file("home/work/bootstrap.sh", script).as_work();
            let runner = setup.prefix_first(&namespaces.launch()).start();
            let raw = namespaces.connect(&runner);
            (runner, raw)
        });
        Self { sessions: sessions.collect(), _namespaces: namespaces, _folder: folder }
    }

    /// As an agent does it before it starts the batch command: all hosts have answered.
    fn wait_until_ready(&mut self) {
        for (_, raw) in &mut self.sessions {
            raw.op("status", "");
        }
        for (_, raw) in &mut self.sessions {
            raw.read_until(|message| message.kind == "status");
            raw.op("get-apps", "");
            raw.read_until(|message| message.kind == "apps-result");
        }
    }

    fn main(&mut self) -> &mut Raw {
        &mut self.sessions[0].1
    }
}

fn member(key: &Path) -> Setup {
    let setup = crate::sshd::single().expect("it was asked for before").without_ports_file();
    let (replin, replout) = setup.ports();
    let ports = json!({ "replin": replin, "replout": replout, "sshd": SSH_PORT, "ttyd": 7681 });
    let text = |path: PathBuf| fs::read(path).expect("the cluster's key");
    let setup = setup
        .env("BACKENDAI_CLUSTER_REPLICAS", "main:1,sub:2")
        .file("home/config/intrinsic-ports.json", ports.to_string())
        .file("home/config/ssh/id_cluster", text(key.to_owned()))
        .file("home/config/ssh/id_cluster.pub", text(key.with_extension("pub")));
    let private = setup.root().join("home/config/ssh/id_cluster");
    fs::set_permissions(private, fs::Permissions::from_mode(0o600)).expect("chmod");
    setup
}

/// `KRUNNER_TEST_CLUSTERS` many clusters one after another; one without it.
#[test]
fn hosts_reach_each_other_from_the_first_step_on() {
    require!(Cluster::available());
    let rounds = std::env::var("KRUNNER_TEST_CLUSTERS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    for round in 0..rounds {
        let mut cluster = Cluster::start();
        cluster.wait_until_ready();
        for call in 0..CALLS {
            let run = cluster.main().exec("for h in sub1 sub2; do ssh $h hostname; done");
            assert_eq!(run.stdout(), "sub1\nsub2\n", "round {round}, call {call}: {}", run.stderr());
        }
    }
}

#[test]
fn open_mpi_starts_a_process_on_each_host() {
    require!(Cluster::available());
    require!(host::program("mpirun"));
    let mut cluster = Cluster::start();
    cluster.wait_until_ready();
    let run = cluster
        .main()
        .exec("timeout 50 mpirun --oversubscribe -H main1,sub1,sub2 -np 3 hostname 2> \"$HOME/mpirun.log\" | sort");
    assert_eq!(run.stdout(), "main1\nsub1\nsub2\n", "{}", run.stderr());
}
