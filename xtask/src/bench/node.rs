//! Measures what `krunner node` costs a machine with many plain containers, and how soon a kill is reported in one of them.
//!
//! A plain container is here a runner in a PID namespace and a memory cgroup of its own, without the capabilities that eBPF needs:
//! engines are not needed for what is measured.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::figures::{Figure, Results, median};
use super::oom::{Cgroup, Monitor, Sender, memory_mib, processor_seconds, wait_for};
use super::sandbox::{Implementation, Ports, Programs, child_of, make_home};
use crate::workspace::step;

/// Containers on a machine.
const CONTAINERS: usize = 200;

/// For all runners to start and to connect.
const CONNECT_PATIENCE: Duration = Duration::from_mins(3);

/// Processes beside which the node's memory is measured.
const PROCESSES: usize = 20_000;

/// Forks of a run. A shell forks 1,000 times in half a second.
const FORKS: u32 = 3000;

/// Times that the load runs in each round.
const RUNS: usize = 5;

/// Rounds, each without and with the containers.
const ROUNDS: usize = 3;

/// Files of the project that `make -j2` builds.
const SOURCES: usize = 60;

/// Kills whose reports are timed. The 99th percentile is the second worst.
const KILLS: usize = 150;

/// Memory of the victims of a kill loop: too little for the program's start, so that as many as possible are killed.
const STORM_VICTIM_BYTES: u64 = 1 << 20;

/// How long idle containers and node are watched.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Measures the requested figures.
pub(super) fn run(programs: &Programs, results: &mut Results) -> Result<()> {
    if results.wants_any(&[Figure::NodeReport, Figure::NodeStorm]) {
        step(&format!("timing the reports of {KILLS} kills in a plain container"));
        reports(programs, results)?;
    }
    if results.wants_any(&[Figure::NodeForks, Figure::NodeMake]) {
        step(&format!("timing forks and a build beside {CONTAINERS} plain containers and the node"));
        loads(programs, results)?;
    }
    if results.wants(Figure::NodeRss) {
        step(&format!("the node beside {PROCESSES} processes"));
        memory(programs, results)?;
    }
    Ok(())
}

/// A running node. Dropping it kills it.
struct Node {
    child: Child,
    folder: TempDir,
}

impl Node {
    fn start(programs: &Programs) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("krunner-bench-").tempdir()?;
        let mut command = Command::new(&programs.krunner);
        command.args(["node", "--socket"]).arg(folder.path().join("node.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut node = Self { child: command.spawn()?, folder };
        let mut lines = BufReader::new(node.child.stdout.take().context("no output")?).lines();
        let first = lines.next().context("the node does not start; see `krunner node`")??;
        if !first.contains("node_started") {
            bail!("the node began with {first}");
        }
        // A full pipe would make it drop lines, and warn.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(node)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }

    fn peers(&self, programs: &Programs) -> Result<usize> {
        let mut command = Command::new(&programs.krunner);
        let output = command.args(["node", "status", "--json", "--socket"]).arg(self.socket()).output()?;
        let status: Value = serde_json::from_slice(&output.stdout).context("the node has no status")?;
        Ok(status["peers"].as_array().map_or(0, Vec::len))
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    fn rss_mib(&self) -> Result<f64> {
        memory_mib(self.child.id(), "VmRSS:")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A runner as in a container. Dropping it kills it. The fields are dropped in this order.
struct SessionRunner {
    child: Child,
    folder: TempDir,
    ports: Ports,
    /// Its own cgroup, in the container's.
    _cgroup: Cgroup,
    container: Cgroup,
}

impl SessionRunner {
    /// In a plain container with the node's socket, or in one with the capabilities for eBPF.
    fn start(programs: &Programs, number: usize, socket: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("krunner-bench-").tempdir()?;
        let ports = make_home(folder.path())?;
        // The record of kills is only kept where there is a place for it at the start.
        fs::create_dir(folder.path().join("home/work/.logs"))?;
        let container = Cgroup::below_ours(&format!("krunner-bench-{}-{number}", std::process::id()))?;
        let cgroup = container.below("runner")?;
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0"; exec "$@""#]).arg(cgroup.entrance());
        command.args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if socket.is_some() {
            command.args(["setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon"]);
        }
        command.arg(&programs.krunner).arg("--root").arg(folder.path()).args(["c", "/usr/bin/gcc"]);
        command.current_dir(folder.path().join("home/work"));
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
        command.env("HOME", folder.path().join("home/work"));
        command.env("KRUNNER_NODE_SOCKET", socket.unwrap_or(Path::new("")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: command.spawn()?, folder, ports, _cgroup: cgroup, container })
    }

    fn wait_until_it_listens(&self) -> Result<()> {
        wait_for("a runner to listen", || TcpStream::connect(("127.0.0.1", self.ports.replin)).is_ok())
    }

    fn pid(&self) -> Result<i32> {
        child_of(self.child.id().cast_signed()).context("the runner is gone")
    }

    fn processor_seconds(&self) -> Result<f64> {
        processor_seconds(nix::unistd::Pid::from_raw(self.pid()?))
    }

    fn wait_until_it_traces(&self) -> Result<()> {
        let descriptors = PathBuf::from(format!("/proc/{}/fd", self.pid()?));
        let is_ring =
            |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("bpf-map"));
        let traces = || fs::read_dir(&descriptors).is_ok_and(|all| all.flatten().any(is_ring));
        wait_for("a runner to trace", traces)
    }
}

impl SessionRunner {
    fn kill(&mut self) {
        // Takes the namespace with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for SessionRunner {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The plain containers of a machine, all connected to its node.
struct Machine {
    runners: Vec<SessionRunner>,
    node: Node,
}

impl Machine {
    /// Waits until all runners are connected to the node.
    fn wait_for_peers(&self, programs: &Programs, containers: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            let peers = self.node.peers(programs)?;
            if peers == containers {
                return Ok(());
            }
            if began.elapsed() > CONNECT_PATIENCE {
                bail!("{peers} of {containers} runners connected to the node within {CONNECT_PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn start(programs: &Programs, containers: usize) -> Result<Self> {
        let node = Node::start(programs)?;
        let mut runners = Vec::new();
        for number in 0..containers {
            runners.push(SessionRunner::start(programs, number, Some(&node.socket()))?);
        }
        for runner in &runners {
            runner.wait_until_it_listens()?;
        }
        let machine = Self { runners, node };
        machine.wait_for_peers(programs, containers)?;
        Ok(machine)
    }
}

/// The latency of reports in one container, alone and beside one in a kill loop.
fn reports(programs: &Programs, results: &mut Results) -> Result<()> {
    let mut machine = Machine::start(programs, 2)?;
    let [measured, other] = &mut machine.runners[..] else { bail!("two were started") };
    let alone = latencies(programs, measured, 0)?;
    results.add(Figure::NodeReport, Implementation::Krunner, p99(&alone));
    results.add_baseline(Figure::NodeStorm, p99(&alone));
    results.note(format!(
        "exit to report by the node: p50 {:.2} ms, worst {:.2} ms",
        alone[alone.len() / 2],
        alone[alone.len() - 1]
    ));
    let limited = other.container.below("storm")?.limited(STORM_VICTIM_BYTES)?;
    let line = format!("for i in 1 2; do while :; do {}; done & done 2>/dev/null; wait", limited.victim());
    let storm = Sender::start(programs, other.ports, &line)?;
    wait_for("the kill loop to begin", || limited.kills().is_ok_and(|kills| kills > 0))?;
    let (began, before) = (Instant::now(), limited.kills()?);
    let beside = latencies(programs, measured, KILLS)?;
    let rate = f64::from(u32::try_from(limited.kills()? - before)?) / began.elapsed().as_secs_f64();
    results.add(Figure::NodeStorm, Implementation::Krunner, p99(&beside));
    results.note(format!("the kill loop: {rate:.0} kills a second; beside it: p50 {:.2} ms", beside[beside.len() / 2]));
    drop(storm);
    // Its processes, before their cgroup is removed.
    other.kill();
    Ok(())
}

/// The second worst of a hundred.
fn p99(sorted: &[f64]) -> f64 {
    sorted[sorted.len() * 99 / 100 - 1]
}

/// The milliseconds from the exit to the report of each of [`KILLS`] kills, one after another, in a runner that reported this many
/// before; sorted.
#[expect(clippy::cast_precision_loss, reason = "milliseconds")]
fn latencies(programs: &Programs, runner: &SessionRunner, earlier: usize) -> Result<Vec<f64>> {
    let cgroup = runner.container.below_for_victims()?;
    let logs = runner.folder.path().join("home/work/.logs");
    let line = format!("i=0; while [ $i -lt {KILLS} ]; do {}; sleep 0.12; i=$((i+1)); done", cgroup.victim());
    let mut sender = Sender::start(programs, runner.ports, &line)?;
    // To its end: the next client would take this step's end for its own.
    let reported = sender.times("oom-killed process:", usize::MAX)?;
    let record = || fs::read_to_string(logs.join("oom.jsonl")).unwrap_or_default();
    wait_for("the record of kills", || record().lines().count() >= earlier + KILLS)?;
    let kills = record()
        .lines()
        .skip(earlier)
        .map(|line| Ok(serde_json::from_str::<Value>(line)?))
        .collect::<Result<Vec<_>>>()?;
    let by_node = kills.iter().filter(|kill| kill["tracer"] == "node" && kill["confidence"] == "confirmed").count();
    if reported.len() != KILLS || by_node != KILLS {
        bail!("{} reports arrived, and {by_node} were confirmed by the node, of {KILLS} kills", reported.len());
    }
    let since = |kill: &Value, at: u64| at.saturating_sub(kill["exited_at_boot_ns"].as_u64().unwrap_or(0)) as f64 / 1e6;
    let mut took: Vec<f64> = kills.iter().zip(&reported).map(|(kill, at)| since(kill, *at)).collect();
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// The loads, and their times in seconds.
struct Loads {
    project: TempDir,
    forks: Vec<f64>,
    make: Vec<f64>,
}

impl Loads {
    fn new() -> Result<Self> {
        let project = tempfile::Builder::new().prefix("krunner-bench-").tempdir()?;
        for number in 0..SOURCES {
            let text = format!(
                "#include <stdio.h>\n#include <stdlib.h>\nint f{number}(void) {{ return puts(\"{number}\"); }}\n"
            );
            fs::write(project.path().join(format!("f{number}.c")), text)?;
        }
        fs::write(project.path().join("Makefile"), "all: $(patsubst %.c,%.o,$(wildcard *.c))\n")?;
        Ok(Self { project, forks: Vec::new(), make: Vec::new() })
    }

    fn run(&mut self, times: usize) -> Result<()> {
        let line = format!("i=0; while [ $i -lt {FORKS} ]; do (:); i=$((i+1)); done");
        for _ in 0..times {
            self.forks.push(timed(Command::new("sh").args(["-c", &line]))?);
            let mut make = Command::new("make");
            make.args(["-s", "-B", "-j2", "all"]).current_dir(self.project.path());
            self.make.push(timed(&mut make)?);
        }
        Ok(())
    }
}

fn timed(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    if !command.stdin(Stdio::null()).status()?.success() {
        bail!("{command:?} failed");
    }
    Ok(began.elapsed().as_secs_f64())
}

fn loads(programs: &Programs, results: &mut Results) -> Result<()> {
    let [mut without, mut with, mut warm] = [Loads::new()?, Loads::new()?, Loads::new()?];
    warm.run(1)?;
    let mut idle = None;
    for _ in 0..ROUNDS {
        without.run(RUNS)?;
        let machine = Machine::start(programs, CONTAINERS)?;
        if idle.is_none() {
            idle = Some(idle_percent(&machine)?);
        }
        with.run(RUNS)?;
    }
    let fastest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    for (figure, name, with, without) in [
        (Figure::NodeForks, "3,000 forks", &with.forks, &without.forks),
        (Figure::NodeMake, "make -j2 of 60 files", &with.make, &without.make),
    ] {
        let (with_mid, without_mid) = median(with).zip(median(without)).context("no runs")?;
        results.add(figure, Implementation::Krunner, slower_percent(with_mid, without_mid));
        results.note(format!(
            "{name}: median {:.0} ms with none, {:.0} ms beside {CONTAINERS} runners and the node; fastest {:.0} and {:.0} ms",
            without_mid * 1e3,
            with_mid * 1e3,
            fastest(without) * 1e3,
            fastest(with) * 1e3
        ));
    }
    compare(programs, results)?;
    if let Some([runners, node]) = idle {
        results.note(format!("idle: {CONTAINERS} runners use {runners:.1} % of a processor, the node {node:.1} %"));
    }
    Ok(())
}

fn slower_percent(with: f64, without: f64) -> f64 {
    (with / without - 1.0) * 100.0
}

/// For comparison: the loads beside one monitor, and beside as many runners that trace each for itself.
fn compare(programs: &Programs, results: &mut Results) -> Result<()> {
    let mut note = |what: &str, without: &Loads, with: &Loads| -> Result<()> {
        let slower = |with: &[f64], without: &[f64]| {
            median(with).zip(median(without)).map(|(with, without)| slower_percent(with, without)).context("no runs")
        };
        let (forks, make) = (slower(&with.forks, &without.forks)?, slower(&with.make, &without.make)?);
        results.note(format!("beside {what}: forks {forks:+.1} %, make {make:+.1} %"));
        Ok(())
    };
    let [mut without, mut with] = [Loads::new()?, Loads::new()?];
    without.run(RUNS)?;
    let monitor = Monitor::start(&programs.krunner)?;
    with.run(RUNS)?;
    drop(monitor);
    note("one monitor", &without, &with)?;
    let [mut without, mut with] = [Loads::new()?, Loads::new()?];
    without.run(RUNS)?;
    let runners =
        (0..CONTAINERS).map(|number| SessionRunner::start(programs, number, None)).collect::<Result<Vec<_>>>()?;
    for runner in &runners {
        runner.wait_until_it_listens()?;
        runner.wait_until_it_traces()?;
    }
    with.run(RUNS)?;
    note(&format!("{CONTAINERS} runners with eBPF"), &without, &with)
}

/// What all runners together use of a processor, and the node.
fn idle_percent(machine: &Machine) -> Result<[f64; 2]> {
    let used = || -> Result<[f64; 2]> {
        let runners = machine.runners.iter().map(SessionRunner::processor_seconds).sum::<Result<f64>>()?;
        Ok([runners, processor_seconds(machine.node.pid())?])
    };
    // Not the start itself.
    thread::sleep(Duration::from_secs(5));
    let before = used()?;
    thread::sleep(IDLE_TIME);
    let after = used()?;
    Ok([0, 1].map(|which| (after[which] - before[which]) / IDLE_TIME.as_secs_f64() * 100.0))
}

/// The node's memory beside many processes, which it keeps a history of.
fn memory(programs: &Programs, results: &mut Results) -> Result<()> {
    let node = Node::start(programs)?;
    results.note(format!("the node's RSS with few processes: {:.1} MiB", node.rss_mib()?));
    // Children of a process that shares its memory with them until they write: 20,000 of another program would not fit.
    let program = format!(
        "import os, signal\nfor _ in range({PROCESSES}):\n    if os.fork() == 0:\n        signal.pause()\nprint('ready', flush=True)\nsignal.pause()\n"
    );
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "python3", "-c", &program]);
    let mut children =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create("/dev/null")?).spawn()?;
    let mut ready = String::new();
    let read = BufReader::new(children.stdout.take().context("no output")?).read_line(&mut ready);
    // Several scans, each with its budget of processor time.
    thread::sleep(Duration::from_secs(30));
    let before = processor_seconds(node.pid())?;
    thread::sleep(IDLE_TIME);
    let used = processor_seconds(node.pid())? - before;
    let rss = node.rss_mib();
    let _ = children.kill();
    let _ = children.wait();
    read?;
    if ready.trim() != "ready" {
        bail!("{PROCESSES} processes could not be started (ulimit -u, pid_max)");
    }
    results.add(Figure::NodeRss, Implementation::Krunner, rss?);
    results.note(format!(
        "the node beside {PROCESSES} idle processes: {:.1} % of a processor",
        used / IDLE_TIME.as_secs_f64() * 100.0
    ));
    Ok(())
}
