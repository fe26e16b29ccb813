//! Measures the cost and the latency of OOM attribution.
//!
//! The kills are real: `tail /dev/zero` allocates in a memory cgroup below our own until it is killed. The Python runner learns
//! of kills only from the agent, so the bench notifies it at once, which no agent does.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::programs::loaded_programs;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;

use super::figures::{Figure, Results, median};
use super::sandbox::{Implementation, Ports, Programs, Runtime, Sandbox};
use crate::workspace::step;

/// Kills whose reports are timed. The 99th percentile is the second worst.
const KILLS: usize = 150;

/// Memory of a victim. A report waits until the kernel has freed it.
const VICTIM_BYTES: u64 = 24 << 20;

/// The number of idle processes.
const IDLE: usize = 2000;

/// The interval over which CPU usage is measured.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Forks per slice. A shell forks 1,000 times in half a second.
const FORKS: u32 = 3000;

/// Slices alternate with and without the tracer, because the difference is a few percent of a noisy figure.
const SLICES: usize = 12;

/// The deadline for anything that should take a second.
const PATIENCE: Duration = Duration::from_mins(1);

/// The Python runner gives up after 15 s.
const PYTHON_PATIENCE: Duration = Duration::from_secs(20);

/// The programs, with their names as the kernel truncates them.
const COSTS: [(&str, Figure); 4] = [
    ("process_exit", Figure::BpfExit),
    ("process_fork", Figure::BpfFork),
    ("process_exec", Figure::BpfExec),
    ("sigkill", Figure::BpfSignal),
];

/// Measures the requested figures about OOM kills.
pub(super) fn run(programs: &Programs, results: &mut Results) -> Result<()> {
    if results.wants_any(&[Figure::OomAttach, Figure::OomRss]) {
        step("attaching the OOM tracer");
        attach(programs, results)?;
    }
    if results.wants_any(&[Figure::OomReport]) {
        step(&format!("timing the reports of {KILLS} kills"));
        reports(programs, results)?;
    }
    if results.wants_any(&COSTS.map(|(_, figure)| figure)) {
        step("measuring the cost of the eBPF programs");
        costs(programs, results)?;
    }
    if results.wants_any(&[Figure::OomForks]) {
        step("timing a fork loop with and without the tracer");
        forks(programs, results)?;
    }
    if results.wants_any(&[Figure::OomIdle, Figure::OomLook]) {
        step(&format!("{IDLE} idle processes"));
        idle(programs, results)?;
    }
    Ok(())
}

/// A running `krunner monitor`, which is only the tracer.
pub(super) struct Monitor {
    child: Child,
    attached_ms: f64,
}

impl Monitor {
    pub(super) fn start(krunner: &Path) -> Result<Self> {
        let began = Instant::now();
        let mut child = Command::new(krunner).args(["monitor", "--json"]).stdout(Stdio::piped()).spawn()?;
        let mut first = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut first)?;
        let attached_ms = began.elapsed().as_secs_f64() * 1e3;
        let monitor = Self { child, attached_ms };
        let watching: Value = serde_json::from_str(&first).context("`krunner monitor` printed no JSON")?;
        if watching["tracer"] != "bpf" {
            bail!("BPF is not available: {}", watching["why_not_bpf"]);
        }
        Ok(monitor)
    }

    fn memory_mib(&self, field: &str) -> Result<f64> {
        memory_mib(self.child.id(), field)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn attach(programs: &Programs, results: &mut Results) -> Result<()> {
    for _ in 0..10 {
        let monitor = Monitor::start(&programs.krunner)?;
        results.add(Figure::OomAttach, Implementation::Krunner, monitor.attached_ms);
        thread::sleep(Duration::from_millis(200));
        results.add(Figure::OomRss, Implementation::Krunner, monitor.memory_mib("VmRSS:")?);
        results.note_once(format!("peak RSS while the tracer is loaded: {:.1} MiB", monitor.memory_mib("VmHWM:")?));
    }
    Ok(())
}

/// A memory cgroup, removed on drop.
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// One below our own, for victims.
    fn make() -> Result<Self> {
        Self::below_ours(&format!("krunner-bench-{}", std::process::id()))?.limited(VICTIM_BYTES)
    }

    /// One below our own with this name.
    pub(super) fn below_ours(name: &str) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let v1 = own.lines().find_map(|line| line.split_once(":memory:"));
        let ours = match v1 {
            Some((_, path)) => format!("/sys/fs/cgroup/memory{path}"),
            None => {
                let path = own.lines().find_map(|line| line.strip_prefix("0::")).context("no memory cgroup")?;
                format!("/sys/fs/cgroup{path}")
            }
        };
        Self::create(Path::new(&ours).join(name))
    }

    /// One below this one.
    pub(super) fn below(&self, name: &str) -> Result<Self> {
        // In version 2, a cgroup has memory.* files if the one above says so.
        let controllers = self.0.join("cgroup.subtree_control");
        if controllers.exists() {
            fs::write(&controllers, "+memory").with_context(|| format!("cannot write {}", controllers.display()))?;
        }
        Self::create(self.0.join(name))
    }

    /// The same for victims.
    pub(super) fn below_for_victims(&self) -> Result<Self> {
        self.below("victims")?.limited(VICTIM_BYTES)
    }

    fn create(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// Sets its limit.
    pub(super) fn limited(self, bytes: u64) -> Result<Self> {
        let files = ["memory.limit_in_bytes", "memory.max"].map(|file| self.0.join(file));
        let limit = files.iter().find(|file| file.exists()).context("no limit to set")?;
        fs::write(limit, bytes.to_string()).with_context(|| format!("cannot write {}", limit.display()))?;
        Ok(self)
    }

    /// Where processes enter it.
    pub(super) fn entrance(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// The kernel's count of OOM kills in it (`memory.oom_control` since Linux 4.13, or `memory.events`).
    pub(super) fn kills(&self) -> Result<u64> {
        let text =
            ["memory.oom_control", "memory.events"].iter().find_map(|file| fs::read_to_string(self.0.join(file)).ok());
        let text = text.context("no count of OOM kills")?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("no count of OOM kills")?;
        Ok(count.trim().parse()?)
    }

    /// A shell line that ends with an OOM kill.
    pub(super) fn victim(&self) -> String {
        format!("sh -c 'echo $$ > {}; exec tail /dev/zero'", self.entrance().display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last victim may not have been reaped yet.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A running `krunner send`, whose output lines are timed.
pub(super) struct Sender(Child);

impl Sender {
    pub(super) fn start(programs: &Programs, ports: Ports, line: &str) -> Result<Self> {
        let mut command = Command::new(&programs.krunner);
        command.args(["send", "--json", "--in-port", &ports.replin.to_string()]);
        command.args(["--out-port", &ports.replout.to_string(), "exec", line]);
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    /// Reads until `text` occurred `count` times. Returns the arrival times in nanoseconds since boot.
    pub(super) fn times(&mut self, text: &str, count: usize) -> Result<Vec<u64>> {
        let mut times = Vec::new();
        for line in BufReader::new(self.0.stdout.take().context("no output")?).lines() {
            let line = line?;
            let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
            let now = u64::try_from(now.as_nanos())?;
            times.extend(std::iter::repeat_n(now, line.matches(text).count()));
            if times.len() >= count {
                break;
            }
        }
        Ok(times)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds")]
fn reports(programs: &Programs, results: &mut Results) -> Result<()> {
    let cgroup = Cgroup::make()?;
    let sandbox = Sandbox::make(Implementation::Krunner, Runtime::Shell, programs)?;
    let logs = sandbox.home().join(".logs");
    fs::create_dir(&logs)?;
    sandbox.release_start()?;
    wait_for("the tracer to be attached", || sandbox.is_traced())?;
    // Far enough apart for the rate limiter to let every report through.
    let line = format!("i=0; while [ $i -lt {KILLS} ]; do {}; sleep 0.12; i=$((i+1)); done", cgroup.victim());
    let mut sender = Sender::start(programs, sandbox.ports, &line)?;
    let told = sender.times("oom-killed process:", KILLS)?;
    let record = || fs::read_to_string(logs.join("oom.jsonl")).unwrap_or_default();
    wait_for("the record of kills", || record().lines().count() >= KILLS)?;
    let exits = record().lines().map(|line| Ok(serde_json::from_str::<Value>(line)?)).collect::<Result<Vec<_>>>()?;
    if told.len() != KILLS || exits.len() != KILLS {
        bail!("{} reports arrived and {} were recorded of {KILLS} kills", told.len(), exits.len());
    }
    let since = |field: &str| {
        let pairs = exits.iter().zip(&told);
        let mut took: Vec<f64> =
            pairs.map(|(kill, told)| told.saturating_sub(kill[field].as_u64().unwrap_or(0)) as f64 / 1e6).collect();
        took.sort_by(f64::total_cmp);
        took
    };
    let (exit, killed) = (since("exited_at_boot_ns"), since("killed_at_boot_ns"));
    results.add(Figure::OomReport, Implementation::Krunner, exit[KILLS * 99 / 100 - 1]);
    results.note(format!(
        "exit to report: p50 {:.2} ms, worst {:.2} ms; from the SIGKILL: p50 {:.2} ms, p99 {:.2} ms",
        exit[KILLS / 2],
        exit[KILLS - 1],
        killed[KILLS / 2],
        killed[KILLS * 99 / 100 - 1]
    ));
    sandbox.stop()?;
    python_report(programs, results, &cgroup)
}

/// Causes one kill and notifies the Python runner at once.
fn python_report(programs: &Programs, results: &mut Results, cgroup: &Cgroup) -> Result<()> {
    let sandbox = Sandbox::make(Implementation::Python, Runtime::Shell, programs)?;
    sandbox.release_start()?;
    thread::sleep(Duration::from_secs(4));
    let line = format!("{}; echo killed; sleep {}", cgroup.victim(), PYTHON_PATIENCE.as_secs());
    let mut sender = Sender::start(programs, sandbox.ports, &line)?;
    let mut began = None;
    for line in BufReader::new(sender.0.stdout.take().context("no output")?).lines() {
        let line = line?;
        if line.contains("killed\\n") && began.is_none() {
            began = Some(Instant::now());
            let mut event = Command::new(&programs.krunner);
            event.args(["send", "--in-port", &sandbox.ports.replin.to_string()]);
            event.args(["--out-port", &sandbox.ports.replout.to_string(), "event", r#"{"type":"oom","data":""}"#]);
            event.status()?;
        }
        let failed = line.contains("failed to get the information");
        if let Some(began) = began.filter(|_| failed || line.contains("oom-killed process")) {
            results.add(Figure::OomReport, Implementation::Python, began.elapsed().as_secs_f64() * 1e3);
            if failed {
                results.note("the Python runner named no process".to_owned());
            }
            break;
        }
    }
    sandbox.stop()
}

/// A container's pid namespace with `krunner monitor` in it, a load while the kernel counts, and then a wait.
const COUNTED: &str = r#"
set -e
krunner=$1 told=$2 switch=/proc/sys/kernel/bpf_stats_enabled
"$krunner" monitor --json >"$told" &
until grep -q watching "$told"; do sleep 0.02; done
before=$(cat $switch)
echo 1 >$switch
i=0; while [ $i -lt 4000 ]; do /bin/true; (:); kill -CONT $$; i=$((i+1)); done
echo "$before" >$switch
echo counted
read -r _
"#;

/// Run times of the programs under a load of forks, execs and exits.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds")]
fn costs(programs: &Programs, results: &mut Results) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let told = folder.path().join("told");
    let others: Vec<u32> = loaded_programs().filter_map(|program| Some(program.ok()?.id())).collect();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", COUNTED, "sh"]);
    let mut container =
        command.arg(&programs.krunner).arg(&told).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut counted = String::new();
    let read = BufReader::new(container.stdout.take().context("no output")?).read_line(&mut counted);
    for program in loaded_programs() {
        let program = program?;
        let (name, runs, total) = (program.name_as_str().unwrap_or(""), program.run_count(), program.run_time());
        let wanted = COSTS.iter().find(|(wanted, _)| *wanted == name && runs > 0 && !others.contains(&program.id()));
        let Some((_, figure)) = wanted else { continue };
        let mean = total.as_nanos() as f64 / runs as f64;
        results.add(*figure, Implementation::Krunner, mean);
        results.note(format!("{name}: {mean:.0} ns in the mean of {runs} runs"));
    }
    drop(container.stdin.take());
    container.wait()?;
    read?;
    if counted.trim() != "counted" {
        bail!("the load did not come to its end; {}", fs::read_to_string(&told)?.trim());
    }
    Ok(())
}

/// How much longer a loop of forks takes.
fn forks(programs: &Programs, results: &mut Results) -> Result<()> {
    let loop_of_forks = || -> Result<f64> {
        let line = format!("i=0; while [ $i -lt {FORKS} ]; do (:); i=$((i+1)); done");
        let began = Instant::now();
        if !Command::new("sh").args(["-c", &line]).status()?.success() {
            bail!("the loop of forks failed");
        }
        Ok(began.elapsed().as_secs_f64())
    };
    loop_of_forks()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        without.push(loop_of_forks()?);
        let _monitor = Monitor::start(&programs.krunner)?;
        thread::sleep(Duration::from_millis(100));
        with.push(loop_of_forks()?);
    }
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let (Some(with_mid), Some(without_mid)) = (median(&with), median(&without)) else { bail!("no slices") };
    results.add(Figure::OomForks, Implementation::Krunner, (with_mid / without_mid - 1.0) * 100.0);
    results.note(format!(
        "{FORKS} forks: median {:.0} ms without, {:.0} ms with the tracer; fastest {:.0} and {:.0} ms",
        without_mid * 1e3,
        with_mid * 1e3,
        least(&without) * 1e3,
        least(&with) * 1e3
    ));
    Ok(())
}

/// What runners use while thousands of processes sleep, and how long a look at them takes.
fn idle(programs: &Programs, results: &mut Results) -> Result<()> {
    for implementation in [Implementation::Krunner, Implementation::Python] {
        let sandbox = Sandbox::make(implementation, Runtime::Shell, programs)?;
        sandbox.release_start()?;
        thread::sleep(Duration::from_secs(3));
        let line = format!("i=0; while [ $i -lt {IDLE} ]; do sleep 600 & i=$((i+1)); done; echo ready; wait");
        let mut sender = Sender::start(programs, sandbox.ports, &line)?;
        sender.times("ready", 1)?;
        thread::sleep(Duration::from_secs(6));
        let pid = sandbox.runner_pid().context("the runner is gone")?;
        let before = processor_seconds(pid)?;
        thread::sleep(IDLE_TIME);
        let used = processor_seconds(pid)? - before;
        results.add(Figure::OomIdle, implementation, used / IDLE_TIME.as_secs_f64() * 100.0);
        if implementation == Implementation::Krunner {
            for _ in 0..5 {
                results.add(Figure::OomLook, implementation, look_ms(&programs.krunner)?);
            }
        }
        drop(sender);
        sandbox.stop()?;
    }
    Ok(())
}

/// The scan time as `krunner doctor` measures it.
fn look_ms(krunner: &Path) -> Result<f64> {
    let output = Command::new(krunner).args(["doctor", "--json"]).output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let checks = told["checks"].as_array().context("no checks")?;
    let look = checks.iter().find(|check| check["check"] == "proc-look").context("doctor has no check proc-look")?;
    let found = look["found"].as_str().context("no finding")?;
    let ms = found.split_once(" ms").and_then(|(text, _)| text.rsplit(' ').next()).context("no time")?;
    Ok(ms.parse()?)
}

/// A field of `/proc/PID/status`, in MiB.
pub(super) fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// The user and system CPU time that a process has used.
pub(super) fn processor_seconds(pid: Pid) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("a strange stat")?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = 0.0;
    for _ in 0..2 {
        ticks += fields.next().context("a short stat")?.parse::<f64>()?;
    }
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(ticks / f64::from(i32::try_from(per_second)?))
}

pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            bail!("timed out after {PATIENCE:?} waiting for {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
